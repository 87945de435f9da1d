"""Problems of ``attention_varlen``: lengths in buckets, so that a config found for one batch serves the next."""

from __future__ import annotations

import random as rng

import torch

from autotune.arithmetic import next_power_of_2
from autotune.data import Problem
from autotune.kernel import Field
from autotune.kernels._attention_tiles import MAX_HEAD_DIM, whole_groups
from autotune.kernels._tensors import random, relaid

SIZES = ("B", "H", "HKV", "SQ", "SK", "D")

#: Percent of B x (SQ + SK) that are tokens; what is between two counts as the larger.
FILLS = (12, 25, 50, 100)

FIELDS = (
    # B, SQ and SK are the next powers of two of the number of sequences and of the longest.
    *(Field(name, "size", minimum=0 if name in ("B", "SQ", "SK") else 1) for name in SIZES[:-1]),
    Field("D", "size", minimum=1, maximum=MAX_HEAD_DIM),
    Field("dtype", "dtype"),
    Field("causal", "flag", default=False),
    Field("layout", "choice", "n", choices=("n", "s")),
    Field("aligned", "flag", default=True),
    # As D, and none.
    Field("DV", "size", default=0, maximum=MAX_HEAD_DIM),
    Field("window", "size", default=0),
    Field("fill", "choice", default=50, choices=FILLS),
)


def bucket(size: int) -> int:
    return next_power_of_2(size) if size else 0


def fill_of(tokens: int, room: int) -> int:
    return next((fill for fill in FILLS if tokens * 100 <= fill * room), FILLS[-1]) if room else 50


def rule(problem: Problem) -> str | None:
    for name in ("B", "SQ", "SK"):
        size = problem.integer(name)
        if size != bucket(size):
            return f"{name}={size} must be a power of two, the next one of what it stands for, or 0"
    return whole_groups(problem)


def inputs(problem: Problem, seed: int, device: str) -> tuple[torch.Tensor | int | bool | None, ...]:
    """Lengths are ragged unless all are full, and where there is room for it one sequence is empty.

    Where queries and keys have one longest length, each sequence has as many of both.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, heads, kv_heads, rows, columns, head_dim = (problem.integer(name) for name in SIZES)
    fill, drawn = problem.integer("fill", 50), rng.Random(seed)
    q_lengths = _lengths(batch, rows, fill, drawn)
    k_lengths = q_lengths if rows == columns else _lengths(batch, columns, fill, drawn)

    def one(tokens: int, heads: int, width: int) -> torch.Tensor:
        data = random(tokens, heads, width, dtype=str(problem["dtype"]), device=device, generator=generator)
        return relaid(data, str(problem.get("layout", "n")), not problem.get("aligned", True))

    def offsets(lengths: list[int]) -> torch.Tensor:
        ends = torch.tensor([0, *lengths]).cumsum(0)
        return ends.to(device=device, dtype=torch.int32)

    return (
        one(sum(q_lengths), heads, head_dim),
        one(sum(k_lengths), kv_heads, head_dim),
        one(sum(k_lengths), kv_heads, problem.integer("DV", 0) or head_dim),
        *(offsets(q_lengths), offsets(k_lengths), rows, columns),
        *(bool(problem.get("causal", False)), None, problem.integer("window", 0) or None),
    )


def _lengths(batch: int, longest: int, fill: int, drawn: rng.Random) -> list[int]:
    """``fill`` percent of ``batch * longest``, dealt out at random; none is over ``longest``."""
    left, lengths = batch * longest * fill // 100, []
    for after in reversed(range(batch)):
        least, most = max(0, left - after * longest), min(longest, left, 2 * (left // (after + 1)) + 1)
        length = left if after == 0 else drawn.randint(least, max(least, most))
        if after == batch // 2 and least == 0:
            length = 0
        lengths.append(length)
        left -= length
    return lengths
