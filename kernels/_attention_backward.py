"""The gradients of attention, in three launches: deltas of the rows, then keys and values, then queries.

With p = exp(score - lse), as the forward pass left them behind, and dp = d_out v^T:

    delta = rowsum(d_out * out) - d_lse        ds = p * (dp - delta), by the derivative of a soft cap
    dv = p^T d_out        dk = scale * ds^T q        dq = scale * ds k

One program owns a tile of keys, of all query heads that share them, and another a tile of queries: each sums in
one order, so results are equal to the last bit. p and ds are rounded to the dtype of q before they are multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._attention_backward_parts import base_2, cap_slope, load_rows, row_range
from autotune.kernels._masks import score, sequence, visible


@triton.jit
def row_deltas(
    d_out,  # (batch, H, LENGTH, DV), as out; their last strides are 1
    out,
    d_lse,  # (batch, H, LENGTH) float32, contiguous; not read unless HAS_D_LSE
    delta,  # (batch, H, LENGTH) float32, contiguous
    H,
    LENGTH,
    DV,
    stride_gb,
    stride_gh,
    stride_gm,
    stride_ob,
    stride_oh,
    stride_om,
    ROWS: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_D_LSE: tl.constexpr,
):
    tiles = tl.cdiv(LENGTH, ROWS)
    plane = tl.program_id(0) // tiles
    rows = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    rows_64 = rows.to(tl.int64)[:, None]
    batch, head = (plane // H).to(tl.int64), (plane % H).to(tl.int64)
    inner = tl.arange(0, BLOCK_DV).to(tl.int64)[None, :]
    stored = (rows < LENGTH)[:, None] & (inner < DV)
    gradients = tl.load(
        d_out + batch * stride_gb + head * stride_gh + rows_64 * stride_gm + inner, mask=stored, other=0.0
    )
    results = tl.load(
        out + batch * stride_ob + head * stride_oh + rows_64 * stride_om + inner, mask=stored, other=0.0
    )
    sums = tl.sum(gradients.to(tl.float32) * results.to(tl.float32), 1)
    place = plane.to(tl.int64) * LENGTH + rows
    if HAS_D_LSE:
        sums -= tl.load(d_lse + place, mask=rows < LENGTH, other=0.0)
    tl.store(delta + place, sums, mask=rows < LENGTH)


@triton.jit
def keys_gradient(
    q,
    k,
    v,
    d_out,
    lse,  # rows of a (batch, head) one after the other
    delta,  # likewise
    dk,
    dv,
    cu_q,  # where VARLEN: (sequences + 1), the first row of each; k's in cu_k
    cu_k,
    score_scale,
    cap_log2,
    scale,
    H,
    HKV,
    SQ,  # where VARLEN: of the longest sequence, as SK
    SK,
    D,
    DV,
    window,
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
    stride_lb,  # of lse and delta
    stride_lh,
    stride_dkb,  # of dk and of dv, in rows
    stride_dkh,
    stride_dkn,
    BLOCK_M1: tl.constexpr,
    BLOCK_N1: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    VARLEN: tl.constexpr,
):
    tiles = tl.cdiv(SK, BLOCK_N1)
    first = tl.program_id(0) % tiles * BLOCK_N1
    head = (tl.program_id(0) // tiles % HKV).to(tl.int64)
    batch = (tl.program_id(0) // tiles // HKV).to(tl.int64)
    shift = 0
    if VARLEN:
        q_start, SQ = sequence(cu_q, batch)
        k_start, SK = sequence(cu_k, batch)
        shift = SK - SQ
        if first >= SK:
            return
        q += q_start * stride_qm
        d_out += q_start * stride_gm
        lse += q_start
        delta += q_start
        k += k_start * stride_kn
        v += k_start * stride_vn
        dk += k_start * stride_dkn * D
        dv += k_start * stride_dkn * DV

    columns = first + tl.arange(0, BLOCK_N1)
    columns_64 = columns.to(tl.int64)[:, None]
    inner, inner_v = tl.arange(0, BLOCK_D).to(tl.int64), tl.arange(0, BLOCK_DV).to(tl.int64)
    stored = (columns < SK)[:, None] & (inner < D)[None, :]
    stored_v = (columns < SK)[:, None] & (inner_v < DV)[None, :]
    k += batch * stride_kb + head * stride_kh
    v += batch * stride_vb + head * stride_vh
    keys = tl.load(k + columns_64 * stride_kn + inner[None, :] * stride_kd, mask=stored, other=0.0)
    values = tl.load(v + columns_64 * stride_vn + inner_v[None, :] * stride_vd, mask=stored_v, other=0.0)

    start, whole, edge, end = row_range(
        first, tl.minimum(first + BLOCK_N1, SK) - 1, SQ, shift, window, BLOCK_M1, CAUSAL, WINDOW
    )
    key_sums = tl.zeros((BLOCK_N1, BLOCK_D), dtype=tl.float32)
    value_sums = tl.zeros((BLOCK_N1, BLOCK_DV), dtype=tl.float32)
    for member in range(0, H // HKV):
        q_head = head * (H // HKV) + member
        one_q = q + batch * stride_qb + q_head * stride_qh
        one_d_out = d_out + batch * stride_gb + q_head * stride_gh
        one_lse = lse + batch * stride_lb + q_head * stride_lh
        one_delta = delta + batch * stride_lb + q_head * stride_lh
        # Those that need a mask, at both ends, then those between.
        key_sums, value_sums = _add_rows(
            key_sums, value_sums, keys, values, one_q, one_d_out, one_lse, one_delta,
            start, whole - start, edge - whole, whole - start + end - edge, columns,
            score_scale, cap_log2, SQ, SK, D, DV, shift, window, stride_qm, stride_qd, stride_gm,
            BLOCK_M1, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, SOFTCAP, True,
        )  # fmt: skip
        key_sums, value_sums = _add_rows(
            key_sums, value_sums, keys, values, one_q, one_d_out, one_lse, one_delta,
            whole, 0, 0, edge - whole, columns,
            score_scale, cap_log2, SQ, SK, D, DV, shift, window, stride_qm, stride_qd, stride_gm,
            BLOCK_M1, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, SOFTCAP, False,
        )  # fmt: skip

    row = batch * stride_dkb + head * stride_dkh + columns_64 * stride_dkn
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
    start,  # queries: [start, start + before), and after a gap others up to a total of count
    before,
    gap,
    count,
    columns,
    score_scale,
    cap_log2,
    SQ,
    SK,
    D,
    DV,
    shift,
    window,
    stride_qm,
    stride_qd,
    stride_gm,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take queries of one head into the sums of a tile of keys. Tiles are keys x queries."""
    block = tl.arange(0, BLOCK_M)
    inner, inner_v = tl.arange(0, BLOCK_D).to(tl.int64)[None, :], tl.arange(0, BLOCK_DV).to(tl.int64)[None, :]
    q_first = q + block.to(tl.int64)[:, None] * stride_qm + inner * stride_qd
    d_out_first = d_out + block.to(tl.int64)[:, None] * stride_gm + inner_v
    for step in range(0, count, BLOCK_M):
        first = start + step
        if MASKED:
            first += tl.where(step < before, 0, gap)
        rows = first + block
        first_64 = tl.zeros((), dtype=tl.int64) + first
        exists = (rows < SQ)[:, None]
        queries = load_rows(q_first + first_64 * stride_qm, exists, inner < D, MASKED, EVEN_D)
        gradients = load_rows(d_out_first + first_64 * stride_gm, exists, inner_v < DV, MASKED, EVEN_DV)
        # Rows past the end, and those that saw no key, weigh exp(-inf) = 0.
        normalisers = base_2(tl.load(lse + rows, mask=rows < SQ, other=float("inf")))[None, :]
        deltas = tl.load(delta + rows, mask=rows < SQ, other=0.0)[None, :]

        products = tl.dot(keys, tl.trans(queries), input_precision="ieee")
        scores = score(products, score_scale, cap_log2, SOFTCAP)
        weights = tl.exp2(scores - normalisers)
        slopes = weights * (tl.dot(values, tl.trans(gradients), input_precision="ieee") - deltas)
        if SOFTCAP:
            slopes *= cap_slope(scores, cap_log2)
        if MASKED:
            # Keys past the end have sums of their own, which nobody stores.
            seen = visible((rows + shift)[None, :], columns[:, None], SK, window, CAUSAL, WINDOW)
            weights = tl.where(seen, weights, 0.0)
            slopes = tl.where(seen, slopes, 0.0)
        value_sums = tl.dot(weights.to(gradients.dtype), gradients, value_sums, input_precision="ieee")
        key_sums = tl.dot(slopes.to(queries.dtype), queries, key_sums, input_precision="ieee")
    return key_sums, value_sums
