"""Persistent grouped products, with tokens and weights moved by tensor descriptors (TMA from sm_90 on)."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._epilogue import activated, biased, places
from autotune.kernels._grouped_gemm_tiles import fill_rest, find, tile_rows_of
from autotune.kernels._tile import place


@triton.jit
def _weights(w_matrices, group, inner, column, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, BY_COLUMN: tl.constexpr):
    """(BLOCK_K, WIDTH) of a group's weight; past its end zeros, not the next group's."""
    if BY_COLUMN:
        return w_matrices.load([group, column, inner]).reshape(WIDTH, BLOCK_K).T
    else:
        return w_matrices.load([group, inner, column]).reshape(BLOCK_K, WIDTH)


@triton.jit(do_not_specialize=["T"])
def descriptor(
    x,  # (T, K), rows contiguous
    w,  # (G, K, N)
    c,  # (T, result's columns), contiguous
    bias,  # (G, N), contiguous, or None
    offs,  # (G,) int32 or int64: where each group ends
    T,
    N,
    K,
    G,
    stride_x,  # of what is not contiguous
    stride_wg,
    stride_w,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    GROUPS: tl.constexpr,
    W_BY_COLUMN: tl.constexpr,  # columns of each weight are contiguous
    ACTIVATION: tl.constexpr,
):
    gated: tl.constexpr = ACTIVATION == "swiglu"
    # A gated tile is as many columns of gate and of up, each with an accumulator of its own.
    width: tl.constexpr = BLOCK_N // 2 if gated else BLOCK_N
    OUT_N = N // 2 if gated else N
    x_matrix = tl.make_tensor_descriptor(x, [T, K], [stride_x, 1], [BLOCK_M, BLOCK_K])
    if W_BY_COLUMN:
        w_matrices = tl.make_tensor_descriptor(w, [G, N, K], [stride_wg, stride_w, 1], [1, width, BLOCK_K])
    else:
        w_matrices = tl.make_tensor_descriptor(w, [G, K, N], [stride_wg, stride_w, 1], [1, BLOCK_K, width])

    tile_rows = tile_rows_of(offs, T, G, BLOCK_M, GROUPS)
    tiles_n = tl.cdiv(OUT_N, width)
    for tile in tl.range(tl.program_id(0), tile_rows * tiles_n, tl.num_programs(0)):
        _, tile_row, tile_n = place(tile, tile_rows, tiles_n, GROUP_M)
        group, row, end = find(offs, tile_row, T, G, BLOCK_M, GROUPS)
        if group < G:
            column = tile_n * width
            value = tl.zeros((BLOCK_M, width), dtype=tl.float32)
            up = tl.zeros((BLOCK_M, width if gated else 1), dtype=tl.float32)
            for inner in range(0, K, BLOCK_K):
                x_block = x_matrix.load([row, inner])
                w_block = _weights(w_matrices, group, inner, column, width, BLOCK_K, W_BY_COLUMN)
                value = tl.dot(x_block, w_block, value, input_precision="ieee")
                if gated:
                    w_block = _weights(w_matrices, group, inner, column + OUT_N, width, BLOCK_K, W_BY_COLUMN)
                    up = tl.dot(x_block, w_block, up, input_precision="ieee")
            # Stored by pointers: a box would reach into the next group's rows.
            rows, columns = tl.arange(0, BLOCK_M), column + tl.arange(0, width)
            start = row.to(tl.int64)
            inside_columns = columns % OUT_N
            bias_row = bias if bias is None else bias + group.to(tl.int64) * N
            value = biased(value, start, rows, inside_columns, bias_row, None, None, "none")
            if ACTIVATION != "none":
                value = activated(value, ACTIVATION)
            if gated:
                value *= biased(up, start, rows, inside_columns + OUT_N, bias_row, None, None, "none")
            offsets, inside = places(start, rows, columns, end - row, OUT_N)
            tl.store(c + offsets, value.to(c.dtype.element_ty), mask=inside)
        elif group == G:
            fill_rest(c, row, T, tile_n, OUT_N, BLOCK_M, width)
