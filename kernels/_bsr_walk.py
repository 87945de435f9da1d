"""What the structures of ``bsr_matmul`` share on the device: the walk over stored blocks, and the result's store.

The product is x times the transpose of a weight of blocks (BLOCK_ROWS, BLOCK_COLUMNS). TRANSPOSED: times the weight
itself, by a walk over the transposed pattern that reads each block by its columns. A block's ``outputs`` are its
rows, its ``inner`` size its columns; TRANSPOSED the other way round.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._epilogue import activated


@triton.jit
def walk(
    x,  # (B, M, inner)
    values,  # (blocks, BLOCK_ROWS, BLOCK_COLUMNS), contiguous
    column_of,  # (blocks,) int32: along the walk, where on x's inner dimension each block lies, in blocks
    stored_of,  # (blocks,) int32: which of the stored blocks it is; None: that of its number
    batch,
    rows,  # (BLOCK_M,) int32, of x, all inside
    lanes,  # (BLOCK_N,) int32: outputs of a block
    first,  # int32: blocks of the walk [first, last)
    last,
    stride_xb,
    stride_xm,
    stride_xk,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) float32: x[batch, rows] times the lanes of blocks [first, last), in steps of BLOCK_K."""
    inner_size: tl.constexpr = BLOCK_ROWS if TRANSPOSED else BLOCK_COLUMNS
    stride_output: tl.constexpr = 1 if TRANSPOSED else BLOCK_COLUMNS
    stride_inner: tl.constexpr = BLOCK_COLUMNS if TRANSPOSED else 1
    steps: tl.constexpr = inner_size // BLOCK_K
    inner = tl.arange(0, BLOCK_K)
    # 64-bit before any product with a stride.
    zero = tl.full((), 0, dtype=tl.int64)
    x_tile = x + (zero + batch) * stride_xb
    x_tile += rows.to(tl.int64)[:, None] * stride_xm + inner.to(tl.int64)[None, :] * stride_xk
    value_tile = values + lanes[None, :] * stride_output + inner[:, None] * stride_inner

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    column = tl.load(column_of + first, mask=first < last, other=0)
    block = first
    if stored_of is not None:
        block = tl.load(stored_of + first, mask=first < last, other=0)
    for step in range(first * steps, last * steps):
        offset = step % steps * BLOCK_K
        x_block = tl.load(x_tile + ((zero + column) * inner_size + offset) * stride_xk)
        weights = tl.load(value_tile + ((zero + block) * (BLOCK_ROWS * BLOCK_COLUMNS) + offset * stride_inner))
        # One step ahead: tiles that wait for the number of their block would take the pipeline's stages.
        following = (step + 1) // steps
        column = tl.load(column_of + following, mask=following < last, other=0)
        block = following
        if stored_of is not None:
            block = tl.load(stored_of + following, mask=following < last, other=0)
        accumulator = tl.dot(x_block, weights, accumulator, input_precision="ieee")
    return accumulator


@triton.jit
def finish(
    accumulator,  # (BLOCK_M, BLOCK_N) float32
    out,  # (B, M, outputs)
    bias,  # (outputs,) or None
    batch,
    rows,  # (BLOCK_M,) int32, some past the end
    columns,  # (BLOCK_N,) int32, of the result
    M,
    stride_ob,
    stride_om,
    stride_on,
    ACTIVATION: tl.constexpr,
):
    """Bias and activation in float32, rounded once."""
    result = accumulator
    if bias is not None:
        result += tl.load(bias + columns).to(tl.float32)[None, :]
    if ACTIVATION != "none":
        result = activated(result, ACTIVATION)
    zero = tl.full((), 0, dtype=tl.int64)
    place = out + (zero + batch) * stride_ob
    place += rows.to(tl.int64)[:, None] * stride_om + columns.to(tl.int64)[None, :] * stride_on
    tl.store(place, result.to(out.dtype.element_ty), mask=(rows < M)[:, None])
