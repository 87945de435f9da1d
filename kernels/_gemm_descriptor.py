"""Persistent, with the operands and the result moved by tensor descriptors (TMA from sm_90 on)."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._epilogue import activated, biased, halves, places
from autotune.kernels._tile import place


@triton.jit
def _put(
    x,  # (rows, columns) float32 or int32: products, with gated the gate's
    up,  # (rows, columns) with gated, else anything
    c_matrix,  # descriptor of the result
    bias,
    residual,
    scale_a,
    scale_b,
    row,
    column,
    M,
    OUT_N,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Finish products of consecutive rows and columns, and store them."""
    out_rows, out_columns = row + tl.arange(0, x.shape[0]), column + tl.arange(0, x.shape[1])
    rows, columns = out_rows % M, out_columns % OUT_N
    start = tl.full((), 0, dtype=tl.int64)
    if not c_matrix.dtype.is_int():
        x = biased(x, start, rows, columns, bias, scale_a, scale_b, SCALE)
    if ACTIVATION != "none":
        x = activated(x, ACTIVATION)
    if ACTIVATION == "swiglu":
        x *= biased(up, start, rows, columns + OUT_N, bias, scale_a, scale_b, SCALE)
    if residual is not None:
        offsets, inside = places(start, out_rows, out_columns, M, OUT_N)
        x += tl.load(residual + offsets, mask=inside, other=0.0).to(tl.float32)
    c_matrix.store([row, column], x.to(c_matrix.dtype))


@triton.jit
def _put_pieces(
    x,
    up,
    c_matrix,
    bias,
    residual,
    scale_a,
    scale_b,
    row,
    column,
    M,
    OUT_N,
    PIECES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
):
    """The same in PIECES pieces side by side, each of which needs shared memory only while it is stored."""
    if PIECES == 1:
        _put(x, up, c_matrix, bias, residual, scale_a, scale_b, row, column, M, OUT_N, ACTIVATION, SCALE)
    else:
        left, right = halves(x)
        up_left, up_right = up, up
        if ACTIVATION == "swiglu":
            up_left, up_right = halves(up)
        half: tl.constexpr = PIECES // 2
        middle = column + x.shape[1] // 2
        _put_pieces(
            left,
            up_left,
            c_matrix,
            bias,
            residual,
            scale_a,
            scale_b,
            row,
            column,
            M,
            OUT_N,
            half,
            ACTIVATION,
            SCALE,
        )
        _put_pieces(
            right,
            up_right,
            c_matrix,
            bias,
            residual,
            scale_a,
            scale_b,
            row,
            middle,
            M,
            OUT_N,
            half,
            ACTIVATION,
            SCALE,
        )


@triton.jit
def descriptor(
    a,  # (M, K)
    b,  # (K, N)
    c,  # (M, result's columns), contiguous
    bias,
    residual,
    scale_a,
    scale_b,
    M,
    N,
    K,
    stride_a,  # of what is not contiguous
    stride_b,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EPILOGUE_SUBTILE: tl.constexpr,
    FLATTEN: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
    A_BY_COLUMN: tl.constexpr,  # columns of a are contiguous
    B_BY_COLUMN: tl.constexpr,
    PRECISION: tl.constexpr,
    IMPRECISE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALE: tl.constexpr,
):
    gated: tl.constexpr = ACTIVATION == "swiglu"
    # A gated tile is as many columns of gate and of up, each with an accumulator of its own.
    width: tl.constexpr = BLOCK_N // 2 if gated else BLOCK_N
    OUT_N = N // 2 if gated else N
    if A_BY_COLUMN:
        a_matrix = tl.make_tensor_descriptor(a, [K, M], [stride_a, 1], [BLOCK_K, BLOCK_M])
    else:
        a_matrix = tl.make_tensor_descriptor(a, [M, K], [stride_a, 1], [BLOCK_M, BLOCK_K])
    if B_BY_COLUMN:
        b_matrix = tl.make_tensor_descriptor(b, [N, K], [stride_b, 1], [width, BLOCK_K])
    else:
        b_matrix = tl.make_tensor_descriptor(b, [K, N], [stride_b, 1], [BLOCK_K, width])
    c_matrix = tl.make_tensor_descriptor(c, [M, OUT_N], [OUT_N, 1], [BLOCK_M, width // EPILOGUE_SUBTILE])

    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(OUT_N, width)
    tiles = tiles_m * tiles_n
    first, step = tl.program_id(0), tl.num_programs(0)
    for tile in tl.range(first, tiles, step, flatten=FLATTEN, warp_specialize=WARP_SPECIALIZE):
        _, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        row, column = tile_m * BLOCK_M, tile_n * width
        sum_type: tl.constexpr = tl.int32 if a.dtype.element_ty.is_int() else tl.float32
        x = tl.full((BLOCK_M, width), 0, dtype=sum_type)
        up = tl.full((BLOCK_M, width if gated else 1), 0, dtype=sum_type)
        for inner in range(0, K, BLOCK_K):
            a_block = a_matrix.load([inner, row]).T if A_BY_COLUMN else a_matrix.load([row, inner])
            b_block = b_matrix.load([column, inner]).T if B_BY_COLUMN else b_matrix.load([inner, column])
            x = tl.dot(a_block, b_block, x, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE)
            if gated:
                beside = column + OUT_N
                b_block = b_matrix.load([beside, inner]).T if B_BY_COLUMN else b_matrix.load([inner, beside])
                up = tl.dot(a_block, b_block, up, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE)
        _put_pieces(
            x,
            up,
            c_matrix,
            bias,
            residual,
            scale_a,
            scale_b,
            row,
            column,
            M,
            OUT_N,
            EPILOGUE_SUBTILE,
            ACTIVATION,
            SCALE,
        )
