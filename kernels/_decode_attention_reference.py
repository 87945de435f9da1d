"""``decode_attention`` in plain torch: what is right, and what torch users run."""

from __future__ import annotations

import torch

from autotune.arithmetic import cdiv
from autotune.kernels._decode_attention_operator import check, check_values


def reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    check(q, k_cache, v_cache, seq_lens, block_table, scale, window)
    check_values(k_cache, seq_lens, block_table, window)
    kv_heads, size = k_cache.shape[2], k_cache.shape[1]
    out = q.new_zeros((*q.shape[:3], v_cache.shape[3]))
    if out.numel() == 0:
        return out
    for sequence, length in enumerate(seq_lens.tolist()):
        oldest = 0 if window is None else max(0, length - window)
        if length == 0:
            continue
        if block_table is None:
            seen = (cache[sequence, oldest:length] for cache in (k_cache, v_cache))
        else:
            first = oldest // size
            pages = block_table[sequence, first : cdiv(length, size)].long()
            inside = slice(oldest - first * size, length - first * size)
            seen = (cache[pages].flatten(0, 1)[inside] for cache in (k_cache, v_cache))
        keys, values = (tensor.transpose(0, 1).unsqueeze(0) for tensor in seen)
        out[sequence] = torch.nn.functional.scaled_dot_product_attention(
            q[sequence].transpose(0, 1).unsqueeze(0), keys, values, scale=scale, enable_gqa=q.shape[2] != kv_heads
        )[0].transpose(0, 1)
    return out


def baseline(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Pages gathered, all of the capacity attended to, and the rest masked; no sequence may be empty."""
    if block_table is not None:
        pages = block_table.clamp(min=0).long()
        k_cache, v_cache = (cache[pages].flatten(1, 2) for cache in (k_cache, v_cache))
    behind = seq_lens[:, None] - torch.arange(k_cache.shape[1], device=q.device)
    seen = behind > 0 if window is None else (behind > 0) & (behind <= window)
    return torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k_cache.transpose(1, 2),
        v_cache.transpose(1, 2),
        attn_mask=seen[:, None, None],
        scale=scale,
        enable_gqa=q.shape[2] != k_cache.shape[2],
    ).transpose(1, 2)
