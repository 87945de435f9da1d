"""What follows a matrix product on the device: scales, bias, activation, residual, in float32, rounded once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def biased(
    accumulator,  # (rows, columns) float32 or int32: a @ b
    batch_row,  # int64: rows of the batch's earlier products
    rows,  # (rows,) int32, all inside the product
    columns,  # (columns,) int32, of b, all inside
    bias,  # (N,) or None
    scale_a,  # (1,) or (batch * M,) float32, or None
    scale_b,  # (1,) or (N,) float32, or None
    SCALE: tl.constexpr,  # none, tensor, row
):
    """scale_a * scale_b * accumulator + bias."""
    x = accumulator.to(tl.float32)
    if SCALE == "tensor":
        x *= tl.load(scale_a) * tl.load(scale_b)
    elif SCALE == "row":
        x *= tl.load(scale_a + batch_row + rows)[:, None] * tl.load(scale_b + columns)[None, :]
    if bias is not None:
        x += tl.load(bias + columns).to(tl.float32)[None, :]
    return x


@triton.jit
def sigmoid(x):
    """Without an overflow on either side."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1 + small)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """Of each element, in float32; NaN stays NaN. ACTIVATION is not none."""
    if ACTIVATION == "relu":
        return tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 is sigmoid(2 u); u is sqrt(2 / pi) * (x + 0.044715 x**3).
        return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:  # silu, and the gate of swiglu
        return x * sigmoid(x)


@triton.jit
def halves(x):
    """(rows, columns) -> its left and its right half, (rows, columns / 2) each."""
    paired = tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2))
    return tl.split(tl.permute(paired, (0, 2, 1)))


@triton.jit
def places(batch_row, rows, columns, M, OUT_N):
    """Offsets of a tile of the result (batch, M, OUT_N), contiguous, and which of them are inside."""
    offsets = (batch_row + rows)[:, None] * OUT_N + columns[None, :]
    return offsets, (rows < M)[:, None] & (columns < OUT_N)[None, :]


@triton.jit
def finish(
    accumulator,  # (BLOCK_M, BLOCK_N) float32 or int32: a tile of a @ b
    c,  # (batch, M, OUT_N), contiguous
    bias,
    residual,  # like c, or None
    scale_a,
    scale_b,
    batch,
    tile_m,
    tile_n,
    rows,  # (BLOCK_M,) int32: the rows of a, wrapped round
    columns,  # (BLOCK_N,) int32: the columns of b, wrapped round
    M,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Everything from the tile's product to its store."""
    batch_row = (tl.full((), 0, dtype=tl.int64) + batch) * M
    if c.dtype.element_ty.is_int():
        x = accumulator
    else:
        x = biased(accumulator, batch_row, rows, columns, bias, scale_a, scale_b, SCALE)
    gated: tl.constexpr = ACTIVATION == "swiglu"
    width: tl.constexpr = BLOCK_N // 2 if gated else BLOCK_N
    if gated:
        x, up = halves(x)
        x = activated(x, ACTIVATION) * up
        OUT_N = N // 2
    else:
        if ACTIVATION != "none":
            x = activated(x, ACTIVATION)
        OUT_N = N
    out_rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offsets, inside = places(batch_row, out_rows, tile_n * width + tl.arange(0, width), M, OUT_N)
    if residual is not None:
        x += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(c + offsets, x.to(c.dtype.element_ty), mask=inside)
