"""Device code of ``sddmm``: one program a chunk of stored blocks, and the sum over parts of K."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._tile import product


@triton.jit
def sample(
    a,  # (M, K)
    b,  # (K, N)
    out,  # (blocks, BLOCK_ROWS, BLOCK_COLUMNS); with SPLIT_K > 1 (blocks, SPLIT_K, ...) float32
    chunks,  # (chunks, 2): first and last + 1 of the stored blocks of one block row that a program takes together
    row_of,  # (blocks,)
    column_of,  # (blocks,)
    K,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,  # divides BLOCK_ROWS
    BLOCK_N: tl.constexpr,  # columns of several blocks side by side, or a part of one's
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    down: tl.constexpr = BLOCK_ROWS // BLOCK_M
    across: tl.constexpr = BLOCK_COLUMNS // BLOCK_N if BLOCK_N < BLOCK_COLUMNS else 1
    tiles = tl.num_programs(0) // SPLIT_K
    part = tl.program_id(0) // tiles
    chunk = tl.program_id(0) % tiles // (down * across)
    tile_m = tl.program_id(0) % tiles // across % down
    tile_n = tl.program_id(0) % across

    first_block = tl.load(chunks + 2 * chunk)
    last_block = tl.load(chunks + 2 * chunk + 1)
    lane = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    block = first_block + lane // BLOCK_COLUMNS
    # A chunk at the end of its row may be short: the last block is computed again there, and not stored.
    column = tl.load(column_of + tl.minimum(block, last_block - 1)) * BLOCK_COLUMNS + lane % BLOCK_COLUMNS
    # What the compiler cannot see through the load: columns lie side by side, as far as a block or the tile goes.
    if BLOCK_N < BLOCK_COLUMNS:
        column = tl.max_contiguous(tl.multiple_of(column, BLOCK_N), BLOCK_N)
    else:
        column = tl.max_contiguous(tl.multiple_of(column, BLOCK_COLUMNS), BLOCK_COLUMNS)
    inner_row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.load(row_of + first_block) * BLOCK_ROWS + inner_row

    share = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    accumulator = product(
        a,
        b,
        0,
        row,
        column,
        part * share,
        min(part * share + share, tl.cdiv(K, BLOCK_K)),
        K,
        0,
        stride_am,
        stride_ak,
        0,
        stride_bk,
        stride_bn,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        "ieee",
        None,
    )
    place = (block.to(tl.int64) * SPLIT_K + part) * (BLOCK_ROWS * BLOCK_COLUMNS) + lane % BLOCK_COLUMNS
    out_tile = out + place[None, :] + inner_row[:, None] * BLOCK_COLUMNS
    tl.store(out_tile, accumulator.to(out.dtype.element_ty), mask=(block < last_block)[None, :])


@triton.jit
def sum_parts(
    parts,  # (blocks, SPLIT_K, BLOCK) float32
    out,  # (blocks, BLOCK)
    BLOCK: tl.constexpr,
    ELEMENTS: tl.constexpr,  # divides BLOCK
    SPLIT_K: tl.constexpr,
):
    """One program: ELEMENTS of one block, parts added up always in one order."""
    pieces: tl.constexpr = BLOCK // ELEMENTS
    block = (tl.program_id(0) // pieces).to(tl.int64)
    lane = tl.program_id(0) % pieces * ELEMENTS + tl.arange(0, ELEMENTS)
    part = parts + block * (SPLIT_K * BLOCK) + lane
    total = tl.load(part)
    for _ in tl.static_range(1, SPLIT_K):
        part += BLOCK
        total += tl.load(part)
    tl.store(out + block * BLOCK + lane, total.to(out.dtype.element_ty))
