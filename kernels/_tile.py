"""What matrix products share on the device: the order of tiles, their columns, and the loop over K."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """(product of the batch, tile row, tile column) of tile number ``tile``.

    Tiles go in bands of GROUP_M tile rows, so that programs running together share operands in the L2 cache.
    """
    batch = tile // (tiles_m * tiles_n)
    tile = tile % (tiles_m * tiles_n)
    first_m = tile // (GROUP_M * tiles_n) * GROUP_M
    rows_in_band = min(tiles_m - first_m, GROUP_M)
    tile_m = first_m + tile % (GROUP_M * tiles_n) % rows_in_band
    tile_n = tile % (GROUP_M * tiles_n) // rows_in_band
    return batch, tile_m, tile_n


@triton.jit
def columns_of(tile_n, N, BLOCK_N: tl.constexpr, GATED: tl.constexpr):
    """(BLOCK_N,): the columns of b that make tile column ``tile_n``, wrapped round where they are past the end.

    Gated: b's columns are [gate | up], and a tile is BLOCK_N / 2 columns of gate, then the same of up.
    """
    if GATED:
        lane = tl.arange(0, BLOCK_N)
        column = (tile_n * (BLOCK_N // 2) + lane % (BLOCK_N // 2)) % (N // 2)
        return column + lane // (BLOCK_N // 2) * (N // 2)
    else:
        return (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)) % N


@triton.jit
def product(
    a,  # (batch, M, K)
    b,  # (batch, K, N)
    batch,
    rows,  # (BLOCK_M,) int32, of a
    columns,  # (BLOCK_N,) int32, of b
    first,  # steps of BLOCK_K to take: [first, last)
    last,
    K,
    stride_ab,
    stride_am,
    stride_ak,
    stride_bb,
    stride_bk,
    stride_bn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,  # of float32: ieee, or tf32
    IMPRECISE: tl.constexpr,  # float8 products the tensor cores may add up by themselves; None: as the device does
):
    """(BLOCK_M, BLOCK_N): a[batch, rows] @ b[batch, :, columns] over a range of K, in float32 or int32."""
    # 64-bit before any product: a matrix of 2**31 elements is an ordinary embedding table.
    zero = tl.full((), 0, dtype=tl.int64)
    batch, start = zero + batch, (zero + first) * BLOCK_K
    inner = tl.arange(0, BLOCK_K).to(tl.int64)
    a_tile = a + (batch * stride_ab + start * stride_ak)
    a_tile += rows.to(tl.int64)[:, None] * stride_am + inner[None, :] * stride_ak
    b_tile = b + (batch * stride_bb + start * stride_bk)
    b_tile += inner[:, None] * stride_bk + columns.to(tl.int64)[None, :] * stride_bn
    step_a, step_b = (zero + BLOCK_K) * stride_ak, (zero + BLOCK_K) * stride_bk

    accumulator = tl.full((BLOCK_M, BLOCK_N), 0, dtype=tl.int32 if a.dtype.element_ty.is_int() else tl.float32)
    for step in range(first, last):
        if EVEN_K:
            a_block = tl.load(a_tile)
            b_block = tl.load(b_tile)
        else:
            inside = inner < K - step * BLOCK_K
            a_block = tl.load(a_tile, mask=inside[None, :], other=0.0)
            b_block = tl.load(b_tile, mask=inside[:, None], other=0.0)
        accumulator = tl.dot(
            a_block, b_block, accumulator, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE
        )
        a_tile += step_a
        b_tile += step_b
    return accumulator
