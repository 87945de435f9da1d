"""Device code of ``lora`` by tiles of tokens, on tensor cores: a tile visits each adapter that its tokens have.

Where tokens of one adapter lie together, in the batch (a prompt) or in ``order`` (sorted), nearly every tile has
one adapter; where they don't, a tile still reads each of its adapters once. No list of tiles is needed, and so no
number of them on the host.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tokens(ids, order, tile, T, A, BLOCK_M: tl.constexpr):
    """(BLOCK_M,) int64: the tokens of a tile, and int32: their adapters; A where there is no token or adapter."""
    place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token = place.to(tl.int64)
    if order is not None:
        token = tl.load(order + place, mask=place < T, other=0)
    adapter = tl.load(ids + token, mask=place < T, other=-1)
    return token, tl.where((adapter >= 0) & (adapter < A), adapter, A).to(tl.int32)


@triton.jit(do_not_specialize=["T"])
def shrink_tile(
    x,  # (T, K), the last dimension contiguous
    a,  # (A, R, K)
    ids,  # (T,)
    order,  # (T,) int64: tokens by adapter; None: as they lie
    h,  # (SPLIT_K, T, R) float32: not written where a token has no adapter
    T,
    K,
    A,
    stride_xt,
    stride_aa,
    stride_ar: tl.constexpr,  # of weights, which do not change: so 16-byte loads of any rank are seen
    stride_ak: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One program: BLOCK_R ranks of BLOCK_M tokens over one part of K."""
    rank_tiles: tl.constexpr = (R + BLOCK_R - 1) // BLOCK_R
    tiles = tl.cdiv(T, BLOCK_M)
    ranks = tl.program_id(0) % rank_tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    part = tl.program_id(0) // rank_tiles // tiles
    token, adapter = _tokens(ids, order, tl.program_id(0) // rank_tiles % tiles, T, A, BLOCK_M)

    steps = tl.cdiv(K, BLOCK_K)
    share = tl.cdiv(steps, SPLIT_K)
    first = part * share
    last = min(first + share, steps)
    inner = tl.arange(0, BLOCK_K)
    x_tile = x + token[:, None] * stride_xt + inner[None, :]
    # Ranks past the last wrap round, so that infinity meets no zeros, and are not stored.
    a_tile = a + inner.to(tl.int64)[:, None] * stride_ak + (ranks % R).to(tl.int64)[None, :] * stride_ar
    h_tile = h + (part.to(tl.int64) * T + token)[:, None] * R + ranks[None, :]

    visited = tl.min(adapter, axis=0)
    while visited < A:
        mine = (adapter == visited)[:, None]
        weights = a_tile + visited.to(tl.int64) * stride_aa
        accumulator = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
        for step in range(first, last):
            start = (tl.full((), 0, dtype=tl.int64) + step) * BLOCK_K
            if EVEN_K:
                x_block = tl.load(x_tile + start, mask=mine, other=0.0)
                a_block = tl.load(weights + start * stride_ak)
            else:
                inside = inner < K - start
                x_block = tl.load(x_tile + start, mask=mine & inside[None, :], other=0.0)
                a_block = tl.load(weights + start * stride_ak, mask=inside[:, None], other=0.0)
            accumulator = tl.dot(x_block, a_block, accumulator, input_precision="ieee")
        tl.store(h_tile, accumulator, mask=mine & (ranks < R)[None, :])
        visited = tl.min(tl.where(adapter > visited, adapter, A), axis=0)


@triton.jit(do_not_specialize=["T"])
def expand_tile(
    h,  # (SPLIT_K, T, R) float32
    b,  # (A, N, R)
    ids,
    order,
    base,  # (T, N), the last dimension contiguous, or None
    out,  # (T, N), the last dimension contiguous
    scale,
    T,
    N,
    A,
    stride_ba,
    stride_base,
    stride_out,
    stride_bn: tl.constexpr,
    stride_br: tl.constexpr,
    R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT_K: tl.constexpr,
    STAGES: tl.constexpr,
    IN_PLACE: tl.constexpr,  # out is base: tokens without an adapter are there already
):
    """One program: BLOCK_N columns of BLOCK_M tokens. The parts of h are added up, and rounded as weights are."""
    # Each part of a pipelined loop would have buffers of its own: 16 of them 192 KiB.
    stages: tl.constexpr = STAGES if SPLIT_K == 1 else 1
    tiles_n = tl.cdiv(N, BLOCK_N)
    columns = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = tl.program_id(0) // tiles_n
    token, adapter = _tokens(ids, order, tile, T, A, BLOCK_M)
    within = (columns < N)[None, :]
    out_tile = out + token[:, None] * stride_out + columns[None, :]
    if base is not None:
        base_tile = base + token[:, None] * stride_base + columns[None, :]

    if not IN_PLACE:
        place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        passed = ((adapter == A) & (place < T))[:, None] & within
        # To the last bit; zero where there is no base.
        if base is not None:
            tl.store(out_tile, tl.load(base_tile, mask=passed, other=0.0), mask=passed)
        else:
            tl.store(out_tile, tl.zeros((BLOCK_M, BLOCK_N), dtype=out.dtype.element_ty), mask=passed)

    b_tile = b + (columns % N).to(tl.int64)[None, :] * stride_bn
    visited = tl.min(adapter, axis=0)
    while visited < A:
        mine = (adapter == visited)[:, None]
        weights = b_tile + visited.to(tl.int64) * stride_ba
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in tl.range(0, R, BLOCK_R, num_stages=stages):
            ranks = start + tl.arange(0, BLOCK_R)
            part = h + token[:, None] * R + ranks[None, :]
            shrunk = tl.load(part, mask=mine & (ranks < R)[None, :], other=0.0)
            for _ in tl.static_range(1, SPLIT_K):
                part += (tl.full((), 0, dtype=tl.int64) + T) * R
                shrunk += tl.load(part, mask=mine & (ranks < R)[None, :], other=0.0)
            block = tl.load(weights + ranks.to(tl.int64)[:, None] * stride_br, mask=(ranks < R)[:, None], other=0.0)
            accumulator = tl.dot(shrunk.to(block.dtype), block, accumulator, input_precision="ieee")
        result = accumulator * scale
        if base is not None:
            result += tl.load(base_tile, mask=mine & within, other=0.0).to(tl.float32)
        tl.store(out_tile, result.to(out.dtype.element_ty), mask=mine & within)
        visited = tl.min(tl.where(adapter > visited, adapter, A), axis=0)
