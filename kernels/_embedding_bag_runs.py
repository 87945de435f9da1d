"""Device code of ``embedding_bag_backward``: gradients of bags summed by row, in two deterministic steps.

The entries are sorted by row and cut into windows of CHUNK. A piece is what a window has of one row: hot rows
have many, which the second step adds up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._embedding_bag import gather_sums


@triton.jit(do_not_specialize=["entries", "count", "rows"])
def sum_pieces(
    d_out,  # (bags, D), contiguous
    first,  # (count + 1,): where each piece begins in what is sorted; entries for pieces that are none
    sorted_rows,  # (entries,): the row of each entry, ascending; rows where it has none
    places,  # (entries,): the row of d_out of each
    scales,  # (entries,): what it counts for; SCALED alone
    out,  # (rows, D)
    partial,  # (2 * windows, D) float32: what a window has of a row that goes on from, or into, another window
    entries,
    count,
    rows,
    D: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECES: tl.constexpr,
    UNROLL: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program: BLOCK_D columns of PIECES pieces."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    column = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    tile = tl.program_id(0) // blocks * PIECES
    if tl.load(first + tile) >= entries:
        return
    piece = tile + tl.arange(0, PIECES)
    start = tl.load(first + piece, mask=piece < count, other=entries)
    end = tl.load(first + piece + 1, mask=piece < count, other=entries)
    row = tl.load(sorted_rows + start, mask=start < entries, other=rows)
    real = row < rows
    # A row goes on over the border of a window, and only there.
    before = tl.load(sorted_rows + start - 1, mask=real & (start > 0), other=-1) == row
    after = tl.load(sorted_rows + end, mask=real & (end < entries), other=-1) == row

    sums, _ = gather_sums(
        d_out,
        places,
        scales,
        start.to(tl.int64),
        tl.where(real, end - start, 0),
        tl.zeros((PIECES,), dtype=tl.int64),
        column,
        0,
        D,
        D,
        False,
        SCALED,
        PIECES,
        UNROLL,
        BLOCK_D,
        "",
    )
    stored = real[:, None] & (column < D)[None, :]
    shared = (before | after)[:, None]
    row_tile = out + row.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(row_tile, sums.to(out.dtype.element_ty), mask=stored & ~shared)
    # Two slots a window: for the row that comes from before, and for one that begins there and goes on.
    slot = (start // CHUNK * 2).to(tl.int64) + (~before).to(tl.int64)
    tl.store(partial + slot[:, None] * D + column[None, :], sums, mask=stored & shared)


@triton.jit(do_not_specialize=["rows"])
def add_windows(
    partial,  # (2 * windows, D) float32
    sorted_rows,  # (entries,)
    run_ends,  # (windows - 1,): past the last entry of the row that each window ends with
    out,  # (rows, D)
    rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
):
    """One program: BLOCK_D columns of the row that begins in one window and goes on into others, if one does."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    column = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    window = tl.program_id(0) // blocks
    row = tl.load(sorted_rows + window * CHUNK + CHUNK - 1)
    begins_here = tl.load(sorted_rows + window * CHUNK - 1, mask=window > 0, other=-1) != row
    more = (tl.load(run_ends + window) - 1) // CHUNK - window
    if begins_here & (more > 0) & (row < rows):
        stored = column < D
        begun = tl.load(partial + (2 * window + 1).to(tl.int64) * D + column, mask=stored, other=0.0)
        sums = tl.zeros((STEP, BLOCK_D), dtype=tl.float32)
        for step in range(0, more, STEP):
            later = step + tl.arange(0, STEP)
            slot = ((window + 1 + later) * 2).to(tl.int64)
            mask = (later < more)[:, None] & stored[None, :]
            sums += tl.load(partial + slot[:, None] * D + column[None, :], mask=mask, other=0.0)
        total = begun + tl.sum(sums, 0)
        tl.store(out + row.to(tl.int64) * D + column, total.to(out.dtype.element_ty), mask=stored)
