"""The gradients of block-sparse attention in plain torch, and by torch's own attention under a dense mask."""

from __future__ import annotations

import torch

from autotune.kernel import Provider
from autotune.kernels._block_mask import BlockMask
from autotune.kernels._block_mask_kept import kept
from autotune.kernels._block_sparse_attention_backward_operator import check_gradients
from autotune.kernels._block_sparse_attention_operator import check_values
from autotune.kernels._block_sparse_attention_problem import is_plain
from autotune.kernels._block_sparse_attention_reference import PROVIDERS as FORWARD_PROVIDERS

#: Scores held at a time, in a handful of tensors.
_SCORES = 2**23


def reference(
    d_out: torch.Tensor,  # (B, H, SQ, DV)
    d_lse: torch.Tensor | None,  # (B, H, SQ)
    q: torch.Tensor,  # (B, H, SQ, D)
    k: torch.Tensor,  # (B, HKV, SK, D)
    v: torch.Tensor,  # (B, HKV, SK, DV)
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: BlockMask,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv), the true gradient: ``out`` and ``lse`` are computed anew. In bounded memory.

    In 16 bits weights and slopes are rounded before they are multiplied, sums are float32.
    """
    check_gradients(d_out, d_lse, q, k, v, out, lse, mask, scale)
    check_values(mask)
    batch, heads, rows, head_dim = q.shape
    scale = max(1, head_dim) ** -0.5 if scale is None else scale
    kv_heads, columns = k.shape[1:3]
    dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = (torch.zeros(t.shape, dtype=wide, device=t.device) for t in (q, k, v))
    if 0 in (batch, rows, columns):
        return dq.to(dtype), dk.to(dtype), dv.to(dtype)
    group = heads // kv_heads
    step = max(1, min(rows, _SCORES // (columns * mask.batches * mask.heads)))
    for row in range(0, rows, step):
        some = slice(row, min(row + step, rows))
        hidden = ~mask.dense(some.start, some.stop)
        for one, head in ((one, head) for one in range(batch) for head in range(heads)):
            unseen = hidden[one % mask.batches, head % mask.heads]
            queries, gradient = q[one, head, some].to(wide), d_out[one, head, some].to(wide)
            keys, values = k[one, head // group].to(wide), v[one, head // group].to(wide)
            weights = (queries @ keys.mT * scale).masked_fill(unseen, float("-inf")).softmax(-1)
            # A row that sees nothing at all has the result 0, and so no gradient.
            weights = weights.masked_fill(unseen.all(1, keepdim=True), 0.0)
            rounded = weights.to(dtype).to(wide)
            # As the forward pass returns it.
            result = (rounded @ values).to(dtype).to(wide)
            delta = (gradient * result).sum(-1, keepdim=True)
            if d_lse is not None:
                delta = delta - d_lse[one, head, some, None]
            slopes = (weights * (gradient @ values.mT - delta)).to(dtype).to(wide)
            dv[one, head // group] += rounded.mT @ gradient
            dk[one, head // group] += slopes.mT @ queries * scale
            dq[one, head, some] = slopes @ keys * scale
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)


def sdpa(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: BlockMask,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv) by differentiating torch's attention, forward pass included, under a dense mask that is kept."""
    check_gradients(d_out, d_lse, q, k, v, out, lse, mask, scale)
    if d_lse is not None or not q.numel() or not k.numel():
        return reference(d_out, d_lse, q, k, v, out, lse, mask, scale)
    plain, group = is_plain(mask), q.shape[1] // k.shape[1]
    bias, blind = (None, None) if plain else kept(mask, f"open bias {q.dtype}", lambda mask: _bias(mask, q.dtype))
    if bias is not None:
        bias = bias.expand(*q.shape[:3], k.shape[2])
    if blind is not None:
        d_out = d_out.masked_fill(blind[..., None], 0.0)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if group > 1:
            k, v = (tensor.repeat_interleave(group, 1) for tensor in (k, v))
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, bias, is_causal=plain and mask.is_causal, scale=scale
        )

    # Operators run below torch.autograd, where its own functions record nothing.
    pull_back = torch.func.vjp(attend, q, k, v)[1]
    dq, dk, dv = pull_back(d_out)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def _bias(mask: BlockMask, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(batches, heads, SQ, SK): 0 where a key is seen, else -inf; and the rows that see none, if any do.

    These see all: a softmax over nothing is NaN, while a gradient of 0 has gradients of 0.
    """
    seen = mask.dense()
    blind = ~seen.any(-1)
    # Rows begin at multiples of 16 elements, as torch's kernels ask.
    room = torch.zeros((*seen.shape[:3], -(-seen.shape[3] // 16) * 16), dtype=dtype, device=seen.device)
    bias = room[..., : seen.shape[3]].masked_fill_(~(seen | blind[..., None]), float("-inf"))
    return bias, blind if bool(blind.any()) else None


PROVIDERS = {"sdpa": Provider(run=sdpa, unavailable=FORWARD_PROVIDERS["sdpa"].unavailable)}
