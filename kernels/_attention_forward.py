"""Attention's forward pass on the device: one program takes one tile of queries over all the keys they see.

The running softmax (https://arxiv.org/abs/2205.14135) goes over the keys in blocks of BLOCK_N, and over no block
that causal or window hide whole. Blocks that every query of the tile sees whole run without a mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._masks import key_range, score, visible
from autotune.kernels._softmax import online_softmax


@triton.jit
def place(SQ, H, GROUP, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, PACK_GQA: tl.constexpr):
    """(tile, first query head, key head, batch) of this program, the last three 64-bit."""
    queries, heads = SQ, H
    if PACK_GQA:
        queries, heads = SQ * GROUP, H // GROUP
    tiles = tl.cdiv(queries, BLOCK_M)
    tile = tl.program_id(0) % tiles
    if CAUSAL:
        # The last rows see the most keys: start them first.
        tile = tiles - 1 - tile
    head = tl.program_id(0) // tiles % heads
    batch = (tl.program_id(0) // tiles // heads).to(tl.int64)
    kv_head = head // GROUP
    if PACK_GQA:
        kv_head = head
        head = head * GROUP
    return tile, head.to(tl.int64), kv_head.to(tl.int64), batch


@triton.jit
def attend_tile(
    tile,
    q,  # at the first query of the sequence and of the first head; so are out and lse
    k,  # at the first key of the sequence and head; so is v
    v,
    out,
    lse,
    score_scale,
    cap_log2,
    window,
    shift,  # position of the first query
    GROUP,
    SQ,
    SK,
    D,
    DV,
    stride_qh,
    stride_qm,
    stride_qd,
    stride_kn,
    stride_kd,
    stride_vn,
    stride_vd,
    stride_oh,
    stride_om,
    stride_lh,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PACK_GQA: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Rows of the tile are queries of one head, or with PACK_GQA (query, head of the group), heads fastest."""
    packed = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    rows, heads = packed, tl.zeros((BLOCK_M,), dtype=tl.int32)
    first, last = tile * BLOCK_M, tile * BLOCK_M + BLOCK_M - 1
    if PACK_GQA:
        rows, heads = packed // GROUP, packed % GROUP
        first, last = first // GROUP, last // GROUP
    rows_64, heads_64 = rows.to(tl.int64), heads.to(tl.int64)
    exists = rows < SQ
    inner = tl.arange(0, BLOCK_D)
    q_tile = q + (heads_64 * stride_qh + rows_64 * stride_qm)[:, None] + inner.to(tl.int64)[None, :] * stride_qd
    queries = tl.load(q_tile, mask=exists[:, None] & (inner < D)[None, :], other=0.0)
    if DESCRIPTOR:
        k = tl.make_tensor_descriptor(k, [SK, D], [stride_kn, 1], [BLOCK_N, BLOCK_D])
        v = tl.make_tensor_descriptor(v, [SK, DV], [stride_vn, 1], [BLOCK_N, BLOCK_DV])

    accumulator = tl.zeros((BLOCK_M, BLOCK_DV), dtype=tl.float32)
    row_max = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    start, whole, edge, end = key_range(
        first + shift, tl.minimum(last, SQ - 1) + shift, SK, window, BLOCK_N, CAUSAL, WINDOW
    )
    positions = rows + shift
    if WINDOW:
        accumulator, row_max, row_sum = _attend(
            accumulator, row_max, row_sum, queries, k, v, start, whole, positions, score_scale, cap_log2, window,
            SK, D, DV, stride_kn, stride_kd, stride_vn, stride_vd,
            BLOCK_N, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, SOFTCAP, DESCRIPTOR, True,
        )  # fmt: skip
    accumulator, row_max, row_sum = _attend(
        accumulator, row_max, row_sum, queries, k, v, whole, edge, positions, score_scale, cap_log2, window,
        SK, D, DV, stride_kn, stride_kd, stride_vn, stride_vd,
        BLOCK_N, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, SOFTCAP, DESCRIPTOR, False,
    )  # fmt: skip
    accumulator, row_max, row_sum = _attend(
        accumulator, row_max, row_sum, queries, k, v, edge, end, positions, score_scale, cap_log2, window,
        SK, D, DV, stride_kn, stride_kd, stride_vn, stride_vd,
        BLOCK_N, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, SOFTCAP, DESCRIPTOR, True,
    )  # fmt: skip

    # A row without a key has sum 0 and maximum -inf: result 0, lse -inf.
    row_sum = tl.where(row_sum == 0.0, 1.0, row_sum)
    outer = tl.arange(0, BLOCK_DV)
    out_tile = out + (heads_64 * stride_oh + rows_64 * stride_om)[:, None] + outer[None, :]
    tl.store(out_tile, accumulator / row_sum[:, None], mask=exists[:, None] & (outer < DV)[None, :])
    natural = (row_max + tl.log2(row_sum)) * 0.6931471805599453
    tl.store(lse + heads_64 * stride_lh + rows_64, natural, mask=exists)


@triton.jit
def _attend(
    accumulator,
    row_max,
    row_sum,
    queries,
    k,  # the head's keys: pointer, or descriptor
    v,
    first,
    last,
    positions,
    score_scale,
    cap_log2,
    window,
    SK,
    D,
    DV,
    stride_kn,
    stride_kd,
    stride_vn,
    stride_vd,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take the keys [first, last) into the running softmax."""
    block = tl.arange(0, BLOCK_N)
    inner, outer = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    if not DESCRIPTOR:
        block_64 = block.to(tl.int64)
        k_first = k + inner.to(tl.int64)[:, None] * stride_kd + block_64[None, :] * stride_kn
        v_first = v + block_64[:, None] * stride_vn + outer.to(tl.int64)[None, :] * stride_vd
    for start in range(first, last, BLOCK_N):
        columns = start + block
        if DESCRIPTOR:
            # Outside of the tensor there are zeros.
            keys = k.load([start, 0]).T
            values = v.load([start, 0])
        else:
            start_64 = tl.zeros((), dtype=tl.int64) + start
            keys = _load(
                k_first + start_64 * stride_kn, (columns < SK)[None, :], (inner < D)[:, None], MASKED, EVEN_D
            )
            values = _load(
                v_first + start_64 * stride_vn, (columns < SK)[:, None], (outer < DV)[None, :], MASKED, EVEN_DV
            )
        scores = score(tl.dot(queries, keys, input_precision="ieee"), score_scale, cap_log2, SOFTCAP)
        if MASKED:
            seen = visible(positions[:, None], columns[None, :], SK, window, CAUSAL, WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        accumulator, row_max, row_sum = online_softmax(accumulator, row_max, row_sum, scores, values)
    return accumulator, row_max, row_sum


@triton.jit
def _load(pointers, exists, inside, MASKED: tl.constexpr, EVEN: tl.constexpr):
    """A tile that may reach over the last key if MASKED, and over the head dimension unless EVEN."""
    if MASKED or not EVEN:
        return tl.load(pointers, mask=exists & inside, other=0.0)
    else:
        return tl.load(pointers)
