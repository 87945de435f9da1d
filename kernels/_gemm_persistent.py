"""As many programs as the device runs side by side, each taking tile after tile, by pointer loads."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._epilogue import finish
from autotune.kernels._tile import columns_of, place, product


@triton.jit
def persistent(
    a,  # (batch, M, K)
    b,  # (batch, K, N)
    c,  # (batch, M, result's columns), contiguous
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
    FLATTEN: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    IMPRECISE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    steps = tl.cdiv(K, BLOCK_K)
    for tile in tl.range(tl.program_id(0), B * tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN):
        batch, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        # Wrapped round as in the tiled kernel.
        rows = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)) % M
        columns = columns_of(tile_n, N, BLOCK_N, ACTIVATION == "swiglu")
        accumulator = product(
            a,
            b,
            batch,
            rows,
            columns,
            0,
            steps,
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
