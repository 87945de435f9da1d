"""One program a tile, pointer loads: takes any strides, and may split K."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._epilogue import finish, places
from autotune.kernels._tile import columns_of, place, product


@triton.jit
def tiled(
    a,  # (batch, M, K)
    b,  # (batch, K, N)
    c,  # (batch, M, result's columns), contiguous; with SPLIT_K > 1 (SPLIT_K, batch, M, N) float32 or int32
    bias,
    residual,
    scale_a,
    scale_b,
    B,
    M,
    N,
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
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    IMPRECISE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
):
    # Parts of the sum know no halves: the gate is applied where they are added up.
    gated: tl.constexpr = ACTIVATION == "swiglu" and SPLIT_K == 1
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    # The parts of K are products of a larger batch.
    part, tile_m, tile_n = place(tl.program_id(0), tiles_m, tiles_n, GROUP_M)
    rows = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)) % M
    columns = columns_of(tile_n, N, BLOCK_N, gated)
    # Rows past the end wrap round to valid ones instead of being masked, so that the loop's loads stay plain;
    # what they compute is never stored. (A 64-bit remainder would be a call on the device.)
    steps = tl.cdiv(K, BLOCK_K)
    if SPLIT_K > 1:
        share = tl.cdiv(steps, SPLIT_K)
        first = part // B * share
        last = min(first + share, steps)
        batch = part % B
    else:
        first = 0
        last = steps
        batch = part
    accumulator = product(
        a,
        b,
        batch,
        rows,
        columns,
        first,
        last,
        K,
        stride_ab,
        stride_am,
        stride_ak,
        stride_bb,
        stride_bk,
        stride_bn,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        EVEN_K,
        PRECISION,
        IMPRECISE,
    )
    if SPLIT_K > 1:
        part_row = (tl.full((), 0, dtype=tl.int64) + part) * M
        out_rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        offsets, inside = places(part_row, out_rows, tile_n * BLOCK_N + tl.arange(0, BLOCK_N), M, N)
        tl.store(c + offsets, accumulator, mask=inside)
    else:
        finish(
            accumulator,
            c,
            bias,
            residual,
            scale_a,
            scale_b,
            batch,
            tile_m,
            tile_n,
            rows,
            columns,
            M,
            N,
            BLOCK_M,
            BLOCK_N,
            ACTIVATION,
            SCALE,
        )
