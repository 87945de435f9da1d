"""The gradients of attention in plain torch: what the kernels must compute, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from autotune.kernels._attention_reference import visible

#: Scores held at a time, in a handful of tensors.
_SCORES = 2**23


def gradients(
    d_out: torch.Tensor,  # (B, H, SQ, DV)
    d_lse: torch.Tensor | None,  # (B, H, SQ)
    q: torch.Tensor,  # (B, H, SQ, D)
    k: torch.Tensor,  # (B, HKV, SK, D)
    v: torch.Tensor,  # (B, HKV, SK, DV)
    *,
    scale: float | None,
    causal: bool,
    window: int,
    softcap: float | None,
    shift: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv), as :func:`masked_gradients`.

    :param window: 0 for none
    :param shift: position of the first query among the keys.
    """
    keys = torch.arange(k.shape[2], device=q.device)

    def hidden(first: int, end: int) -> torch.Tensor:
        positions = torch.arange(first, end, device=q.device)[:, None] + shift
        return ~visible(positions, keys, causal, window)[None, None]

    return masked_gradients(d_out, d_lse, q, k, v, hidden, scale=scale, softcap=softcap)


def masked_gradients(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    hidden: Callable[[int, int], torch.Tensor],
    *,
    planes: int = 1,
    scale: float | None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv). In 16 bits weights and slopes are rounded before they are multiplied, sums are float32.

    :param hidden: (first, end) -> (batches, heads, queries first to end, SK) bool: which keys a query does not see;
        batches are 1 or B, heads 1 or H
    :param planes: batches x heads of ``hidden``.
    """
    batch, heads, rows, head_dim = q.shape
    scale = max(1, head_dim) ** -0.5 if scale is None else scale
    kv_heads, columns = k.shape[1:3]
    dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = (torch.zeros(t.shape, dtype=wide, device=t.device) for t in (q, k, v))
    if 0 in (batch, heads, rows, columns):
        return dq.to(dtype), dk.to(dtype), dv.to(dtype)
    group = heads // kv_heads
    step = max(1, min(rows, _SCORES // (columns * planes)))
    for row in range(0, rows, step):
        some = slice(row, min(row + step, rows))
        unseen = hidden(some.start, some.stop).expand(batch, heads, -1, -1)
        for one, head in ((one, head) for one in range(batch) for head in range(heads)):
            queries, gradient = q[one, head, some].to(wide), d_out[one, head, some].to(wide)
            keys, values = k[one, head // group].to(wide), v[one, head // group].to(wide)
            scores = queries @ keys.mT * scale
            slope: torch.Tensor | float = 1.0
            if softcap is not None:
                scores = (scores / softcap).tanh()
                slope = 1 - scores.square()
                scores = softcap * scores
            weights = scores.masked_fill(unseen[one, head], float("-inf")).softmax(-1)
            # A row that sees nothing at all has the result 0, and so no gradient.
            weights = weights.masked_fill(unseen[one, head].all(1, keepdim=True), 0.0)
            rounded = weights.to(dtype).to(wide)
            # As the forward pass returns it.
            out = (rounded @ values).to(dtype).to(wide)
            delta = (gradient * out).sum(-1, keepdim=True)
            if d_lse is not None:
                delta = delta - d_lse[one, head, some, None]
            slopes = (weights * (gradient @ values.mT - delta) * slope).to(dtype).to(wide)
            dv[one, head // group] += rounded.mT @ gradient
            dk[one, head // group] += slopes.mT @ queries * scale
            dq[one, head, some] = slopes @ keys * scale
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)
