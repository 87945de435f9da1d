"""The gradient of grouped weights on the device: products whose inner dimension is ragged."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._tile import place


@triton.jit(do_not_specialize=["T"])
def weight_gradient(
    x,  # (T, K)
    d_out,  # (T, N)
    d_w,  # (groups, K, N), contiguous
    offs,  # (groups,) int32 or int64: where each group ends
    T,
    K,
    N,
    stride_xt,
    stride_xk,
    stride_dt,
    stride_dn,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    GROUP_K: tl.constexpr,
):
    """One program a tile of one group's gradient, over all of the group's tokens."""
    tiles_k = tl.cdiv(K, BLOCK_K)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group, tile_k, tile_n = place(tl.program_id(0), tiles_k, tiles_n, GROUP_K)
    # A bad offset must not become a token that is not there.
    begin = tl.maximum(tl.load(offs + group - 1, mask=group > 0, other=0).to(tl.int32), 0)
    end = tl.minimum(tl.load(offs + group).to(tl.int32), T)

    # Past the end they wrap round, so that loads are masked along the tokens alone.
    rows = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    zero = tl.full((), 0, dtype=tl.int64)
    tokens = tl.arange(0, BLOCK_T)
    first = zero + begin + tokens
    x_tile = x + first[None, :] * stride_xt + (rows % K).to(tl.int64)[:, None] * stride_xk
    d_tile = d_out + first[:, None] * stride_dt + (columns % N).to(tl.int64)[None, :] * stride_dn
    step_x, step_d = (zero + BLOCK_T) * stride_xt, (zero + BLOCK_T) * stride_dt
    accumulator = tl.zeros((BLOCK_K, BLOCK_N), dtype=tl.float32)
    for token in range(begin, end, BLOCK_T):
        # The next group's tokens must not count: 0 times NaN is NaN, so neither operand may hold them.
        inside = tokens < end - token
        x_block = tl.load(x_tile, mask=inside[None, :], other=0.0)
        d_block = tl.load(d_tile, mask=inside[:, None], other=0.0)
        accumulator = tl.dot(x_block, d_block, accumulator, input_precision="ieee")
        x_tile += step_x
        d_tile += step_d

    offsets = ((zero + group) * K + rows[:, None]) * N + columns[None, :]
    tl.store(d_w + offsets, accumulator.to(d_w.dtype.element_ty), mask=(rows < K)[:, None] & (columns < N)[None, :])
