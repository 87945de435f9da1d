"""Grouped products on the device: which rows a tile has, and the structures that load by pointers.

Groups are ragged and only the device knows their sizes. The rows past the last group are one more group, whose
result is zero and which reads neither ``x`` nor ``w``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._epilogue import finish, places
from autotune.kernels._tile import columns_of, place, product


@triton.jit
def _tiles_of(offs, first, T, G, BLOCK_M: tl.constexpr, GROUPS: tl.constexpr):
    """(GROUPS,) int32: rows of tiles of the groups from ``first`` on, and of the rest as group G; beyond it 0."""
    group = first + tl.arange(0, GROUPS)
    begin = tl.load(offs + group - 1, mask=(group > 0) & (group <= G), other=0).to(tl.int32)
    end = tl.load(offs + group, mask=group < G, other=T).to(tl.int32)
    # A bad offset must not become a row that is not there.
    tokens = tl.maximum(tl.minimum(end, T), 0) - tl.maximum(tl.minimum(begin, T), 0)
    return tl.where(group <= G, (tokens + BLOCK_M - 1) // BLOCK_M, 0)


@triton.jit
def tile_rows_of(offs, T, G, BLOCK_M: tl.constexpr, GROUPS: tl.constexpr):
    """How many rows of tiles there are."""
    count = 0
    for first in tl.range(0, G + 1, GROUPS, num_stages=1):
        count += tl.sum(_tiles_of(offs, first, T, G, BLOCK_M, GROUPS), 0)
    return count


@triton.jit
def find(offs, tile_row, T, G, BLOCK_M: tl.constexpr, GROUPS: tl.constexpr):
    """(group, first row, end of the group) of a row of tiles; group G is the rest, one beyond it has no rows.

    All offsets are looked at, GROUPS at a time, rather than searched: loads that wait for no other.
    """
    group, before, count = 0, 0, 0
    for first in tl.range(0, G + 1, GROUPS, num_stages=1):
        tiles = _tiles_of(offs, first, T, G, BLOCK_M, GROUPS)
        passed = count + tl.cumsum(tiles, 0) <= tile_row
        group += tl.sum(passed.to(tl.int32), 0)
        before += tl.sum(tl.where(passed, tiles, 0), 0)
        count += tl.sum(tiles, 0)
    begin = tl.load(offs + group - 1, mask=(group > 0) & (group <= G), other=0).to(tl.int32)
    end = tl.load(offs + group, mask=group < G, other=T).to(tl.int32)
    return group, tl.maximum(tl.minimum(begin, T), 0) + (tile_row - before) * BLOCK_M, tl.minimum(end, T)


@triton.jit
def fill_rest(c, row, T, tile_n, OUT_N, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr):
    """A tile of zeros."""
    zeros = tl.full((BLOCK_M, WIDTH), 0, dtype=c.dtype.element_ty)
    start = row.to(tl.int64)
    columns = tile_n * WIDTH + tl.arange(0, WIDTH)
    offsets, inside = places(start, tl.arange(0, BLOCK_M), columns, T - row, OUT_N)
    tl.store(c + offsets, zeros, mask=inside)


@triton.jit
def _tile(
    x,
    w,
    c,
    bias,
    offs,
    tile_row,
    tile_n,
    T,
    N,
    K,
    G,
    stride_xt,
    stride_xk,
    stride_wg,
    stride_wk,
    stride_wn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Compute and store one tile."""
    gated: tl.constexpr = ACTIVATION == "swiglu"
    group, row, end = find(offs, tile_row, T, G, BLOCK_M, GROUPS)
    if group < G:
        # Rows past the group's end are other groups' or wrap round: computed, never stored.
        rows = (row + tl.arange(0, BLOCK_M)) % T
        columns = columns_of(tile_n, N, BLOCK_N, gated)
        # Of x all groups are one matrix: no step from one to the next.
        accumulator = product(
            x,
            w,
            group,
            rows,
            columns,
            0,
            tl.cdiv(K, BLOCK_K),
            K,
            0,
            stride_xt,
            stride_xk,
            stride_wg,
            stride_wk,
            stride_wn,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            EVEN_K,
            "ieee",
            None,
        )
        # The rest of the group is a matrix of its own to what follows the product.
        c_rows = c + row.to(tl.int64) * (N // 2 if gated else N)
        bias_row = bias if bias is None else bias + group.to(tl.int64) * N
        finish(
            accumulator,
            c_rows,
            bias_row,
            None,
            None,
            None,
            0,
            0,
            tile_n,
            rows,
            columns,
            end - row,
            N,
            BLOCK_M,
            BLOCK_N,
            ACTIVATION,
            "none",
        )
    elif group == G:
        fill_rest(c, row, T, tile_n, N // 2 if gated else N, BLOCK_M, BLOCK_N // 2 if gated else BLOCK_N)


# As the number of tokens changes, so does that of tile rows: no reason to compile again.
@triton.jit(do_not_specialize=["ROWS", "T"])
def tiled(
    x,  # (T, K)
    w,  # (G, K, N)
    c,  # (T, result's columns), contiguous
    bias,  # (G, N), contiguous, or None
    offs,  # (G,) int32 or int64: where each group ends
    ROWS,  # rows of tiles: as many as the groups may have at most
    T,
    N,
    K,
    G,
    stride_xt,
    stride_xk,
    stride_wg,
    stride_wk,
    stride_wn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    GROUPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """One program a tile."""
    _, tile_row, tile_n = place(tl.program_id(0), ROWS, tl.cdiv(N, BLOCK_N), GROUP_M)
    _tile(
        x,
        w,
        c,
        bias,
        offs,
        tile_row,
        tile_n,
        T,
        N,
        K,
        G,
        stride_xt,
        stride_xk,
        stride_wg,
        stride_wk,
        stride_wn,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        GROUPS,
        EVEN_K,
        ACTIVATION,
    )


@triton.jit(do_not_specialize=["T"])
def persistent(
    x,
    w,
    c,
    bias,
    offs,
    T,
    N,
    K,
    G,
    stride_xt,
    stride_xk,
    stride_wg,
    stride_wk,
    stride_wn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    GROUPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """As many programs as the device runs side by side share the tiles that there really are."""
    tile_rows = tile_rows_of(offs, T, G, BLOCK_M, GROUPS)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tile_rows * tiles_n, tl.num_programs(0)):
        _, tile_row, tile_n = place(tile, tile_rows, tiles_n, GROUP_M)
        _tile(
            x,
            w,
            c,
            bias,
            offs,
            tile_row,
            tile_n,
            T,
            N,
            K,
            G,
            stride_xt,
            stride_xk,
            stride_wg,
            stride_wk,
            stride_wn,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            GROUPS,
            EVEN_K,
            ACTIVATION,
        )
