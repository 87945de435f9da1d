"""For a few rows (M <= 16): products on the plain cores, which wait for memory here, without rows of padding."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._epilogue import finish, places
from autotune.kernels._tile import columns_of


@triton.jit
def skinny(
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
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    ROWS: tl.constexpr,  # the power of two that M fits in
    LANES: tl.constexpr,  # elements of b in 16 bytes, summed up by one thread
    STAGES: tl.constexpr,  # loads in flight; loops without tl.dot have none unless asked
    EVEN_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
):
    gated: tl.constexpr = ACTIVATION == "swiglu" and SPLIT_K == 1
    tiles_n = tl.cdiv(N, BLOCK_N)
    part = tl.program_id(0) // tiles_n
    tile_n = tl.program_id(0) % tiles_n
    rows = tl.arange(0, ROWS) % M
    columns = columns_of(tile_n, N, BLOCK_N, gated)
    steps = tl.cdiv(K, BLOCK_K)
    share = tl.cdiv(steps, SPLIT_K)
    first = part // B * share
    last = min(first + share, steps)
    batch = part % B

    zero = tl.full((), 0, dtype=tl.int64)
    start, wide_batch = (zero + first) * BLOCK_K, zero + batch
    # Of three dimensions, (ROWS, BLOCK_N, BLOCK_K), from the load on: with two the compiler moves b through shared
    # memory to get at the third.
    inner = tl.arange(0, BLOCK_K).to(tl.int64)[None, None, :]
    a_tile = a + (wide_batch * stride_ab + start * stride_ak)
    a_tile += rows.to(tl.int64)[:, None, None] * stride_am + inner * stride_ak
    b_tile = b + (wide_batch * stride_bb + start * stride_bk)
    b_tile += columns.to(tl.int64)[None, :, None] * stride_bn + inner * stride_bk
    step_a, step_b = (zero + BLOCK_K) * stride_ak, (zero + BLOCK_K) * stride_bk

    sum_type: tl.constexpr = tl.int32 if a.dtype.element_ty.is_int() else tl.float32
    sums = tl.full((ROWS, BLOCK_N, BLOCK_K // LANES), 0, dtype=sum_type)
    for step in tl.range(first, last, num_stages=STAGES):
        if EVEN_K:
            a_block = tl.load(a_tile)
            b_block = tl.load(b_tile)
        else:
            inside = inner < K - step * BLOCK_K
            a_block = tl.load(a_tile, mask=inside, other=0.0)
            b_block = tl.load(b_tile, mask=inside, other=0.0)
        terms = a_block.to(sum_type) * b_block.to(sum_type)
        sums += tl.sum(tl.reshape(terms, (ROWS, BLOCK_N, BLOCK_K // LANES, LANES)), axis=3)
        a_tile += step_a
        b_tile += step_b
    accumulator = tl.sum(sums, axis=2)

    if SPLIT_K > 1:
        part_row = (zero + part) * M
        offsets, inside = places(part_row, tl.arange(0, ROWS), tile_n * BLOCK_N + tl.arange(0, BLOCK_N), M, N)
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
            0,
            tile_n,
            rows,
            columns,
            M,
            N,
            ROWS,
            BLOCK_N,
            ACTIVATION,
            SCALE,
        )
