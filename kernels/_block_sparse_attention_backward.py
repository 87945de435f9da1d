"""The gradients of block-sparse attention's keys and values: one program owns a tile of keys of a block column.

It goes through the blocks that the mask lists for that column, of all query heads that share the keys: each sum has
one order, so results are equal to the last bit. The formulas are those of ``_attention_backward.py``, whose first
launch, the deltas of rows, comes before this one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._attention_backward_parts import base_2, load_rows
from autotune.kernels._masks import visible


@triton.jit
def listed_keys_gradient(
    q,
    k,
    v,
    d_out,
    lse,  # (batch, H, SQ) float32, contiguous
    delta,  # likewise
    dk,  # contiguous, as dv
    dv,
    offsets,  # lists of blocks by block column; see _block_mask.py
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
    BLOCK_M1: tl.constexpr,
    BLOCK_N1: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_M: tl.constexpr,  # no block reaches past the last row
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    LONGEST_FIRST: tl.constexpr,
):
    block_columns = tl.cdiv(SK, MASK_N)
    tiles = block_columns * (MASK_N // BLOCK_N1)
    tile = tl.program_id(0) % tiles
    kv_head = tl.program_id(0) // tiles % HKV
    batch = tl.program_id(0) // tiles // HKV
    mask_plane = batch % mask_batches * mask_heads
    block_column = tile // (MASK_N // BLOCK_N1)
    if LONGEST_FIRST:
        # By the lists of the group's first head.
        plane = mask_plane + kv_head * (H // HKV) % mask_heads
        block_column = tl.load(longest_first + plane * block_columns + block_column)
    first = block_column * MASK_N + tile % (MASK_N // BLOCK_N1) * BLOCK_N1
    if first >= SK:
        return

    columns = first + tl.arange(0, BLOCK_N1)
    columns_64 = columns.to(tl.int64)[:, None]
    inner, inner_v = tl.arange(0, BLOCK_D).to(tl.int64), tl.arange(0, BLOCK_DV).to(tl.int64)
    stored = (columns < SK)[:, None] & (inner < D)[None, :]
    stored_v = (columns < SK)[:, None] & (inner_v < DV)[None, :]
    batch_64, kv_head_64 = batch.to(tl.int64), kv_head.to(tl.int64)
    k += batch_64 * stride_kb + kv_head_64 * stride_kh
    v += batch_64 * stride_vb + kv_head_64 * stride_vh
    keys = tl.load(k + columns_64 * stride_kn + inner[None, :] * stride_kd, mask=stored, other=0.0)
    values = tl.load(v + columns_64 * stride_vn + inner_v[None, :] * stride_vd, mask=stored_v, other=0.0)
    documents = columns
    if DOCUMENTS:
        mask_batch = (batch % mask_batches).to(tl.int64)
        q_documents += mask_batch * SQ
        documents = tl.load(k_documents + mask_batch * SK + columns, mask=columns < SK, other=0)

    key_sums = tl.zeros((BLOCK_N1, BLOCK_D), dtype=tl.float32)
    value_sums = tl.zeros((BLOCK_N1, BLOCK_DV), dtype=tl.float32)
    for member in range(0, H // HKV):
        head = kv_head * (H // HKV) + member
        head_64 = head.to(tl.int64)
        one_q = q + batch_64 * stride_qb + head_64 * stride_qh
        one_d_out = d_out + batch_64 * stride_gb + head_64 * stride_gh
        row = (batch_64 * H + head_64) * SQ
        listed = (mask_plane + head % mask_heads) * block_columns + block_column
        start, split, end = tl.load(offsets + listed), tl.load(partial + listed), tl.load(offsets + listed + 1)
        key_sums, value_sums = _add_rows(
            key_sums, value_sums, keys, values, one_q, one_d_out, lse + row, delta + row, blocks,
            start, split, columns, documents, q_documents, score_scale, SQ, SK, D, DV, window,
            stride_qm, stride_qd, stride_gm, MASK_M, BLOCK_M1, BLOCK_D, BLOCK_DV, EVEN_M, EVEN_D, EVEN_DV,
            CAUSAL, WINDOW, DOCUMENTS, False,
        )  # fmt: skip
        key_sums, value_sums = _add_rows(
            key_sums, value_sums, keys, values, one_q, one_d_out, lse + row, delta + row, blocks,
            split, end, columns, documents, q_documents, score_scale, SQ, SK, D, DV, window,
            stride_qm, stride_qd, stride_gm, MASK_M, BLOCK_M1, BLOCK_D, BLOCK_DV, EVEN_M, EVEN_D, EVEN_DV,
            CAUSAL, WINDOW, DOCUMENTS, True,
        )  # fmt: skip

    row = (batch_64 * HKV + kv_head_64) * SK + columns_64
    tl.store(dk + row * D + inner[None, :], (key_sums * scale).to(dk.dtype.element_ty), mask=stored)
    tl.store(dv + row * DV + inner_v[None, :], value_sums.to(dv.dtype.element_ty), mask=stored_v)


@triton.jit
def _add_rows(
    key_sums,
    value_sums,
    keys,
    values,
    q,
    d_out,
    lse,
    delta,
    blocks,
    start,  # places in blocks
    end,
    columns,
    documents,
    q_documents,
    score_scale,
    SQ,
    SK,
    D,
    DV,
    window,
    stride_qm,
    stride_qd,
    stride_gm,
    MASK_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take blocks of queries of one head into the sums of a tile of keys. Tiles are keys x queries."""
    steps: tl.constexpr = MASK_M // BLOCK_M
    tile = tl.arange(0, BLOCK_M)
    inner, inner_v = tl.arange(0, BLOCK_D).to(tl.int64)[None, :], tl.arange(0, BLOCK_DV).to(tl.int64)[None, :]
    q_first = q + tile.to(tl.int64)[:, None] * stride_qm + inner * stride_qd
    d_out_first = d_out + tile.to(tl.int64)[:, None] * stride_gm + inner_v
    blocks += start
    # Counted from 0: there may be too many blocks to count steps of all in 32 bits.
    count = end - start
    block = tl.load(blocks, mask=count > 0, other=0)
    for step in range(0, count * steps):
        first = block * MASK_M + step % steps * BLOCK_M
        # One step ahead: a load of queries that waits for the number of its block would take the pipeline's stages.
        following = (step + 1) // steps
        block = tl.load(blocks + following, mask=following < count, other=0)
        rows = first + tile
        first_64 = first.to(tl.int64)
        exists = (rows < SQ)[:, None]
        queries = load_rows(q_first + first_64 * stride_qm, exists, inner < D, not EVEN_M, EVEN_D)
        gradients = load_rows(d_out_first + first_64 * stride_gm, exists, inner_v < DV, not EVEN_M, EVEN_DV)
        # Rows past the end, and those that saw no key, weigh exp(-inf) = 0.
        normalisers = base_2(tl.load(lse + rows, mask=rows < SQ, other=float("inf")))[None, :]
        deltas = tl.load(delta + rows, mask=rows < SQ, other=0.0)[None, :]

        scores = tl.dot(keys, tl.trans(queries), input_precision="ieee") * score_scale
        weights = tl.exp2(scores - normalisers)
        slopes = weights * (tl.dot(values, tl.trans(gradients), input_precision="ieee") - deltas)
        if MASKED:
            # Keys past the end have sums of their own, which nobody stores.
            seen = visible(rows[None, :], columns[:, None], SK, window, CAUSAL, WINDOW)
            if DOCUMENTS:
                of_rows = tl.load(q_documents + rows, mask=rows < SQ, other=0)
                seen = seen & (of_rows[None, :] == documents[:, None])
            weights = tl.where(seen, weights, 0.0)
            slopes = tl.where(seen, slopes, 0.0)
        value_sums = tl.dot(weights.to(gradients.dtype), gradients, value_sums, input_precision="ieee")
        key_sums = tl.dot(slopes.to(queries.dtype), queries, key_sums, input_precision="ieee")
    return key_sums, value_sums
