"""The gradient of block-sparse attention's queries: one program sums over the blocks that its block row lists."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._attention_backward_parts import base_2, load_rows
from autotune.kernels._masks import visible


@triton.jit
def listed_queries_gradient(
    q,
    k,
    v,
    d_out,
    lse,  # (batch, H, SQ) float32, contiguous
    delta,  # likewise
    dq,  # contiguous
    offsets,  # lists of blocks by block row; see _block_mask.py
    partial,
    blocks,
    longest_first,
    q_documents,  # (MASK_BATCHES, SQ); not read unless DOCUMENTS, as the next
    k_documents,  # (MASK_BATCHES, SK)
    score_scale,
    scale,
    H,
    HKV,
    SQ,
    SK,
    D,
    DV,
    window,
    mask_batches,
    mask_heads,
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
    stride_gb,  # of d_out, whose last stride is 1
    stride_gh,
    stride_gm,
    MASK_M: tl.constexpr,  # of a block of the mask
    MASK_N: tl.constexpr,
    BLOCK_M2: tl.constexpr,
    BLOCK_N2: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    LONGEST_FIRST: tl.constexpr,
):
    block_rows = tl.cdiv(SQ, MASK_M)
    tiles = block_rows * (MASK_M // BLOCK_M2)
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % H
    batch = tl.program_id(0) // tiles // H
    plane = batch % mask_batches * mask_heads + head % mask_heads
    block_row = tile // (MASK_M // BLOCK_M2)
    if LONGEST_FIRST:
        block_row = tl.load(longest_first + plane * block_rows + block_row)
    first = block_row * MASK_M + tile % (MASK_M // BLOCK_M2) * BLOCK_M2
    if first >= SQ:
        return

    rows = first + tl.arange(0, BLOCK_M2)
    rows_64 = rows.to(tl.int64)[:, None]
    inner, inner_v = tl.arange(0, BLOCK_D).to(tl.int64)[None, :], tl.arange(0, BLOCK_DV).to(tl.int64)[None, :]
    exists = rows < SQ
    stored = exists[:, None] & (inner < D)
    batch_64, head_64 = batch.to(tl.int64), head.to(tl.int64)
    kv_head = (head // (H // HKV)).to(tl.int64)
    q += batch_64 * stride_qb + head_64 * stride_qh
    d_out += batch_64 * stride_gb + head_64 * stride_gh
    k += batch_64 * stride_kb + kv_head * stride_kh
    v += batch_64 * stride_vb + kv_head * stride_vh
    place = (batch_64 * H + head_64) * SQ + rows
    queries = tl.load(q + rows_64 * stride_qm + inner * stride_qd, mask=stored, other=0.0)
    gradients = tl.load(d_out + rows_64 * stride_gm + inner_v, mask=exists[:, None] & (inner_v < DV), other=0.0)
    normalisers = base_2(tl.load(lse + place, mask=exists, other=float("inf")))[:, None]
    deltas = tl.load(delta + place, mask=exists, other=0.0)[:, None]
    documents = rows
    if DOCUMENTS:
        mask_batch = (batch % mask_batches).to(tl.int64)
        documents = tl.load(q_documents + mask_batch * SQ + rows, mask=exists, other=0)
        k_documents += mask_batch * SK

    sums = tl.zeros((BLOCK_M2, BLOCK_D), dtype=tl.float32)
    listed = plane * block_rows + block_row
    start, split, end = tl.load(offsets + listed), tl.load(partial + listed), tl.load(offsets + listed + 1)
    sums = _add_keys(
        sums, queries, gradients, normalisers, deltas, k, v, blocks, start, split, rows, documents,
        k_documents, score_scale, SK, D, DV, window, stride_kn, stride_kd, stride_vn, stride_vd,
        MASK_N, BLOCK_N2, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, DOCUMENTS, False,
    )  # fmt: skip
    sums = _add_keys(
        sums, queries, gradients, normalisers, deltas, k, v, blocks, split, end, rows, documents,
        k_documents, score_scale, SK, D, DV, window, stride_kn, stride_kd, stride_vn, stride_vd,
        MASK_N, BLOCK_N2, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, DOCUMENTS, True,
    )  # fmt: skip
    dq_tile = dq + ((batch_64 * H + head_64) * SQ + rows_64) * D + inner
    tl.store(dq_tile, (sums * scale).to(dq.dtype.element_ty), mask=stored)


@triton.jit
def _add_keys(
    sums,
    queries,
    gradients,
    normalisers,
    deltas,
    k,
    v,
    blocks,
    start,  # places in blocks
    end,
    rows,
    documents,
    k_documents,
    score_scale,
    SK,
    D,
    DV,
    window,
    stride_kn,
    stride_kd,
    stride_vn,
    stride_vd,
    MASK_N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take blocks of keys into the sums of a tile of queries. Tiles are queries x keys."""
    steps: tl.constexpr = MASK_N // BLOCK_N
    tile = tl.arange(0, BLOCK_N)
    inner, inner_v = tl.arange(0, BLOCK_D).to(tl.int64)[None, :], tl.arange(0, BLOCK_DV).to(tl.int64)[None, :]
    k_first = k + tile.to(tl.int64)[:, None] * stride_kn + inner * stride_kd
    v_first = v + tile.to(tl.int64)[:, None] * stride_vn + inner_v * stride_vd
    blocks += start
    # Counted from 0: there may be too many blocks to count steps of all in 32 bits.
    count = end - start
    block = tl.load(blocks, mask=count > 0, other=0)
    for step in range(0, count * steps):
        first = block * MASK_N + step % steps * BLOCK_N
        # One step ahead: a load of keys that waits for the number of its block would take the pipeline's stages.
        following = (step + 1) // steps
        block = tl.load(blocks + following, mask=following < count, other=0)
        columns = first + tile
        first_64 = first.to(tl.int64)
        exists = (columns < SK)[:, None]
        keys = load_rows(k_first + first_64 * stride_kn, exists, inner < D, MASKED, EVEN_D)
        values = load_rows(v_first + first_64 * stride_vn, exists, inner_v < DV, MASKED, EVEN_DV)

        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * score_scale
        slopes = tl.exp2(scores - normalisers)
        slopes *= tl.dot(gradients, tl.trans(values), input_precision="ieee") - deltas
        if MASKED:
            seen = visible(rows[:, None], columns[None, :], SK, window, CAUSAL, WINDOW)
            if DOCUMENTS:
                of_columns = tl.load(k_documents + columns, mask=columns < SK, other=0)
                seen = seen & (documents[:, None] == of_columns[None, :])
            slopes = tl.where(seen, slopes, 0.0)
        sums = tl.dot(slopes.to(keys.dtype), keys, sums, input_precision="ieee")
    return sums
