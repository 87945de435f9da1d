"""The structure of ``bsr_matmul`` for rows of unequal length: chunks of rows, and the sums over a row's chunks."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._bsr_walk import finish, walk


@triton.jit
def by_chunk(
    x,  # (B, M, inner)
    values,  # (blocks, BLOCK_ROWS, BLOCK_COLUMNS), contiguous
    chunks,  # (chunks, 4) int32: block row, first block, the one after the last, partial sum or -1
    column_of,
    stored_of,
    bias,
    out,  # (B, M, outputs)
    partial,  # (parts, B, M, outputs of a block) float32
    B,
    M,
    stride_xb,
    stride_xm,
    stride_xk,
    stride_ob,
    stride_om,
    stride_on,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """One program a tile of a chunk, all of the longest first. A row's only chunk is its result."""
    outputs: tl.constexpr = BLOCK_COLUMNS if TRANSPOSED else BLOCK_ROWS
    parts: tl.constexpr = outputs // BLOCK_N
    tiles_m = tl.cdiv(M, BLOCK_M)
    tile_m = tl.program_id(0) % tiles_m
    batch = tl.program_id(0) // tiles_m % B
    tile_n = tl.program_id(0) // tiles_m // B
    chunk = chunks + tile_n // parts * 4
    row = tl.load(chunk)
    part = tl.load(chunk + 3)

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
        tl.load(chunk + 1),
        tl.load(chunk + 2),
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
    if part < 0:
        columns = row * outputs + lanes
        finish(accumulator, out, bias, batch, rows, columns, M, stride_ob, stride_om, stride_on, ACTIVATION)
    else:
        first_row = ((tl.full((), 0, dtype=tl.int64) + part) * B + batch) * M
        place = partial + (first_row + rows)[:, None] * outputs + lanes[None, :]
        tl.store(place, accumulator, mask=(rows < M)[:, None])


@triton.jit
def sum_chunks(
    partial,  # (parts, B, M, OUTPUTS) float32
    sums,  # (rows of several chunks, 3) int32: block row, first part, the one after the last
    bias,
    out,  # (B, M, outputs)
    B,
    M,
    stride_ob,
    stride_om,
    stride_on,
    OUTPUTS: tl.constexpr,  # of a block
    SUM_M: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """One program: SUM_M rows of one block row, whose parts it adds up in order."""
    tiles_m = tl.cdiv(M, SUM_M)
    tile_m = tl.program_id(0) % tiles_m
    batch = tl.program_id(0) // tiles_m % B
    entry = sums + tl.program_id(0) // tiles_m // B * 3
    row = tl.load(entry)

    rows = tile_m * SUM_M + tl.arange(0, SUM_M)
    lanes = tl.arange(0, OUTPUTS)
    total = tl.zeros((SUM_M, OUTPUTS), dtype=tl.float32)
    for part in range(tl.load(entry + 1), tl.load(entry + 2)):
        first_row = ((tl.full((), 0, dtype=tl.int64) + part) * B + batch) * M
        place = partial + (first_row + rows % M)[:, None] * OUTPUTS + lanes[None, :]
        total += tl.load(place)
    columns = row * OUTPUTS + lanes
    finish(total, out, bias, batch, rows, columns, M, stride_ob, stride_om, stride_on, ACTIVATION)
