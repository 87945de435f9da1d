"""The problems of ``sddmm``: their fields, random arguments of one, what it costs, and the ways torch has."""

from __future__ import annotations

from typing import TypeAlias

import torch

from autotune.data import ITEMSIZE, Device, Problem
from autotune.kernel import Field, Provider, Work
from autotune.kernels._bsr import BLOCKS
from autotune.kernels._bsr_pattern import pattern_of
from autotune.kernels._density import DENSITIES
from autotune.kernels._sddmm_operator import check
from autotune.kernels._tensors import random, relaid

FIELDS = (
    Field("M", "size"),
    Field("N", "size"),
    Field("K", "size"),
    # Traits, not sizes: a config tuned for blocks of 32 says nothing about blocks of 128.
    Field("BLOCK_ROWS", "choice", choices=BLOCKS),
    Field("BLOCK_COLUMNS", "choice", choices=BLOCKS),
    Field("density", "size", choices=DENSITIES),
    Field("dtype", "dtype"),
    Field("layout", "choice", "nn", choices=tuple(a + b for a in "nts" for b in "nts")),
    Field("aligned", "flag", default=True),
)

_Args: TypeAlias = "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int]"


def rule(problem: Problem) -> str | None:
    for size, block in (("M", "BLOCK_ROWS"), ("N", "BLOCK_COLUMNS")):
        if problem.integer(size) % problem.integer(block):
            return f"{size}={problem[size]} must be a multiple of {block}={problem[block]}"
    return None


def stored_blocks(problem: Problem) -> int:
    """Of the pattern that :func:`inputs` draws."""
    return round(_places(problem) * problem.integer("density") / 100)


def _places(problem: Problem) -> int:
    down = problem.integer("M") // problem.integer("BLOCK_ROWS")
    return down * (problem.integer("N") // problem.integer("BLOCK_COLUMNS"))


def inputs(problem: Problem, seed: int, device: str) -> _Args:
    generator = torch.Generator().manual_seed(seed)
    M, N, K = (problem.integer(name) for name in "MNK")
    block_rows, block_columns = problem.integer("BLOCK_ROWS"), problem.integer("BLOCK_COLUMNS")
    down, across = M // block_rows, N // block_columns
    chosen = torch.randperm(down * across, generator=generator)[: stored_blocks(problem)].sort().values
    counts = torch.bincount(chosen // max(1, across), minlength=down)
    crow = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    dtype, off = str(problem["dtype"]), not problem.get("aligned", True)
    layout = str(problem.get("layout", "nn"))
    a, b = (
        relaid(random(*size, dtype=dtype, device=device, generator=generator), order, off)
        for size, order in (((M, K), layout[0]), ((K, N), layout[1]))
    )
    return a, b, crow.to(device), (chosen % max(1, across)).to(device), block_rows, block_columns


def work(problem: Problem) -> Work:
    M, N, K = (problem.integer(name) for name in "MNK")
    share = problem.integer("density") / 100
    moved = M * K + K * N + round(M * N * share)
    return Work(flops=round(2 * M * N * K * share), bytes=moved * ITEMSIZE[str(problem["dtype"])])


def reference(
    a: torch.Tensor,
    b: torch.Tensor,
    crow: torch.Tensor,
    columns: torch.Tensor,
    block_rows: int,
    block_columns: int,
) -> torch.Tensor:
    """The whole product, and of it the blocks stored."""
    check(a, b, crow, columns, block_rows, block_columns)
    across = b.shape[1] // block_columns
    pattern = pattern_of(crow, columns, across)
    whole = torch.mm(a, b).view(pattern.rows, block_rows, across, block_columns)
    return whole.transpose(1, 2)[pattern.row_of, pattern.column_of].contiguous()


def _sampled_addmm(
    a: torch.Tensor,
    b: torch.Tensor,
    crow: torch.Tensor,
    columns: torch.Tensor,
    block_rows: int,
    block_columns: int,
) -> torch.Tensor:
    # torch.sparse.sampled_addmm itself takes element-wise patterns only.
    from torch.sparse import _triton_ops

    check(a, b, crow, columns, block_rows, block_columns)
    pattern_of(crow, columns, b.shape[1] // block_columns)
    # Zeros: where K is 0 it multiplies what lies there by beta.
    values = a.new_zeros(columns.numel(), block_rows, block_columns)
    sparse = torch.sparse_bsr_tensor(
        crow, columns.to(crow.dtype), values, (a.shape[0], b.shape[1]), check_invariants=False
    )
    result: torch.Tensor = _triton_ops.sampled_addmm(sparse, a, b, beta=0.0)
    return result.values()


def _no_sampled_addmm(problem: Problem, device: Device) -> str | None:
    if device.arch in ("interpreter", "cpu"):
        return "torch's sampled_addmm for blocks is a Triton kernel that runs on a GPU only"
    return None


PROVIDERS = {
    "dense": Provider(reference),
    "torch": Provider(_sampled_addmm, _no_sampled_addmm),
}
