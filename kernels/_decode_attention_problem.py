"""The problems of ``decode_attention``: their fields, random arguments of one, and what it costs."""

from __future__ import annotations

from typing import TypeAlias

import torch

from autotune.data import ITEMSIZE, Problem
from autotune.kernel import Field, Work
from autotune.kernels._tensors import random, relaid

MAX_HEAD_DIM = 256

FIELDS = (
    # Sequences and capacity may be 0; heads and head_dim may not.
    Field("B", "size"),
    Field("H", "size", minimum=1),
    Field("HKV", "size", minimum=1),
    Field("SK", "size"),
    Field("D", "size", minimum=1, maximum=MAX_HEAD_DIM),
    #: Head size of the values; 0: as D.
    Field("DV", "size", default=0, maximum=MAX_HEAD_DIM),
    Field("dtype", "dtype"),
    #: Keys a page; 0: a contiguous cache.
    Field("page", "size", default=0),
    #: Last keys that are seen; 0: all.
    Field("window", "size", default=0),
    Field("layout", "choice", "bshd", choices=("bshd", "bhsd", "s")),
    Field("aligned", "flag", default=True),
)

_Args: TypeAlias = (
    "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, None, int | None]"
)


def sizes(problem: Problem) -> tuple[int, int, int, int, int, int]:
    """B, H, HKV, SK, D and DV."""
    batch, heads, kv_heads, capacity, head_dim = (problem.integer(name) for name in ("B", "H", "HKV", "SK", "D"))
    return batch, heads, kv_heads, capacity, head_dim, problem.integer("DV", 0) or head_dim


def rule(problem: Problem) -> str | None:
    _, heads, kv_heads, capacity, head_dim, value_dim = sizes(problem)
    page, window = problem.integer("page", 0), problem.integer("window", 0)
    if heads % kv_heads:
        return f"HKV={kv_heads} must divide H={heads}"
    if "DV" in problem and value_dim == head_dim:
        return f"DV={value_dim} is D; leave it out"
    if page and capacity % page:
        return f"page={page} must divide SK={capacity}"
    if window and window >= capacity:
        return f"window={window} hides none of SK={capacity} keys; leave it out"
    return None


def capacity_of(k_cache: torch.Tensor, block_table: torch.Tensor | None) -> int:
    return k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])


def memory_order(*caches: torch.Tensor) -> str:
    """The order in memory: ``bshd``, ``bhsd``, or ``s`` for any other."""
    orders = set()
    for cache in caches:
        _, by_row, by_head, by_element = cache.stride()
        if by_element != 1 and cache.size(3) > 1:
            orders.add("s")
        elif cache.size(1) > 1 and cache.size(2) > 1:
            orders.add("bshd" if by_row >= by_head else "bhsd")
    return orders.pop() if len(orders) == 1 else "s" if orders else "bshd"


def inputs(problem: Problem, seed: int, device: str) -> _Args:
    generator = torch.Generator().manual_seed(seed)
    batch, heads, kv_heads, capacity, head_dim, value_dim = sizes(problem)
    layout, off = problem.get("layout", "bshd"), not problem.get("aligned", True)
    page = problem.integer("page", 0)
    pages = batch * capacity // page if page else 0

    def draw(*sizes: int) -> torch.Tensor:
        return random(*sizes, dtype=str(problem["dtype"]), device=device, generator=generator)

    def cache(size: int) -> torch.Tensor:
        drawn = draw(pages if page else batch, page or capacity, kv_heads, size)
        if layout == "bhsd":
            return relaid(drawn.transpose(1, 2), "n", off).transpose(1, 2)
        return relaid(drawn, "s" if layout == "s" else "n", off)

    q, k_cache, v_cache = relaid(draw(batch, 1, heads, head_dim), "n", off), cache(head_dim), cache(value_dim)
    lengths = torch.tensor(_lengths(problem), dtype=torch.int32)[torch.randperm(batch, generator=generator)]
    table = None
    if page:
        table = torch.randperm(pages, generator=generator).view(batch, -1).int()
        # No entry past a sequence's last page may be read.
        table[torch.arange(table.shape[1]) >= lengths[:, None] / page] = -1
        table = table.to(device)
    return q, k_cache, v_cache, lengths.to(device), table, None, problem.integer("window", 0) or None


def _lengths(problem: Problem) -> list[int]:
    """From one key to the capacity in even steps: their sum, and so the work, does not depend on the seed."""
    batch, capacity = problem.integer("B"), problem.integer("SK")
    if capacity == 0:
        return [0] * batch
    return [capacity - (capacity - 1) * number // max(1, batch - 1) for number in range(batch)]


def work(problem: Problem) -> Work:
    """Of the lengths that :func:`inputs` draws."""
    batch, heads, kv_heads, capacity, head_dim, value_dim = sizes(problem)
    window = problem.integer("window", 0) or capacity
    keys = sum(min(length, window) for length in _lengths(problem))
    elements = (batch * heads + keys * kv_heads) * (head_dim + value_dim)
    return Work(flops=2 * keys * heads * (head_dim + value_dim), bytes=elements * ITEMSIZE[str(problem["dtype"])])
