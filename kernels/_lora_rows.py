"""Device code of ``lora`` token by token: each program reads the weights of one token's adapter, on plain cores.

For a few tokens, each with an adapter of its own: what counts there is reading every weight once, and wide.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T"])
def shrink_row(
    x,  # (T, K), the last dimension contiguous
    a,  # (A, R, K)
    ids,  # (T,)
    h,  # (SPLIT_K, T, R) float32: not written where a token has no adapter
    T,
    K,
    A,
    stride_xt,
    stride_aa,
    stride_ar: tl.constexpr,  # of weights, which do not change: so 16-byte loads of any rank are seen
    stride_ak: tl.constexpr,
    R: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program: BLOCK_R ranks of one token over one part of K."""
    tiles: tl.constexpr = (R + BLOCK_R - 1) // BLOCK_R
    tile = tl.program_id(0) % tiles
    token = (tl.program_id(0) // tiles % T).to(tl.int64)
    part = (tl.program_id(0) // tiles // T).to(tl.int64)
    adapter = tl.load(ids + token)
    if (adapter >= 0) & (adapter < A):
        ranks = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        steps = tl.cdiv(K, BLOCK_K)
        share = tl.cdiv(steps, SPLIT_K)
        first = tl.program_id(0) // tiles // T * share
        last = min(first + share, steps)
        weights = a + adapter.to(tl.int64) * stride_aa
        sums = _shrunk(
            x + token * stride_xt,
            weights,
            ranks,
            first,
            last,
            K,
            stride_ar,
            stride_ak,
            R,
            BLOCK_R,
            BLOCK_K,
            EVEN_K,
            STAGES,
        )
        tl.store(h + (part * T + token) * R + ranks, sums, mask=ranks < R)


@triton.jit
def _shrunk(
    x_row,
    weights,  # (R, K): of one adapter
    ranks,
    first,  # steps of BLOCK_K to take: [first, last)
    last,
    K,
    stride_ar: tl.constexpr,
    stride_ak: tl.constexpr,
    R: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """(BLOCK_R,) float32: some ranks of one token."""
    inner = tl.arange(0, BLOCK_K)
    # Ranks past the last wrap round, so that infinity meets no zeros; whoever asks for them leaves them out.
    tile = weights + (ranks % R).to(tl.int64)[:, None] * stride_ar + inner.to(tl.int64)[None, :] * stride_ak
    sums = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.float32)
    for step in tl.range(first, last, num_stages=STAGES):
        start = (tl.full((), 0, dtype=tl.int64) + step) * BLOCK_K
        if EVEN_K:
            values = tl.load(x_row + start + inner)
            block = tl.load(tile + start * stride_ak)
        else:
            inside = inner < K - start
            values = tl.load(x_row + start + inner, mask=inside, other=0.0)
            block = tl.load(tile + start * stride_ak, mask=inside[None, :], other=0.0)
        sums += values.to(tl.float32)[None, :] * block.to(tl.float32)
    return tl.sum(sums, axis=1)


@triton.jit(do_not_specialize=["T"])
def expand_row(
    h,  # (SPLIT_K, T, R) float32
    b,  # (A, N, R)
    ids,
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
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT_K: tl.constexpr,
    STAGES: tl.constexpr,
    IN_PLACE: tl.constexpr,  # out is base: tokens without an adapter are there already
):
    """One program: BLOCK_N columns of one token."""
    tiles = tl.cdiv(N, BLOCK_N)
    columns = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    token = (tl.program_id(0) // tiles).to(tl.int64)
    adapter = tl.load(ids + token)
    if (adapter >= 0) & (adapter < A):
        # Columns past the last wrap round, and are not stored.
        weights = b + adapter.to(tl.int64) * stride_ba + (columns % N).to(tl.int64)[:, None] * stride_bn
        sums = tl.zeros((BLOCK_N, BLOCK_R), dtype=tl.float32)
        for start in tl.range(0, R, BLOCK_R, num_stages=STAGES):
            ranks = start + tl.arange(0, BLOCK_R)
            part = h + token * R + ranks
            shrunk = tl.load(part, mask=ranks < R, other=0.0)
            for _ in tl.static_range(1, SPLIT_K):
                part += (tl.full((), 0, dtype=tl.int64) + T) * R
                shrunk += tl.load(part, mask=ranks < R, other=0.0)
            block = tl.load(weights + ranks.to(tl.int64)[None, :] * stride_br, mask=(ranks < R)[None, :], other=0.0)
            sums += block.to(tl.float32) * shrunk[None, :]
        _add(base, out, scale, tl.sum(sums, axis=1), columns, token, N, stride_base, stride_out)
    elif not IN_PLACE:
        _pass(base, out, columns, token, N, stride_base, stride_out)


@triton.jit
def fused_row(
    x,
    a,
    b,
    ids,
    base,
    out,
    scale,
    K,
    N,
    A,
    stride_xt,
    stride_aa,
    stride_ba,
    stride_base,
    stride_out,
    stride_ar: tl.constexpr,
    stride_ak: tl.constexpr,
    stride_bn: tl.constexpr,
    stride_br: tl.constexpr,
    R: tl.constexpr,
    RANKS: tl.constexpr,  # the power of two that R fits in
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_N: tl.constexpr,
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
    IN_PLACE: tl.constexpr,
):
    """One program: a share of one token's columns, after all of its ranks. Small ranks are cheaper to shrink to
    again than to hand on to a second launch.
    """
    token = (tl.program_id(0) // SPLIT_N).to(tl.int64)
    tiles = tl.cdiv(N, BLOCK_N)
    share = tl.cdiv(tiles, SPLIT_N)
    first = tl.program_id(0) % SPLIT_N * share
    last = min(first + share, tiles)
    adapter = tl.load(ids + token)
    if (adapter >= 0) & (adapter < A):
        ranks = tl.arange(0, RANKS)
        steps = tl.cdiv(K, BLOCK_K)
        weights = a + adapter.to(tl.int64) * stride_aa
        shrunk = _shrunk(
            x + token * stride_xt,
            weights,
            ranks,
            0,
            steps,
            K,
            stride_ar,
            stride_ak,
            R,
            RANKS,
            BLOCK_K,
            EVEN_K,
            STAGES,
        )
        shrunk = tl.where(ranks < R, shrunk, 0.0)
        weights = b + adapter.to(tl.int64) * stride_ba + ranks.to(tl.int64)[None, :] * stride_br
        for tile in tl.range(first, last, num_stages=STAGES):
            columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            rows = weights + (columns % N).to(tl.int64)[:, None] * stride_bn
            block = tl.load(rows, mask=(ranks < R)[None, :], other=0.0)
            sums = tl.sum(block.to(tl.float32) * shrunk[None, :], axis=1)
            _add(base, out, scale, sums, columns, token, N, stride_base, stride_out)
    elif not IN_PLACE:
        for tile in range(first, last):
            columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            _pass(base, out, columns, token, N, stride_base, stride_out)


@triton.jit
def _add(base, out, scale, sums, columns, token, N, stride_base, stride_out):
    """Scale, add the base and round once."""
    result = sums * scale
    if base is not None:
        result += tl.load(base + token * stride_base + columns, mask=columns < N, other=0.0).to(tl.float32)
    tl.store(out + token * stride_out + columns, result.to(out.dtype.element_ty), mask=columns < N)


@triton.jit
def _pass(base, out, columns, token, N, stride_base, stride_out):
    """The base as it is, to the last bit; zero where there is none."""
    if base is not None:
        same = tl.load(base + token * stride_base + columns, mask=columns < N, other=0.0)
    else:
        same = tl.zeros_like(columns).to(out.dtype.element_ty)
    tl.store(out + token * stride_out + columns, same, mask=columns < N)
