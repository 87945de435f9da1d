"""The torch side of ``attention``: the operator, its gradient, and the torch calls it stands in for."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernel import Operator, Serves

aten = torch.ops.aten


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; attention takes (batch, heads, seq, head_dim)"
            )
    if k.shape != v.shape:
        raise ValueError(f"k is {tuple(k.shape)} and v is {tuple(v.shape)}; their shapes must be equal")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q is {tuple(q.shape)} and k is {tuple(k.shape)}; batch and head_dim must be equal")
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        raise ValueError(f"q has {heads} heads and k has {kv_heads}; the heads of k must divide those of q")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        kinds = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in (q, k, v))
        raise ValueError(f"q, k and v are {kinds}; convert them to one")


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """softmax(scale * q k^T) v, like torch.nn.functional.scaled_dot_product_attention.

    :param q: (batch, heads, seq_q, head_dim)
    :param k: (batch, kv_heads, seq_k, head_dim), kv_heads dividing heads; ``v`` likewise
    :param causal: query i sees keys 0 to i (top-left, as torch does)
    :param scale: default head_dim ** -0.5

    float16, bfloat16 and float32 with head_dim up to 256 run the tuned kernel, others torch's. A query
    without keys gives 0. Accumulates in float32, whatever autocast says. Differentiable in reverse mode.

    :raises ValueError: if shapes, head counts, dtypes or devices don't fit together.
    """
    check(q, k, v)
    result: torch.Tensor = torch.ops.autotune.attention(q, k, v, causal, scale)
    return result


def _fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    return q.new_empty(q.shape)


def _backward(
    gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float | None
) -> tuple[torch.Tensor | None, ...]:
    """The textbook gradient in plain torch, with the whole score matrix in memory, in float32 or wider."""
    dtype, shape = q.dtype, k.shape
    batch, heads, rows, head_dim = q.shape
    kv_heads, columns = k.shape[1], k.shape[2]
    if kv_heads == 0 or columns == 0 or head_dim == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), None, None
    wide = torch.promote_types(dtype, torch.float32)
    group = heads // kv_heads
    scale = head_dim**-0.5 if scale is None else scale
    # (batch, kv_heads, group, seq, head_dim); the keys are shared over the group.
    q, gradient = (t.to(wide).reshape(batch, kv_heads, group, rows, head_dim) for t in (q, gradient))
    k, v = (t.to(wide).unsqueeze(2) for t in (k, v))
    scores = q @ k.mT * scale
    if causal:
        hidden = torch.ones(rows, columns, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    # A row that sees nothing at all has the result 0, and so no gradient.
    weights = scores.softmax(-1).masked_fill(scores.amax(-1, keepdim=True) == float("-inf"), 0.0)
    grad_weights = gradient @ v.mT
    grad_scores = weights * (grad_weights - (grad_weights * weights).sum(-1, keepdim=True)) * scale
    grad_q = (grad_scores @ k).reshape(batch, heads, rows, head_dim)
    grad_k = (grad_scores.mT @ q).sum(2).reshape(shape)
    grad_v = (weights.mT @ gradient).sum(2).reshape(shape)
    return grad_q.to(dtype), grad_k.to(dtype), grad_v.to(dtype), None, None


def _sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Any, ...] | str:
    if attn_mask is not None:
        return "a mask is given"
    if dropout_p:
        return "dropout is on"
    if any(t.layout != torch.strided or t.is_nested for t in (q, k, v)):
        return "q, k or v is sparse or nested"
    if q.dim() != 4 or k.shape != v.shape or q.shape[0] != k.shape[0]:
        return "shapes are not (batch, heads, seq, head_dim) with equal k and v"
    if k.shape[1] != q.shape[1] and not enable_gqa:
        return "heads broadcast without enable_gqa"
    return q, k, v, is_causal, scale


def _flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *more: Any,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
    **kwargs: Any,
) -> tuple[Any, ...] | str:
    return _sdpa(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)


def _efficient(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_bias: torch.Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *more: Any,
    scale: float | None = None,
) -> tuple[Any, ...] | str:
    return _sdpa(q, k, v, attn_bias, dropout_p, is_causal, scale=scale)


OPERATOR = Operator(
    front=attention,
    schema="(Tensor q, Tensor k, Tensor v, bool causal=False, float? scale=None) -> Tensor",
    fake=_fake,
    backward=_backward,
)

SERVES = {
    torch.nn.functional.scaled_dot_product_attention: Serves(_sdpa),
    # What torch.nn.MultiheadAttention and other callers inside torch come down to.
    aten.scaled_dot_product_attention: Serves(_sdpa),
    aten._scaled_dot_product_flash_attention: Serves(_flash),
    aten._scaled_dot_product_flash_attention_for_cpu: Serves(_flash),
    aten._scaled_dot_product_efficient_attention: Serves(_efficient),
    aten._scaled_dot_product_cudnn_attention: Serves(_efficient),
}
