"""What attention kernels agree on: where sequences lie, how products become scores, which keys a query sees.

A query has a position among the keys: its row number, plus ``SK - SQ`` where causal and window are aligned at the
end. It sees the keys up to its position if CAUSAL, and only those less than ``window`` away if WINDOW.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


def score_factors(scale: float | None, softcap: float | None, head_dim: int) -> tuple[float, float]:
    """``score_scale`` and ``cap_log2`` of :func:`score`, the latter 1 without a cap.

    :raises ValueError: if the scale is not finite, or the cap not finite and positive.
    """
    scale = max(1, head_dim) ** -0.5 if scale is None else scale
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; it must be finite")
    if softcap is None:
        return scale * LOG2_E, 1.0
    if not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}; it must be finite and over 0")
    return scale / softcap, softcap * LOG2_E


def binding_window(window: int | None, rows: int, columns: int) -> int:
    """The window, or 0 where there is none or it hides nothing of a ``rows`` x ``columns`` score matrix.

    :raises ValueError: if it is under 1.
    """
    if window is None:
        return 0
    if window < 1:
        raise ValueError(f"window is {window}; it must be at least 1, or None")
    return window if window < max(rows, columns) else 0


@triton.jit
def sequence(cu, number):
    """(first row, number of rows) of one of the sequences that follow one another."""
    start = tl.load(cu + number)
    return start.to(tl.int64), (tl.load(cu + number + 1) - start).to(tl.int32)


@triton.jit
def score(products, score_scale, cap_log2, SOFTCAP: tl.constexpr):
    """Scores in base 2, float32, from q k^T.

    With a cap their derivative by the product is ``score_scale * cap_log2 * (1 - (score / cap_log2)^2)``.
    """
    scores = products * score_scale
    if SOFTCAP:
        scores = _tanh(scores) * cap_log2
    return scores


@triton.jit
def _tanh(x):
    """To 8 units in the last place: a series near 0, where the quotient would cancel."""
    square = x * x
    series = x + x * square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    decay = tl.exp2(-2 * 1.4426950408889634 * tl.abs(x))
    far = (1 - decay) / (1 + decay)
    return tl.where(square < 0.0625, series, tl.where(x < 0, -far, far))


@triton.jit
def visible(positions, columns, SK, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Whether a query sees a key, and the key exists.

    The arguments broadcast: positions (M, 1) and columns (1, N), or (1, M) and (N, 1).
    """
    seen = columns < SK
    # Differences, since sums of a position and a window may not fit 32 bits.
    if CAUSAL:
        seen = seen & (columns <= positions)
    if WINDOW:
        seen = seen & (positions - columns < window)
        if not CAUSAL:
            seen = seen & (columns - positions < window)
    return seen


@triton.jit
def key_range(first, last, SK, window, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """(start, whole, edge, end): what queries at positions ``first`` to ``last`` see of the keys.

    Blocks of [start, whole) and [edge, end) need a mask, those of [whole, edge) need none; no key outside
    [start, end) is seen. All are multiples of BLOCK_N but ``end``, and [start, whole) is empty without a window.
    """
    start, whole, edge, end = 0, 0, SK, SK
    if CAUSAL:
        end = tl.maximum(tl.minimum(SK, last + 1), 0)
        edge = tl.maximum(tl.minimum(SK, first + 1), 0)
    if WINDOW:
        if not CAUSAL:
            end = tl.minimum(SK - last, window) + last
            edge = tl.minimum(SK - first, window) + first
            end = tl.maximum(end, 0)
            edge = tl.maximum(edge, 0)
        start = tl.maximum(first - window + 1, 0) // BLOCK_N * BLOCK_N
        whole = tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK_N) * BLOCK_N
        whole = tl.minimum(whole, tl.cdiv(end, BLOCK_N) * BLOCK_N)
    edge = tl.maximum(edge // BLOCK_N * BLOCK_N, whole)
    return start, whole, edge, end
