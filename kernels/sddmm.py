"""``sddmm``: the blocks of a dense product that a block-sparse pattern has, and no others.

One program computes some stored blocks of one block row together, or a tile of a large block. Where there are few
blocks and a long K, as for the gradient of a block-sparse weight, K is split over programs and a second launch adds
up the parts.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from autotune.arithmetic import cdiv
from autotune.data import Config, Problem
from autotune.kernel import Kernel, Signature, Tolerance
from autotune.kernels._bsr_pattern import pattern_of
from autotune.kernels._density import density_step
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._sddmm import sample, sum_parts
from autotune.kernels._sddmm_chunks import chunks_in_order
from autotune.kernels._sddmm_operator import OPERATOR, check
from autotune.kernels._sddmm_problem import (
    FIELDS,
    PROVIDERS,
    inputs,
    reference,
    rule,
    stored_blocks,
    work,
)
from autotune.kernels._tensors import aligned, dtype_name, matrix_layout

#: What a program of the second launch adds up.
_ELEMENTS = 1024


def problem(
    a: torch.Tensor,
    b: torch.Tensor,
    crow: torch.Tensor,
    columns: torch.Tensor,
    block_rows: int,
    block_columns: int,
) -> Problem:
    """:raises ValueError: if the arguments don't fit together, or the kernel does not take them."""
    check(a, b, crow, columns, block_rows, block_columns)
    (M, K), N = a.shape, b.shape[1]
    return KERNEL.make(
        M=M,
        N=N,
        K=K,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        density=density_step(columns.numel(), (M // block_rows) * (N // block_columns)),
        dtype=dtype_name(a=a, b=b),
        layout=matrix_layout(a) + matrix_layout(b),
        aligned=aligned(a, b),
    )


def key(
    a: torch.Tensor,
    b: torch.Tensor,
    crow: torch.Tensor,
    columns: torch.Tensor,
    block_rows: int,
    block_columns: int,
) -> Hashable:
    return (
        a.shape,
        b.shape,
        columns.shape,
        block_rows,
        block_columns,
        a.stride(),
        b.stride(),
        a.dtype,
        a.dtype is b.dtype,
        a.get_device(),
        (a.data_ptr() | b.data_ptr()) & 15,
    )


def run(
    config: Config,
    a: torch.Tensor,
    b: torch.Tensor,
    crow: torch.Tensor,
    columns: torch.Tensor,
    block_rows: int,
    block_columns: int,
) -> torch.Tensor:
    """(blocks, block_rows, block_columns), contiguous, in the dtype of ``a``; see :func:`sddmm`."""
    check(a, b, crow, columns, block_rows, block_columns)
    pattern = pattern_of(crow, columns, b.shape[1] // block_columns)
    if must_widen(sample, a):
        return run(config, a.float(), b.float(), crow, columns, block_rows, block_columns).to(a.dtype)
    out = torch.empty(pattern.blocks, block_rows, block_columns, dtype=a.dtype, device=a.device)
    if out.numel() == 0:
        return out
    splits = config.integer("SPLIT_K")
    parts = out
    if splits > 1:
        shape = pattern.blocks, splits, block_rows, block_columns
        parts = torch.empty(shape, dtype=torch.float32, device=a.device)
    chunks = pattern.fact(chunks_in_order, _width(block_columns, config), config.integer("GROUP_ROWS"))
    launch(
        sample,
        _programs(chunks.shape[0], block_rows, block_columns, config),
        *(a, b, parts, chunks, pattern.row_of, pattern.column_of, a.shape[1], *a.stride(), *b.stride()),
        config=config,
        **_shape(block_rows, block_columns, a.shape[1], config),
    )
    if splits > 1:
        whole = block_rows * block_columns
        launch(sum_parts, pattern.blocks * cdiv(whole, _ELEMENTS), parts, out, **_sum(whole, splits))
    return out


def _width(block_columns: int, config: Config) -> int:
    """Stored blocks that a program takes side by side."""
    return max(1, config.integer("BLOCK_N") // block_columns)


def _programs(chunks: int, block_rows: int, block_columns: int, config: Config) -> int:
    tiles = block_rows // config.integer("BLOCK_M") * max(1, block_columns // config.integer("BLOCK_N"))
    return chunks * tiles * config.integer("SPLIT_K")


def _shape(block_rows: int, block_columns: int, K: int, config: Config) -> dict[str, Any]:
    even = K % config.integer("BLOCK_K") == 0
    return {"BLOCK_ROWS": block_rows, "BLOCK_COLUMNS": block_columns, "EVEN_K": even}


def _sum(whole: int, splits: int) -> dict[str, Any]:
    options = Config(num_warps=4, num_stages=1, SPLIT_K=splits)
    return {"config": options, "BLOCK": whole, "ELEMENTS": min(whole, _ELEMENTS)}


def compile_signature(problem: Problem, config: Config) -> tuple[Signature, ...]:
    """Of a pattern whose blocks are spread evenly over its rows."""
    M, N, K = (problem.integer(name) for name in "MNK")
    block_rows, block_columns = problem.integer("BLOCK_ROWS"), problem.integer("BLOCK_COLUMNS")
    integers = {"K": K}
    sides = (("stride_am", "stride_ak", M, K), ("stride_bk", "stride_bn", K, N))
    for order, (down, along, rows, columns) in zip(str(problem.get("layout", "nn")), sides, strict=True):
        integers[down], integers[along] = {"n": (columns, 1), "t": (1, rows), "s": (2 * columns, 2)}[order]
    dtype, splits, blocks = TRITON_NAMES[str(problem["dtype"])], config.integer("SPLIT_K"), stored_blocks(problem)
    rows = max(1, M // block_rows)
    chunks = cdiv(blocks, _width(block_columns, config))
    if _width(block_columns, config) > 1:
        chunks = rows * cdiv(cdiv(blocks, rows), _width(block_columns, config))
    sampled = signature(
        sample,
        _programs(chunks, block_rows, block_columns, config),
        pointers={
            **dict.fromkeys(("a", "b"), dtype),
            "out": "fp32" if splits > 1 else dtype,
            **dict.fromkeys(("chunks", "row_of", "column_of"), "i32"),
        },
        misaligned=() if problem.get("aligned", True) else ("a", "b"),
        integers=integers,
        constexprs=_shape(block_rows, block_columns, K, config),
        config=config,
    )
    if splits == 1:
        return (sampled,)
    whole = block_rows * block_columns
    options = _sum(whole, splits)
    total = signature(
        sum_parts,
        blocks * cdiv(whole, _ELEMENTS),
        pointers={"parts": "fp32", "out": dtype},
        integers={},
        config=options.pop("config"),
        constexprs=options,
    )
    return sampled, total


KERNEL = Kernel(
    fields=FIELDS,
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    work=work,
    problems=(
        "M=128,N=128,K=96,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=50,dtype=float16",
        "M=256,N=128,K=64,BLOCK_ROWS=128,BLOCK_COLUMNS=64,density=75,dtype=bfloat16,layout=tn",
        "M=48,N=160,K=200,BLOCK_ROWS=16,BLOCK_COLUMNS=32,density=35,dtype=float32,layout=nt",
        "M=64,N=128,K=70,BLOCK_ROWS=16,BLOCK_COLUMNS=16,density=20,dtype=float16,layout=ss,aligned=false",
    ),
    # As gemm, some of whose results these are.
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=4),
    },
    signature=compile_signature,
    providers=PROVIDERS,
    flips="density",
    rule=rule,
    operator=OPERATOR,
)
