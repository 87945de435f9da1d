"""Block-sparse attention's forward pass on the device: one program takes a tile of queries over the listed blocks.

The running softmax (https://arxiv.org/abs/2205.14135) goes over the blocks of keys that the tile's block row lists,
in steps of BLOCK_N: first those seen whole, in a loop without a mask, then those that rules hide a part of.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._masks import visible
from autotune.kernels._softmax import online_softmax


@triton.jit
def attend_blocks(
    q,  # (B, H, SQ, D)
    k,  # (B, HKV, SK, D)
    v,  # (B, HKV, SK, DV)
    out,  # (B, H, SQ, DV), contiguous
    lse,  # (B, H, SQ) float32, contiguous
    offsets,  # (planes * ROWS + 1,): as BlockLists has them, of block rows
    partial,  # (planes * ROWS,)
    blocks,  # (blocks,)
    longest_first,  # (planes * ROWS,)
    q_documents,  # (BATCHES, SQ); not read unless DOCUMENTS
    k_documents,  # (BATCHES, SK)
    score_scale,  # scale * log2(e)
    window,
    H,
    GROUP,  # H // HKV
    SQ,
    SK,
    D,
    DV,
    ROWS,  # block rows
    BATCHES,  # of the mask: 1 or B
    HEADS,  # of the mask: 1 or H; 1 if PACK_GQA
    stride_qb,
    stride_qh,
    stride_qm,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_vd,
    BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    PACK_GQA: tl.constexpr,
    LONGEST_FIRST: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    """Rows of the tile are queries of one head, or with PACK_GQA (query, head of the group), heads fastest."""
    row_members, heads = BLOCK_Q, H
    if PACK_GQA:
        row_members, heads = BLOCK_Q * GROUP, H // GROUP
    tiles = tl.cdiv(row_members, BLOCK_M)
    tile = tl.program_id(0) % tiles
    row = tl.program_id(0) // tiles % ROWS
    head = (tl.program_id(0) // tiles // ROWS % heads).to(tl.int64)
    batch = (tl.program_id(0) // tiles // ROWS // heads).to(tl.int64)
    plane = batch % BATCHES * HEADS + head % HEADS
    if LONGEST_FIRST:
        row = tl.load(longest_first + plane * ROWS + row)
    first_member = tile * BLOCK_M
    if PACK_GQA:
        kv_head, head = head, head * GROUP
        first_member = first_member // GROUP
    else:
        kv_head = head // GROUP
    if row * BLOCK_Q + first_member >= SQ:
        return

    member = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    of_group = tl.zeros((BLOCK_M,), dtype=tl.int32)
    exists = member < row_members
    if PACK_GQA:
        member, of_group = member // GROUP, member % GROUP
    positions = row * BLOCK_Q + member
    exists = exists & (positions < SQ)
    positions_64, heads_64 = positions.to(tl.int64), head + of_group
    inner, outer = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    q_tile = q + batch * stride_qb + (heads_64 * stride_qh + positions_64 * stride_qm)[:, None]
    q_tile += inner.to(tl.int64)[None, :] * stride_qd
    queries = tl.load(q_tile, mask=exists[:, None] & (inner < D)[None, :], other=0.0)
    k += batch * stride_kb + kv_head * stride_kh
    v += batch * stride_vb + kv_head * stride_vh
    if DESCRIPTOR:
        k = tl.make_tensor_descriptor(k, [SK, D], [stride_kn, 1], [BLOCK_N, BLOCK_D])
        v = tl.make_tensor_descriptor(v, [SK, DV], [stride_vn, 1], [BLOCK_N, BLOCK_DV])
    documents = tl.zeros((BLOCK_M,), dtype=tl.int32)
    if DOCUMENTS:
        documents = tl.load(q_documents + batch % BATCHES * SQ + positions_64, mask=exists, other=0)
        k_documents += batch % BATCHES * SK

    accumulator = tl.zeros((BLOCK_M, BLOCK_DV), dtype=tl.float32)
    row_max = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    place = plane * ROWS + row
    first, edge, last = tl.load(offsets + place), tl.load(partial + place), tl.load(offsets + place + 1)
    accumulator, row_max, row_sum = _attend(
        accumulator, row_max, row_sum, queries, k, v, blocks, first, edge, positions, documents, k_documents,
        score_scale, window, SK, D, DV, stride_kn, stride_kd, stride_vn, stride_vd,
        BLOCK_KV, BLOCK_N, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, DOCUMENTS, DESCRIPTOR, False,
    )  # fmt: skip
    accumulator, row_max, row_sum = _attend(
        accumulator, row_max, row_sum, queries, k, v, blocks, edge, last, positions, documents, k_documents,
        score_scale, window, SK, D, DV, stride_kn, stride_kd, stride_vn, stride_vd,
        BLOCK_KV, BLOCK_N, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, DOCUMENTS, DESCRIPTOR, True,
    )  # fmt: skip

    # A row without a key has sum 0 and maximum -inf: result 0, lse -inf.
    row_sum = tl.where(row_sum == 0.0, 1.0, row_sum)
    stored = (batch * H + heads_64) * SQ + positions_64
    out_tile = out + stored[:, None] * DV + outer[None, :]
    tl.store(out_tile, accumulator / row_sum[:, None], mask=exists[:, None] & (outer < DV)[None, :])
    tl.store(lse + stored, (row_max + tl.log2(row_sum)) * 0.6931471805599453, mask=exists)


@triton.jit
def _attend(
    accumulator,
    row_max,
    row_sum,
    queries,
    k,  # the head's keys: pointer, or descriptor
    v,
    blocks,
    first,  # places in blocks
    last,
    positions,
    documents,
    k_documents,
    score_scale,
    window,
    SK,
    D,
    DV,
    stride_kn,
    stride_kd,
    stride_vn,
    stride_vd,
    BLOCK_KV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take the blocks listed from ``first`` up to ``last`` into the running softmax."""
    tl.static_assert(BLOCK_KV % BLOCK_N == 0)
    steps: tl.constexpr = BLOCK_KV // BLOCK_N
    inner, outer, key = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK_N)
    if not DESCRIPTOR:
        key_64 = key.to(tl.int64)
        k_first = k + inner.to(tl.int64)[:, None] * stride_kd + key_64[None, :] * stride_kn
        v_first = v + key_64[:, None] * stride_vn + outer.to(tl.int64)[None, :] * stride_vd
    blocks += first
    # Counted from 0: there may be too many blocks to count steps of all in 32 bits.
    count = last - first
    block = tl.load(blocks, mask=count > 0, other=0)
    for step in range(0, count * steps):
        start = block * BLOCK_KV + step % steps * BLOCK_N
        columns = start + key
        if DESCRIPTOR:
            # Outside of the tensor there are zeros.
            keys = k.load([start, 0]).T
            values = v.load([start, 0])
        else:
            start_64, real = start.to(tl.int64), columns < SK
            keys = _load(k_first + start_64 * stride_kn, real[None, :], (inner < D)[:, None], MASKED, EVEN_D)
            values = _load(v_first + start_64 * stride_vn, real[:, None], (outer < DV)[None, :], MASKED, EVEN_DV)
        scores = tl.dot(queries, keys, input_precision="ieee") * score_scale
        if MASKED:
            seen = visible(positions[:, None], columns[None, :], SK, window, CAUSAL, WINDOW)
            if DOCUMENTS:
                theirs = tl.load(k_documents + columns, mask=columns < SK, other=0)
                seen = seen & (documents[:, None] == theirs[None, :])
            scores = tl.where(seen, scores, float("-inf"))
        # One step ahead: a load of keys that waits for the number of its block would take the pipeline's stages.
        following = (step + 1) // steps
        block = tl.load(blocks + following, mask=following < count, other=0)
        accumulator, row_max, row_sum = online_softmax(accumulator, row_max, row_sum, scores, values)
    return accumulator, row_max, row_sum


@triton.jit
def _load(pointers, exists, inside, MASKED: tl.constexpr, EVEN: tl.constexpr):
    """A tile that may reach over the last key if MASKED, and over the head dimension unless EVEN."""
    if MASKED or not EVEN:
        return tl.load(pointers, mask=exists & inside, other=0.0)
    else:
        return tl.load(pointers)
