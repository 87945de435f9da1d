"""The gradients of block-sparse attention in plain torch, and by torch's own attention under a dense mask."""

from __future__ import annotations

import torch

from autotune.kernel import Provider
from autotune.kernels._attention_backward_reference import masked_gradients
from autotune.kernels._block_mask import BlockMask
from autotune.kernels._block_sparse_attention_backward_operator import check_gradients
from autotune.kernels._block_sparse_attention_operator import check_values
from autotune.kernels._block_sparse_attention_problem import fullness
from autotune.kernels._block_sparse_attention_reference import PROVIDERS as FORWARD_PROVIDERS
from autotune.kernels._block_sparse_attention_reference import dense_bias


def reference(
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
    """(dq, dk, dv), the true gradient: ``out`` and ``lse`` are computed anew. In bounded memory."""
    check_gradients(d_out, d_lse, q, k, v, out, lse, mask, scale)
    check_values(mask)
    planes = mask.batches * mask.heads
    return masked_gradients(
        d_out, d_lse, q, k, v, lambda first, end: ~mask.dense(first, end), planes=planes, scale=scale
    )


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
    (_, plain), group = fullness(mask), q.shape[1] // k.shape[1]
    bias, blind = (None, None) if plain else dense_bias(q, mask)
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


PROVIDERS = {"sdpa": Provider(run=sdpa, unavailable=FORWARD_PROVIDERS["sdpa"].unavailable)}
