"""The gradient of attention's queries: one program sums over the keys that a tile of queries sees."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._attention_backward_parts import base_2, cap_slope, load_rows
from autotune.kernels._masks import key_range, score, sequence, visible


@triton.jit
def queries_gradient(
    q,
    k,
    v,
    d_out,
    lse,  # rows of a (batch, head) one after the other
    delta,  # likewise
    dq,
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
    stride_dqb,
    stride_dqh,
    stride_dqm,
    BLOCK_M2: tl.constexpr,
    BLOCK_N2: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    VARLEN: tl.constexpr,
):
    tiles = tl.cdiv(SQ, BLOCK_M2)
    tile = tl.program_id(0) % tiles
    if CAUSAL:
        # The last rows see the most keys: start them first.
        tile = tiles - 1 - tile
    first = tile * BLOCK_M2
    head = (tl.program_id(0) // tiles % H).to(tl.int64)
    batch = (tl.program_id(0) // tiles // H).to(tl.int64)
    kv_head = head // (H // HKV)
    shift = 0
    if VARLEN:
        q_start, SQ = sequence(cu_q, batch)
        k_start, SK = sequence(cu_k, batch)
        shift = SK - SQ
        if first >= SQ:
            return
        q += q_start * stride_qm
        d_out += q_start * stride_gm
        lse += q_start
        delta += q_start
        dq += q_start * stride_dqm
        k += k_start * stride_kn
        v += k_start * stride_vn

    rows = first + tl.arange(0, BLOCK_M2)
    rows_64 = rows.to(tl.int64)[:, None]
    inner, inner_v = tl.arange(0, BLOCK_D).to(tl.int64)[None, :], tl.arange(0, BLOCK_DV).to(tl.int64)[None, :]
    exists = rows < SQ
    stored = exists[:, None] & (inner < D)
    q += batch * stride_qb + head * stride_qh
    d_out += batch * stride_gb + head * stride_gh
    place = batch * stride_lb + head * stride_lh + rows
    queries = tl.load(q + rows_64 * stride_qm + inner * stride_qd, mask=stored, other=0.0)
    gradients = tl.load(d_out + rows_64 * stride_gm + inner_v, mask=exists[:, None] & (inner_v < DV), other=0.0)
    normalisers = base_2(tl.load(lse + place, mask=exists, other=float("inf")))[:, None]
    deltas = tl.load(delta + place, mask=exists, other=0.0)[:, None]
    k += batch * stride_kb + kv_head * stride_kh
    v += batch * stride_vb + kv_head * stride_vh

    positions = rows + shift
    start, whole, edge, end = key_range(
        first + shift, tl.minimum(first + BLOCK_M2, SQ) - 1 + shift, SK, window, BLOCK_N2, CAUSAL, WINDOW
    )
    sums = tl.zeros((BLOCK_M2, BLOCK_D), dtype=tl.float32)
    if WINDOW:
        sums = _add_keys(
            sums, queries, gradients, normalisers, deltas, k, v, start, whole, positions, score_scale, cap_log2,
            SK, D, DV, window, stride_kn, stride_kd, stride_vn, stride_vd,
            BLOCK_N2, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, SOFTCAP, True,
        )  # fmt: skip
    sums = _add_keys(
        sums, queries, gradients, normalisers, deltas, k, v, whole, edge, positions, score_scale, cap_log2,
        SK, D, DV, window, stride_kn, stride_kd, stride_vn, stride_vd,
        BLOCK_N2, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, SOFTCAP, False,
    )  # fmt: skip
    sums = _add_keys(
        sums, queries, gradients, normalisers, deltas, k, v, edge, end, positions, score_scale, cap_log2,
        SK, D, DV, window, stride_kn, stride_kd, stride_vn, stride_vd,
        BLOCK_N2, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, SOFTCAP, True,
    )  # fmt: skip
    dq_tile = dq + batch * stride_dqb + head * stride_dqh + rows_64 * stride_dqm + inner
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
    start,
    end,
    positions,
    score_scale,
    cap_log2,
    SK,
    D,
    DV,
    window,
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
    MASKED: tl.constexpr,
):
    """Take the keys [start, end) into the sums of a tile of queries. Tiles are queries x keys."""
    block = tl.arange(0, BLOCK_N)
    inner, inner_v = tl.arange(0, BLOCK_D).to(tl.int64)[None, :], tl.arange(0, BLOCK_DV).to(tl.int64)[None, :]
    k_first = k + block.to(tl.int64)[:, None] * stride_kn + inner * stride_kd
    v_first = v + block.to(tl.int64)[:, None] * stride_vn + inner_v * stride_vd
    for first in range(start, end, BLOCK_N):
        columns = first + block
        first_64 = tl.zeros((), dtype=tl.int64) + first
        exists = (columns < SK)[:, None]
        keys = load_rows(k_first + first_64 * stride_kn, exists, inner < D, MASKED, EVEN_D)
        values = load_rows(v_first + first_64 * stride_vn, exists, inner_v < DV, MASKED, EVEN_DV)

        products = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        scores = score(products, score_scale, cap_log2, SOFTCAP)
        slopes = tl.exp2(scores - normalisers)
        slopes *= tl.dot(gradients, tl.trans(values), input_precision="ieee") - deltas
        if SOFTCAP:
            slopes *= cap_slope(scores, cap_log2)
        if MASKED:
            seen = visible(positions[:, None], columns[None, :], SK, window, CAUSAL, WINDOW)
            slopes = tl.where(seen, slopes, 0.0)
        sums = tl.dot(slopes.to(keys.dtype), keys, sums, input_precision="ieee")
    return sums
