"""What the launches of attention's gradients share; the first of them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def base_2(lse):
    """log2 of a row's sum of exponentials, and inf where that is 0, so that nothing weighs anything there."""
    return tl.where(lse == float("-inf"), float("inf"), lse * 1.4426950408889634)


@triton.jit
def cap_slope(scores, cap_log2):
    capped = scores / cap_log2
    return 1.0 - capped * capped


@triton.jit
def row_range(first, last, SQ, shift, window, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """(start, whole, edge, end): the queries that see any of the keys ``first`` to ``last``; as ``key_range``."""
    start, whole, edge, end = 0, 0, SQ, SQ
    if CAUSAL:
        start = tl.maximum(first - shift, 0)
        whole = tl.maximum(last - shift, 0)
    if WINDOW:
        if not CAUSAL:
            start = tl.maximum(first - shift - window + 1, 0)
            whole = tl.maximum(last - shift - window + 1, 0)
        end = tl.maximum(tl.minimum(SQ + shift - last, window) + last - shift, 0)
        edge = tl.maximum(tl.minimum(SQ + shift - first, window) + first - shift, 0)
    start = start // BLOCK_M * BLOCK_M
    whole = tl.maximum(tl.minimum(tl.cdiv(whole, BLOCK_M), tl.cdiv(end, BLOCK_M)) * BLOCK_M, start)
    edge = tl.maximum(edge // BLOCK_M * BLOCK_M, whole)
    return start, whole, edge, tl.maximum(end, edge)


@triton.jit
def load_rows(pointers, exists, inside, MASKED: tl.constexpr, EVEN: tl.constexpr):
    """A tile that may reach past the last row if MASKED, and past the head dimension unless EVEN."""
    if MASKED or not EVEN:
        return tl.load(pointers, mask=exists & inside, other=0.0)
    else:
        return tl.load(pointers)
