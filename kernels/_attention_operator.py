"""The torch side of ``attention``: the operator, its gradient, and the torch calls it stands in for."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernel import Operator, Serves
from autotune.kernels._masks import binding_window, score_factors

aten = torch.ops.aten


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; attention takes (batch, heads, seq, head_dim)"
            )
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k is {tuple(k.shape)} and v is {tuple(v.shape)}; all but their last sizes must be equal")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q is {tuple(q.shape)} and k is {tuple(k.shape)}; batch and head_dim must be equal")
    check_heads_and_kinds(q, k, v)


def check_heads_and_kinds(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """:raises ValueError: if head counts (of dimension 1), dtypes or devices don't fit together."""
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        raise ValueError(f"q has {heads} heads and k has {kv_heads}; the heads of k must divide those of q")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        kinds = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in (q, k, v))
        raise ValueError(f"q, k and v are {kinds}; convert them to one")
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"q is {q.dtype}; attention takes float16, bfloat16, float32 and float64")


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale * q k^T) v, like torch.nn.functional.scaled_dot_product_attention.

    :param q: (batch, heads, seq_q, head_dim)
    :param k: (batch, kv_heads, seq_k, head_dim), kv_heads dividing heads
    :param v: (batch, kv_heads, seq_k, head_dim_v)
    :param causal: query i sees keys 0 to i (top-left, as torch does)
    :param scale: default head_dim ** -0.5; any finite number
    :param window: query i sees only keys j with abs(i - j) < window; 1 is the least
    :param softcap: scores become softcap * tanh(score / softcap)
    :param return_lse: also return the natural log of each row's sum of exp(score) over the keys it sees, float32

    Returns (batch, heads, seq_q, head_dim_v), and lse as (batch, heads, seq_q). float16, bfloat16 and float32
    with head dimensions up to 256 run the tuned kernel, others torch's. A query that sees no key gives 0, and
    lse -inf. Accumulates in float32, whatever autocast says. Differentiable in reverse mode.

    :raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or an option breaks its rule.
    """
    check(q, k, v)
    check_options(scale, window, softcap)
    out, lse = torch.ops.autotune.attention(q, k, v, causal, scale, window, softcap)
    return (out, lse) if return_lse else out


def check_options(scale: float | None, window: int | None, softcap: float | None = None) -> None:
    """:raises ValueError: naming the option and its rule. No size is looked at, so that none is traced."""
    score_factors(scale, softcap, 1)
    binding_window(window, 0, 0)


def lse_dtype(q: torch.Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=lse_dtype(q))


def _backward(
    gradients: tuple[torch.Tensor | None, ...], inputs: tuple[Any, ...], results: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    q, k, v, *options = inputs
    d_out, d_lse = of_out_and_lse(gradients, results)
    computed = torch.ops.autotune.attention_backward(d_out, d_lse, q, k, v, *results, *options)
    return (*computed, *[None] * len(options))


def of_out_and_lse(
    gradients: tuple[torch.Tensor | None, ...], results: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Their gradients; lse has none unless somebody asked for it."""
    d_out, d_lse = gradients
    return torch.zeros_like(results[0]) if d_out is None else d_out, d_lse


def _out_only(*args: Any) -> torch.Tensor:
    check(*args[:3])
    out: torch.Tensor = torch.ops.autotune.attention(*args)[0]
    return out


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
    if q.dim() != 4 or k.dim() != 4 or k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        return "shapes are not (batch, heads, seq, head_dim) with as many keys as values"
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
    schema=(
        "(Tensor q, Tensor k, Tensor v, bool causal=False, float? scale=None, int? window=None, "
        "float? softcap=None) -> (Tensor, Tensor)"
    ),
    fake=_fake,
    backward=_backward,
    apply=_out_only,
    saves_results=True,
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
