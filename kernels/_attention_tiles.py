"""What attention's launches have in common: how a config and sizes become tiles and flags."""

from __future__ import annotations

import torch

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config, Problem
from autotune.kernel import Tolerance

MAX_HEAD_DIM = 256

#: 2x and a rounding of the output, as flash-attention. In float32 nearly all of the error is that of a row's
#: largest scores, which moves all its outputs together, so the mean over few rows may be as unlucky as one
#: element: of 26000 single rows computed as here, head sizes 16 to 256, it was over 4x torch's by up to 5.0 eps,
#: and 19 times by more than the 0.8 that 8 ulps leave it. With tf32 products it is by 188 eps at least.
TOLERANCES = {
    "float16": Tolerance(ratio=2, ulps=1),
    "bfloat16": Tolerance(ratio=2, ulps=1),
    "float32": Tolerance(ratio=4, ulps=64),
}


def check_width(name: str, width: int) -> int:
    """:raises ValueError: if no tile takes the head dimension."""
    if 1 <= width <= MAX_HEAD_DIM:
        return width
    raise ValueError(f"{name} has head_dim {width}; the kernel takes 1 to {MAX_HEAD_DIM}")


def whole_groups(problem: Problem) -> str | None:
    heads, kv_heads = problem.integer("H"), problem.integer("HKV")
    return None if heads % kv_heads == 0 else f"HKV={kv_heads} must divide H={heads}"


def widths(head_dim: int, value_dim: int) -> dict[str, int | bool]:
    """Products take powers of two from 16 up."""
    block_d, block_dv = (max(16, next_power_of_2(width)) for width in (head_dim, value_dim))
    return {
        "BLOCK_D": block_d,
        "BLOCK_DV": block_dv,
        "EVEN_D": block_d == head_dim,
        "EVEN_DV": block_dv == value_dim,
    }


def strides(name: str, dims: str, shape: tuple[int, ...], problem: Problem) -> dict[str, int]:
    """Names and values of a tensor's strides in a layout of :func:`~autotune.kernels._tensors.heads_layout`.

    :param dims: a letter for each of batch, heads, rows and head_dim
    """
    _, count, length, width = shape
    # A strided head_dim has a gap after every element.
    step = 2 if problem.get("layout") == "s" else 1
    by_head, by_row = step * length * width, step * width
    if problem.get("layout", "bhsd") == "bshd":
        by_head, by_row = width, count * width
    values = (step * count * length * width, by_head, by_row, step)
    return {f"stride_{name}{dim}": value for dim, value in zip(dims, values, strict=True)}


def effective(config: Config, group: int, rows: int, may_describe: bool) -> Config:
    """``config`` with both flags, off where they can't be: packing of single heads, descriptors of what has none.

    :param group: query heads that share keys
    """
    # Packed rows are numbered in 32 bits.
    packs = bool(config.get("PACK_GQA")) and group > 1 and group * rows < 2**31 - 512
    return Config({**config, "PACK_GQA": packs, "DESCRIPTOR": bool(config.get("DESCRIPTOR")) and may_describe})


def describable(*tensors: torch.Tensor) -> bool:
    """Whether tensor descriptors may stand for every head of these: unit last strides, all else in 16 bytes.

    Descriptors over other strides give wrong results without a word (github.com/triton-lang/triton/pull/10931).
    """
    return all(
        tensor.stride(-1) == 1
        and tensor.data_ptr() % 16 == 0
        and all(stride > 0 and stride * tensor.element_size() % 16 == 0 for stride in tensor.stride()[:-1])
        for tensor in tensors
    )


def tiles_by_heads(heads: int, kv_heads: int, rows: int, config: Config) -> int:
    """Programs of one sequence."""
    if config["PACK_GQA"]:
        return cdiv(rows * (heads // kv_heads), config.integer("BLOCK_M")) * kv_heads
    return cdiv(rows, config.integer("BLOCK_M")) * heads
