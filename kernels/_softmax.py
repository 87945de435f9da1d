"""The step that attention kernels share: take a range of keys into a running softmax."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend(
    accumulator,
    row_max,
    row_sum,
    queries,
    k,  # the head's keys
    v,
    first,
    last,
    rows,
    SK,
    D,
    stride_kn,
    stride_kd,
    stride_vn,
    stride_vd,
    scale_log2,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take the keys [first, last) into the running softmax."""
    inner = tl.arange(0, BLOCK_D).to(tl.int64)
    block = tl.arange(0, BLOCK_N).to(tl.int64)
    k_first = k + inner[:, None] * stride_kd + block[None, :] * stride_kn
    v_first = v + block[:, None] * stride_vn + inner[None, :] * stride_vd
    for start in range(first, last, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        start_64 = tl.zeros((), dtype=tl.int64) + start
        k_tile = k_first + start_64 * stride_kn
        v_tile = v_first + start_64 * stride_vn
        if MASKED or not EVEN_D:
            inside = columns < SK
            keys = tl.load(k_tile, mask=inside[None, :] & (inner < D)[:, None], other=0.0)
            values = tl.load(v_tile, mask=inside[:, None] & (inner < D)[None, :], other=0.0)
        else:
            keys = tl.load(k_tile)
            values = tl.load(v_tile)

        scores = tl.dot(queries, keys, input_precision="ieee") * scale_log2
        if MASKED:
            seen = (columns < SK)[None, :]
            if CAUSAL:
                seen = seen & (columns[None, :] <= rows[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        # A row that has seen no key yet has maximum -inf; 0 in its place keeps -inf - -inf = NaN out.
        base = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(row_max - base)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        accumulator = accumulator * decay[:, None]
        accumulator = tl.dot(weights.to(values.dtype), values, accumulator, input_precision="ieee")
        row_max = new_max
    return accumulator, row_max, row_sum
