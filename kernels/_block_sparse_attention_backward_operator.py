"""The torch side of block-sparse attention's gradients: argument rules and the operator."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernel import Operator
from autotune.kernels._attention_backward_operator import Gradients, check_results
from autotune.kernels._block_mask import BlockMask
from autotune.kernels._block_sparse_attention_operator import PARTS, check, flat, mask_of


def check_gradients(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: BlockMask,
    scale: float | None,
) -> None:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or scale is not finite."""
    check(q, k, v, mask, scale)
    check_results(d_out, d_lse, out, lse, q, (*q.shape[:3], v.shape[3]), tuple(q.shape[:3]))


def block_sparse_attention_backward(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    causal: bool = False,
) -> Gradients:
    """(dq, dk, dv): the gradients of ``block_sparse_attention``. Equal from run to run.

    :param d_out: (batch, heads, seq_q, head_dim_v), the gradient of ``out``
    :param d_lse: (batch, heads, seq_q), the gradient of ``lse``, or None
    :param lse: float32 (float64 where ``q`` is); -inf for a query that saw no key, whose gradients are 0

    The rest as ``block_sparse_attention`` has it, which calls this itself when it is differentiated.

    :raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or the scale is not finite.
    """
    check_gradients(d_out, d_lse, q, k, v, out, lse, mask, scale)
    gradients: Gradients = torch.ops.autotune.block_sparse_attention_backward(
        d_out, d_lse, q, k, v, out, lse, *flat(mask), scale, causal
    )
    return gradients


def _fake(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *others: Any,
) -> Gradients:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _kernel_args(*args: Any) -> tuple[Any, ...]:
    *parts, scale, causal = args[7:]
    return *args[:7], mask_of(args[2], args[3], tuple(parts), causal), scale


def _apply(*args: Any) -> Gradients:
    *others, scale = args
    return block_sparse_attention_backward(*others, scale=scale)


OPERATOR = Operator(
    front=block_sparse_attention_backward,
    schema=(
        "(Tensor d_out, Tensor? d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
        f"{PARTS}, float? scale, bool causal) -> (Tensor, Tensor, Tensor)"
    ),
    fake=_fake,
    backward=None,
    kernel_args=_kernel_args,
    apply=_apply,
)
