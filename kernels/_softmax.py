"""The step that attention kernels share: take one tile of scores and its values into a running softmax."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def online_softmax(
    accumulator,  # (rows, value columns) float32: sum of weights x values so far, relative to row_max
    row_max,  # (rows,) float32, in base 2; -inf before the first visible key
    row_sum,  # (rows,) float32: sum of weights so far
    scores,  # (rows, keys) float32: scale * log2(e) * q k^T, -inf where hidden
    values,  # (keys, value columns)
):
    """https://arxiv.org/abs/2205.14135, in base 2."""
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    # A row that has seen no key yet has maximum -inf; 0 in its place keeps -inf - -inf = NaN out.
    base = tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.exp2(scores - base[:, None])
    decay = tl.exp2(row_max - base)
    row_sum = row_sum * decay + tl.sum(weights, 1)
    accumulator = accumulator * decay[:, None]
    accumulator = tl.dot(weights.to(values.dtype), values, accumulator, input_precision="ieee")
    return accumulator, new_max, row_sum
