"""Device code of ``embedding_bag``: rows gathered and summed by bag, and the sum over splits of long bags."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gather_sums(
    source,  # (rows, D), stride_row apart, each row contiguous
    indices,  # of rows, relative to first_row
    weights,  # as indices; not read unless WEIGHTED
    start,  # (BAGS,) int64: where in indices each bag begins
    length,  # (BAGS,) int32: its entries; 0 and more
    first_row,  # (BAGS,) int64
    column,  # (BLOCK_D,)
    padding_idx,
    stride_row,
    D: tl.constexpr,
    PADDED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BAGS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CACHE: tl.constexpr,
):
    """(BAGS, BLOCK_D) float32: each bag's sum of rows; and (BAGS,) int32: the entries that are not padding."""
    lane = tl.arange(0, UNROLL)
    position = start[:, None] + lane[None, :]
    # Each lane sums its own entries: no exchange between threads until the end.
    sums = tl.zeros((BAGS, UNROLL, BLOCK_D), dtype=tl.float32)
    if PADDED:
        counts = tl.zeros((BAGS, UNROLL), dtype=tl.int32)
    index = tl.load(indices + position, mask=lane[None, :] < length[:, None], other=0)
    for step in range(0, tl.max(length, 0), UNROLL):
        kept = (step + lane)[None, :] < length[:, None]
        if PADDED:
            kept = kept & (index != padding_idx)
            counts += kept.to(tl.int32)
        row = first_row[:, None] + index.to(tl.int64)
        tile = source + (row * stride_row)[:, :, None] + column[None, None, :]
        mask = kept[:, :, None] & (column < D)[None, None, :]
        values = tl.load(tile, mask=mask, other=0.0, cache_modifier=CACHE).to(tl.float32)
        if WEIGHTED:
            weight = tl.load(weights + position + step, mask=kept, other=0.0).to(tl.float32)
            values = values * weight[:, :, None]
        # One step ahead, so that its latency is not added to that of the rows.
        ahead = (step + UNROLL + lane)[None, :] < length[:, None]
        index = tl.load(indices + position + step + UNROLL, mask=ahead, other=0)
        sums += values
    if PADDED:
        length = tl.sum(counts, 1)
    return tl.sum(sums, 1), length


@triton.jit(do_not_specialize=["entries", "length", "count", "padding_idx"])
def sum_bags(
    weight,  # (rows, D), stride_row apart
    indices,  # (entries,), relative to the bag's table
    offsets,  # (count,) or more: where each bag begins; RAGGED alone
    weights,  # (entries,); WEIGHTED alone
    tables,  # (TABLES + 1,): the first row of each table; TABLES > 1 alone
    out,  # (bags of a table, TABLES, D); with several splits (SPLIT, bags of a table, TABLES, D) float32
    kept_counts,  # (SPLIT, bags of a table, TABLES): entries that are not padding; a MEAN with several splits alone
    entries,
    length,  # of every bag, unless RAGGED
    count,  # bags; those of one table follow one another
    padding_idx,
    stride_row,
    D: tl.constexpr,
    TABLES: tl.constexpr,
    RAGGED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PADDED: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BAGS: tl.constexpr,
    UNROLL: tl.constexpr,
    SPLIT: tl.constexpr,
    CACHE: tl.constexpr,
):
    """One program: BLOCK_D columns of one split's share of BAGS bags."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    column = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    split = tl.program_id(0) // blocks % SPLIT
    bag = tl.program_id(0) // blocks // SPLIT * BAGS + tl.arange(0, BAGS)
    real = bag < count

    if RAGGED:
        start = tl.load(offsets + bag, mask=real, other=0).to(tl.int64)
        end = tl.load(offsets + bag + 1, mask=bag + 1 < count, other=entries).to(tl.int64)
        bag_length = tl.where(real, end - start, 0).to(tl.int32)
    else:
        start = bag.to(tl.int64) * length
        bag_length = tl.where(real, length, 0)
    # Shared out over the splits as evenly as entries can be; late ones may have none.
    each, more = bag_length // SPLIT, bag_length % SPLIT
    start += split * each + tl.minimum(split, more)
    share = each + (split < more).to(tl.int32)

    place, first_row = bag.to(tl.int64), tl.zeros((BAGS,), dtype=tl.int64)
    if TABLES > 1:
        table = bag // (count // TABLES)
        first_row = tl.load(tables + table, mask=real, other=0)
        place = (bag % (count // TABLES)).to(tl.int64) * TABLES + table
    sums, kept = gather_sums(
        weight,
        indices,
        weights,
        start,
        share,
        first_row,
        column,
        padding_idx,
        stride_row,
        D,
        PADDED,
        WEIGHTED,
        BAGS,
        UNROLL,
        BLOCK_D,
        CACHE,
    )

    if SPLIT > 1:
        place += split.to(tl.int64) * count
        if MEAN:
            # Every block of columns writes the same number.
            tl.store(kept_counts + place, kept, mask=real)
    elif MEAN:
        sums = sums / tl.maximum(kept, 1).to(tl.float32)[:, None]
    stored = real[:, None] & (column < D)[None, :]
    tl.store(out + place[:, None] * D + column[None, :], sums.to(out.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["count"])
def add_splits(
    partial,  # (SPLIT, count, D) float32
    kept_counts,  # (SPLIT, count) int32; MEAN alone
    out,  # (count, D)
    count,
    D: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One program: BLOCK_D columns of one bag."""
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    column = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    bag = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.arange(0, SPLIT).to(tl.int64) * count + bag
    stored = column < D
    sums = tl.sum(tl.load(partial + place[:, None] * D + column[None, :], mask=stored[None, :], other=0.0), 0)
    if MEAN:
        sums = sums / tl.maximum(tl.sum(tl.load(kept_counts + place), 0), 1).to(tl.float32)
    tl.store(out + bag * D + column, sums.to(out.dtype.element_ty), mask=stored)
