"""Structures of ``bsr_matmul`` that give a tile of a whole block row to one program: once, or in a loop."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._bsr_walk import finish, walk
from autotune.kernels._tile import place


@triton.jit
def _tile(
    tile,
    x,  # (B, M, inner)
    values,  # (blocks, BLOCK_ROWS, BLOCK_COLUMNS), contiguous
    starts,  # (ROWS + 1,) int32: where each block row of the walk starts
    column_of,
    stored_of,
    order,  # (ROWS,) int32: block rows, longest first; None: as they come
    bias,
    out,  # (B, M, outputs)
    B,
    M,
    ROWS,  # block rows of the walk
    stride_xb,
    stride_xm,
    stride_xk,
    stride_ob,
    stride_om,
    stride_on,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    outputs: tl.constexpr = BLOCK_COLUMNS if TRANSPOSED else BLOCK_ROWS
    parts: tl.constexpr = outputs // BLOCK_N
    tiles_m = tl.cdiv(M, BLOCK_M)
    if order is None:
        batch, tile_m, tile_n = place(tile, tiles_m, ROWS * parts, GROUP_M)
        row = tile_n // parts
    else:
        # All tiles of the longest row first.
        tile_m = tile % tiles_m
        batch = tile // tiles_m % B
        tile_n = tile // tiles_m // B
        row = tl.load(order + tile_n // parts)
    first = tl.load(starts + row)
    last = tl.load(starts + row + 1)

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    lanes = tile_n % parts * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows past the end wrap round; what they compute is never stored.
    accumulator = walk(
        x,
        values,
        column_of,
        stored_of,
        batch,
        rows % M,
        lanes,
        first,
        last,
        stride_xb,
        stride_xm,
        stride_xk,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
        TRANSPOSED,
    )
    columns = row * outputs + lanes
    finish(accumulator, out, bias, batch, rows, columns, M, stride_ob, stride_om, stride_on, ACTIVATION)


@triton.jit
def by_row(
    x,
    values,
    starts,
    column_of,
    stored_of,
    order,
    bias,
    out,
    B,
    M,
    ROWS,
    stride_xb,
    stride_xm,
    stride_xk,
    stride_ob,
    stride_om,
    stride_on,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """One program a tile."""
    _tile(
        tl.program_id(0),
        x,
        values,
        starts,
        column_of,
        stored_of,
        order,
        bias,
        out,
        B,
        M,
        ROWS,
        stride_xb,
        stride_xm,
        stride_xk,
        stride_ob,
        stride_om,
        stride_on,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        GROUP_M,
        BLOCK_ROWS,
        BLOCK_COLUMNS,
        TRANSPOSED,
        ACTIVATION,
    )


@triton.jit
def persistent(
    x,
    values,
    starts,
    column_of,
    stored_of,
    order,
    bias,
    out,
    B,
    M,
    ROWS,
    stride_xb,
    stride_xm,
    stride_xk,
    stride_ob,
    stride_om,
    stride_on,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """As many programs as run side by side take turns, so each gets long rows and short ones."""
    outputs: tl.constexpr = BLOCK_COLUMNS if TRANSPOSED else BLOCK_ROWS
    tiles = B * tl.cdiv(M, BLOCK_M) * ROWS * (outputs // BLOCK_N)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        _tile(
            tile,
            x,
            values,
            starts,
            column_of,
            stored_of,
            order,
            bias,
            out,
            B,
            M,
            ROWS,
            stride_xb,
            stride_xm,
            stride_xk,
            stride_ob,
            stride_om,
            stride_on,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            GROUP_M,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            TRANSPOSED,
            ACTIVATION,
        )
