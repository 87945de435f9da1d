"""The second launch of a product whose K was split: adds up the parts, always in one order, and finishes."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._epilogue import activated, biased, places


@triton.jit
def reduce(
    parts,  # (SPLIT_K, batch, M, N) float32 or int32, contiguous
    c,  # (batch, M, result's columns), contiguous
    bias,
    residual,
    scale_a,
    scale_b,
    B,
    M,
    N,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
):
    gated: tl.constexpr = ACTIVATION == "swiglu"
    OUT_N = N // 2 if gated else N
    tiles_m = tl.cdiv(M, ROWS)
    tiles_n = tl.cdiv(OUT_N, COLUMNS)
    batch = tl.program_id(0) // (tiles_m * tiles_n)
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    out_rows = tile // tiles_n * ROWS + tl.arange(0, ROWS)
    out_columns = tile % tiles_n * COLUMNS + tl.arange(0, COLUMNS)
    rows, columns = out_rows % M, out_columns % OUT_N
    batch_row = (tl.full((), 0, dtype=tl.int64) + batch) * M

    part = parts + (batch_row + rows)[:, None] * N + columns[None, :]
    step = (tl.full((), 0, dtype=tl.int64) + B) * M * N
    x = tl.load(part)
    for _ in tl.static_range(1, SPLIT_K):
        part += step
        x += tl.load(part)
    if not c.dtype.element_ty.is_int():
        x = biased(x, batch_row, rows, columns, bias, scale_a, scale_b, SCALE)
    if ACTIVATION != "none":
        x = activated(x, ACTIVATION)
    if gated:
        part = parts + (batch_row + rows)[:, None] * N + (columns + OUT_N)[None, :]
        up = tl.load(part)
        for _ in tl.static_range(1, SPLIT_K):
            part += step
            up += tl.load(part)
        x *= biased(up, batch_row, rows, columns + OUT_N, bias, scale_a, scale_b, SCALE)
    offsets, inside = places(batch_row, out_rows, out_columns, M, OUT_N)
    if residual is not None:
        x += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(c + offsets, x.to(c.dtype.element_ty), mask=inside)
