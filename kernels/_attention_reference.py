"""Attention in plain torch: what the kernels must compute, in memory that is bounded whatever the sizes."""

from __future__ import annotations

import torch

from autotune.kernels._attention_operator import check
from autotune.kernels._masks import binding_window, score_factors

#: Scores held at a time.
_SCORES = 2**24


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    check(q, k, v)
    return attend(
        *(q, k, v),
        causal=causal,
        scale=scale,
        window=binding_window(window, q.shape[2], k.shape[2]),
        softcap=softcap,
    )


def baseline(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """torch's own attention, with a mask for a window, and without lse; the reference under a soft cap."""
    if softcap is not None:
        return reference(q, k, v, causal, scale, window, softcap)[0]
    bound = binding_window(window, q.shape[2], k.shape[2])
    mask = None
    if bound:
        rows, columns = (torch.arange(t.shape[2], device=q.device) for t in (q, k))
        mask = visible(rows[:, None], columns, causal, bound)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal and mask is None, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
    )


def attend(
    q: torch.Tensor,  # (B, H, SQ, D)
    k: torch.Tensor,  # (B, HKV, SK, D)
    v: torch.Tensor,  # (B, HKV, SK, DV)
    *,
    scale: float | None,
    causal: bool,
    window: int,
    softcap: float | None,
    shift: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) in float64 if the arguments are, else out in their dtype and lse in float32.

    :param window: 0 for none
    :param shift: position of the first query among the keys
    :raises ValueError: if the scale or the cap breaks its rule.
    """
    score_factors(scale, softcap, 1)  # only for its checks
    batch, heads, rows, head_dim = q.shape
    kv_heads, columns = k.shape[1:3]
    scale = max(1, head_dim) ** -0.5 if scale is None else scale
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_zeros((batch, heads, rows, v.shape[3]))
    lse = q.new_full((batch, heads, rows), float("-inf"), dtype=wide)
    if not out.numel() or not columns:
        return out, lse
    group = heads // kv_heads
    # One first dimension of batch x kv_heads; the keys are shared over the group.
    q = q.reshape(batch * kv_heads, group, rows, head_dim)
    k = k.reshape(batch * kv_heads, 1, columns, head_dim)
    v = v.reshape(batch * kv_heads, 1, columns, v.shape[3])
    flat_out, flat_lse = out.view(len(q), group, rows, -1), lse.view(len(q), group, rows)
    step = max(1, min(rows, _SCORES // (group * columns)))
    heads_step = max(1, _SCORES // (group * columns * step))
    keys = torch.arange(columns, device=q.device)
    for row in range(0, rows, step):
        some = slice(row, row + step)
        positions = torch.arange(row, min(row + step, rows), device=q.device)[:, None] + shift
        hidden = ~visible(positions, keys, causal, window)
        blind = hidden.all(1)
        for head in range(0, len(q), heads_step):
            these = slice(head, head + heads_step)
            scores = q[these, :, some].to(wide) @ k[these].to(wide).mT * scale
            if softcap is not None:
                scores = softcap * (scores / softcap).tanh()
            scores.masked_fill_(hidden, float("-inf"))
            flat_lse[these, :, some] = scores.logsumexp(-1)
            weights = scores.softmax(-1).masked_fill(blind[:, None], 0.0)
            # Rounded before the second product, as torch's own kernels and everybody's do.
            flat_out[these, :, some] = (weights.to(q.dtype).to(wide) @ v[these].to(wide)).to(q.dtype)
    return out, lse


def visible(positions: torch.Tensor, keys: torch.Tensor, causal: bool, window: int) -> torch.Tensor:
    """Boolean, of the broadcast shape: whether the query at a position sees a key."""
    seen = torch.ones(torch.broadcast_shapes(positions.shape, keys.shape), dtype=torch.bool, device=keys.device)
    if causal:
        seen &= keys <= positions
    if window:
        seen &= (positions - keys).abs() < window
    return seen


def seen_pairs(rows: int, columns: int, causal: bool, window: int, shift: int = 0) -> int:
    """How many (query, key) pairs :func:`visible` holds for."""
    hidden = 0
    if causal or window:
        hidden += _pairs_from(columns, rows, shift + (1 if causal else window))
    if window:
        hidden += _pairs_from(rows, columns, window - shift)
    return rows * columns - hidden


def _pairs_from(count: int, others: int, distance: int) -> int:
    """How many (i < count, j < others) have i - j >= distance."""

    def ramp(steps: int) -> int:
        short = max(0, min(steps, others))
        return short * (short + 1) // 2 + max(0, steps - others) * others

    return ramp(count - distance) - ramp(-distance)
