"""``decode_attention``: one new token a sequence against a cache of keys and values, contiguous or paged.

So few queries leave most of a device idle, so the keys of a sequence are split over SPLIT_KV programs, whose
results a second launch adds up (flash-decoding, https://pytorch.org/blog/flash-decoding). Each split's range
follows on the device from the sequence's length; the launch itself depends on shapes alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config, Problem
from autotune.kernel import Kernel, Signature, Tolerance
from autotune.kernels._decode_attention import attend_split, sum_splits
from autotune.kernels._decode_attention_operator import OPERATOR, check, check_values
from autotune.kernels._decode_attention_problem import (
    FIELDS,
    MAX_HEAD_DIM,
    capacity_of,
    inputs,
    memory_order,
    rule,
    sizes,
    work,
)
from autotune.kernels._decode_attention_reference import baseline, reference
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._masks import LOG2_E, binding_window
from autotune.kernels._tensors import aligned, dtype_name


def problem(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> Problem:
    """:raises ValueError: if the arguments don't fit together, or the kernel does not take them."""
    check(q, k_cache, v_cache, seq_lens, block_table, scale, window)
    dtype = dtype_name(q=q, k_cache=k_cache, v_cache=v_cache)
    batch, _, heads, head_dim = q.shape
    value_dim = v_cache.shape[3]
    for name, size in (("q", head_dim), ("v_cache", value_dim)):
        if not 1 <= size <= MAX_HEAD_DIM:
            raise ValueError(f"{name} has head_dim {size}; the kernel takes 1 to {MAX_HEAD_DIM}")
    layout, capacity = memory_order(k_cache, v_cache), capacity_of(k_cache, block_table)
    in_memory = [cache.transpose(1, 2) if layout == "bhsd" else cache for cache in (k_cache, v_cache)]
    return KERNEL.make(
        B=batch,
        H=heads,
        HKV=k_cache.shape[2],
        SK=capacity,
        D=head_dim,
        DV=0 if value_dim == head_dim else value_dim,
        dtype=dtype,
        page=0 if block_table is None else k_cache.shape[1],
        window=binding_window(window, 1, capacity),
        layout=layout,
        aligned=aligned(q, *in_memory),
    )


def key(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> Hashable:
    # What is not here, run refuses.
    return (
        q.shape,
        k_cache.shape,
        v_cache.shape,
        None if block_table is None else block_table.shape,
        q.stride(),
        k_cache.stride(),
        v_cache.stride(),
        q.dtype,
        q.dtype is k_cache.dtype is v_cache.dtype,
        q.get_device(),
        (q.data_ptr() | k_cache.data_ptr() | v_cache.data_ptr()) & 15,
        window,
    )


def run(
    config: Config,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """(batch, 1, heads, v head_dim), contiguous, in the dtype of ``q``; see :func:`decode_attention`."""
    check(q, k_cache, v_cache, seq_lens, block_table, scale, window)
    check_values(k_cache, seq_lens, block_table, window)
    if must_widen(attend_split, q):
        wide = run(config, q.float(), k_cache.float(), v_cache.float(), seq_lens, block_table, scale, window)
        return wide.to(q.dtype)
    # One token, its length and its page numbers: a copy costs little beside the cache.
    seq_lens = seq_lens.contiguous()
    q = q if q.stride(3) == 1 else q.contiguous()
    page, table, stride_tb = 0, seq_lens, 0
    if block_table is not None:
        table = block_table if block_table.stride(1) == 1 else block_table.contiguous()
        page, stride_tb = k_cache.shape[1], table.stride(0)
    batch, _, heads, head_dim = q.shape
    kv_heads, value_dim = v_cache.shape[2:]
    capacity = capacity_of(k_cache, block_table)
    out = torch.empty((batch, 1, heads, value_dim), dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    splits = config.integer("SPLIT_KV")
    partial = lse = out
    if splits > 1:
        partial = torch.empty((batch, heads, splits, value_dim), dtype=torch.float32, device=q.device)
        lse = torch.empty((batch, heads, splits), dtype=torch.float32, device=q.device)
    launch(
        attend_split,
        _programs(batch, heads, kv_heads, config),
        *(q, k_cache, v_cache, partial, lse, seq_lens, table),
        (head_dim**-0.5 if scale is None else scale) * LOG2_E,
        binding_window(window, 1, capacity) or capacity,
        *(kv_heads, q.stride(0), q.stride(2), *k_cache.stride(), *v_cache.stride(), stride_tb),
        config=config,
        **_shape(heads // kv_heads, head_dim, value_dim, page),
    )
    if splits > 1:
        launch(sum_splits, batch * heads, partial, lse, out, **_sum(splits, value_dim))
    return out


def _programs(batch: int, heads: int, kv_heads: int, config: Config) -> int:
    tiles = cdiv(heads // kv_heads, config.integer("BLOCK_H"))
    return batch * kv_heads * tiles * config.integer("SPLIT_KV")


def _shape(group: int, head_dim: int, value_dim: int, page: int) -> dict[str, Any]:
    blocks = {"BLOCK_D": _block(head_dim), "BLOCK_DV": _block(value_dim)}
    return {"GROUP": group, "D": head_dim, "DV": value_dim, "PAGE": page, **blocks}


def _block(head_dim: int) -> int:
    return max(16, next_power_of_2(head_dim))


def _sum(splits: int, value_dim: int) -> dict[str, Any]:
    """How the second launch is made: a program holds all of a head's results, at most 128 a thread."""
    warps = 8 if splits * _block(value_dim) > 2**14 else 4
    return {
        "config": Config(num_warps=warps, num_stages=1, SPLIT_KV=splits),
        "DV": value_dim,
        "BLOCK_DV": _block(value_dim),
    }


def compile_signature(problem: Problem, config: Config) -> tuple[Signature, ...]:
    batch, heads, kv_heads, capacity, head_dim, value_dim = sizes(problem)
    page, splits = problem.integer("page", 0), config.integer("SPLIT_KV")
    layout = problem.get("layout", "bshd")
    integers = {
        "window": problem.integer("window", 0) or capacity,
        "HKV": kv_heads,
        "stride_qb": heads * head_dim,
        "stride_qh": head_dim,
        "stride_tb": capacity // page if page else 0,
    }
    for name, size in (("k", head_dim), ("v", value_dim)):
        # A strided head_dim has a gap after every element.
        step, rows = 2 if layout == "s" else 1, page or capacity
        by_row, by_head = (size, rows * size) if layout == "bhsd" else (kv_heads * size, size)
        integers[f"stride_{name}b"] = step * rows * kv_heads * size
        integers[f"stride_{name}n"] = step * by_row
        integers[f"stride_{name}h"] = step * by_head
        integers[f"stride_{name}d"] = step
    dtype = TRITON_NAMES[str(problem["dtype"])]
    between = "fp32" if splits > 1 else dtype
    split = signature(
        attend_split,
        _programs(batch, heads, kv_heads, config),
        pointers={
            **dict.fromkeys(("q", "k", "v"), dtype),
            **dict.fromkeys(("out", "lse"), between),
            **dict.fromkeys(("seq_lens", "block_table"), "i32"),
        },
        misaligned=() if problem.get("aligned", True) else ("q", "k", "v"),
        integers=integers,
        floats=("scale_log2",),
        constexprs=_shape(heads // kv_heads, head_dim, value_dim, page),
        config=config,
    )
    if splits == 1:
        return (split,)
    options = _sum(splits, value_dim)
    total = signature(
        sum_splits,
        batch * heads,
        pointers={"partial": "fp32", "lse": "fp32", "out": dtype},
        integers={},
        config=options.pop("config"),
        constexprs=options,
    )
    return split, total


KERNEL = Kernel(
    fields=FIELDS,
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    baseline=baseline,
    work=work,
    problems=(
        "B=3,H=8,HKV=2,SK=256,D=64,dtype=float16",
        "B=2,H=5,HKV=1,SK=192,D=40,DV=24,dtype=float16,page=16,window=70",
        "B=2,H=8,HKV=2,SK=256,D=128,dtype=bfloat16,page=64,layout=bhsd",
        "B=1,H=2,HKV=2,SK=29,D=64,dtype=float32",
    ),
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=64),
    },
    signature=compile_signature,
    rule=rule,
    operator=OPERATOR,
)
