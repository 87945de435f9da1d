"""Device code of ``decode_attention``: each split's share of the keys, and the sum over splits."""

from __future__ import annotations

import triton
import triton.language as tl

from autotune.kernels._softmax import online_softmax


@triton.jit
def attend_split(
    q,  # (B, 1, H, D), the last dimension contiguous
    k,  # (B, SK, HKV, D), or paged (pages, PAGE, HKV, D)
    v,  # likewise, with DV
    out,  # (B, H, DV); with several splits (B, H, SPLIT_KV, DV) float32
    lse,  # (B, H, SPLIT_KV) float32: log2 of a split's sum of exponentials; not written by a single split
    seq_lens,  # (B,)
    block_table,  # (B, pages of a sequence), the last dimension contiguous; not read where PAGE is 0
    scale_log2,
    window,  # at least 1; the capacity where all keys are seen
    HKV,
    stride_qb,
    stride_qh,
    stride_kb,
    stride_kn,
    stride_kh,
    stride_kd,
    stride_vb,
    stride_vn,
    stride_vh,
    stride_vd,
    stride_tb,
    GROUP: tl.constexpr,  # query heads that share one of keys
    D: tl.constexpr,
    DV: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT_KV: tl.constexpr,
):
    """One program: BLOCK_H heads of one group, over one split's blocks of keys."""
    tiles: tl.constexpr = (GROUP + BLOCK_H - 1) // BLOCK_H
    tile = tl.program_id(0) % tiles
    kv_head = tl.program_id(0) // tiles % HKV
    split = tl.program_id(0) // tiles // HKV % SPLIT_KV
    batch = (tl.program_id(0) // tiles // HKV // SPLIT_KV).to(tl.int64)

    # All blocks that hold a visible key, shared out as evenly as whole blocks can be; late splits may have none.
    seq_len = tl.load(seq_lens + batch).to(tl.int32)
    oldest = tl.maximum(seq_len - window, 0)
    first_block = oldest // BLOCK_N
    blocks = tl.cdiv(seq_len, BLOCK_N) - first_block
    each, more = blocks // SPLIT_KV, blocks % SPLIT_KV
    first = first_block + split * each + tl.minimum(split, more)
    last = first + each + (split < more).to(tl.int32)

    member = tile * BLOCK_H + tl.arange(0, BLOCK_H)
    head = (kv_head * GROUP + member).to(tl.int64)
    inner = tl.arange(0, BLOCK_D).to(tl.int64)
    column = tl.arange(0, BLOCK_DV).to(tl.int64)
    real = (member < GROUP)[:, None]
    q_tile = q + batch * stride_qb + head[:, None] * stride_qh + inner[None, :]
    queries = tl.load(q_tile, mask=real & (inner < D)[None, :], other=0.0)
    k_head = k + kv_head.to(tl.int64) * stride_kh + inner[:, None] * stride_kd
    v_head = v + kv_head.to(tl.int64) * stride_vh + column[None, :] * stride_vd
    table = block_table + batch * stride_tb

    accumulator = tl.zeros((BLOCK_H, BLOCK_DV), dtype=tl.float32)
    row_max = tl.full((BLOCK_H,), float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros((BLOCK_H,), dtype=tl.float32)
    page = _page(first * BLOCK_N, seq_len, oldest, batch, table, PAGE, BLOCK_N)
    for start in range(first * BLOCK_N, last * BLOCK_N, BLOCK_N):
        positions = start + tl.arange(0, BLOCK_N)
        seen = (positions >= oldest) & (positions < seq_len)
        row = (positions if PAGE == 0 else positions % PAGE).to(tl.int64)
        k_tile = k_head + (page * stride_kb + row * stride_kn)[None, :]
        keys = tl.load(k_tile, mask=seen[None, :] & (inner < D)[:, None], other=0.0)
        v_tile = v_head + (page * stride_vb + row * stride_vn)[:, None]
        values = tl.load(v_tile, mask=seen[:, None] & (column < DV)[None, :], other=0.0)
        # One block ahead: a load of keys that waits for its page's number would take the pipeline's stages.
        page = _page(start + BLOCK_N, seq_len, oldest, batch, table, PAGE, BLOCK_N)
        scores = tl.dot(queries, keys, input_precision="ieee") * scale_log2
        scores = tl.where(seen[None, :], scores, float("-inf"))
        accumulator, row_max, row_sum = online_softmax(accumulator, row_max, row_sum, scores, values)

    # No key at all: the sum is 0, and so is the result.
    total = tl.where(row_sum == 0.0, 1.0, row_sum)
    result = (accumulator / total[:, None]).to(out.dtype.element_ty)
    place = (batch * HKV * GROUP + head) * SPLIT_KV + split
    tl.store(out + place[:, None] * DV + column[None, :], result, mask=real & (column < DV)[None, :])
    if SPLIT_KV > 1:
        tl.store(lse + place, row_max + tl.log2(total), mask=member < GROUP)


@triton.jit
def _page(start, seq_len, oldest, batch, table, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The page of each key of a block, or of all; a contiguous cache has one for each sequence."""
    if PAGE == 0:
        page = batch
    elif PAGE % BLOCK_N == 0:
        page = tl.load(table + start // PAGE, mask=start < seq_len, other=0).to(tl.int64)
    else:
        positions = start + tl.arange(0, BLOCK_N)
        seen = (positions >= oldest) & (positions < seq_len)
        page = tl.load(table + positions // PAGE, mask=seen, other=0).to(tl.int64)
    return page


@triton.jit
def sum_splits(
    partial,  # (B, H, SPLIT_KV, DV) float32
    lse,  # (B, H, SPLIT_KV) float32
    out,  # (B, H, DV)
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SPLIT_KV: tl.constexpr,
):
    """One program: one head of one sequence. Splits without keys weigh nothing; without any the result is 0."""
    head = tl.program_id(0).to(tl.int64)
    place = head * SPLIT_KV + tl.arange(0, SPLIT_KV)
    column = tl.arange(0, BLOCK_DV)
    stored = column < DV
    logs = tl.load(lse + place)
    results = tl.load(partial + place[:, None] * DV + column[None, :], mask=stored[None, :], other=0.0)

    most = tl.max(logs, 0)
    weights = tl.exp2(logs - tl.where(most == float("-inf"), 0.0, most))
    total = tl.sum(weights, 0)
    result = tl.sum(results * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out + head * DV + column, result.to(out.dtype.element_ty), mask=stored)
