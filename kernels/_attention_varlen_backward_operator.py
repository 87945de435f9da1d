"""The torch side of ``attention_varlen_backward``: its operator, and what it asks of its arguments."""

from __future__ import annotations

import torch

from autotune.kernel import Operator
from autotune.kernels._attention_backward_operator import Gradients, check_results, fake
from autotune.kernels._attention_operator import check_options
from autotune.kernels._attention_varlen_operator import check


def check_gradients(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> None:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together. Looks at no offset."""
    check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    tokens, heads, _ = q.shape
    check_results(d_out, d_lse, out, lse, q, (tokens, heads, v.shape[2]), (heads, tokens))


def attention_varlen_backward(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
) -> Gradients:
    """(dq, dk, dv): the gradients of ``attention_varlen``, from what it was given and returned.

    :param d_out: (tokens_q, heads, head_dim_v), the gradient of ``out``
    :param d_lse: (heads, tokens_q), the gradient of ``lse``, or None
    :param max_seqlen_k: the longest sequence of keys, or more: gradients beyond it are undefined on a GPU

    The rest as ``attention_varlen`` has it, which calls this itself when it is differentiated.

    :raises ValueError: as ``attention_varlen``, and if the results are not of these arguments.
    """
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    check_gradients(d_out, d_lse, q, k, v, out, lse, *lengths)
    check_options(scale, window)
    gradients: Gradients = torch.ops.autotune.attention_varlen_backward(
        d_out, d_lse, q, k, v, out, lse, *lengths, causal, scale, window
    )
    return gradients


OPERATOR = Operator(
    front=attention_varlen_backward,
    schema=(
        "(Tensor d_out, Tensor? d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_seqlens_q, "
        "Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, bool causal=False, float? scale=None, "
        "int? window=None) -> (Tensor, Tensor, Tensor)"
    ),
    fake=fake,
    backward=None,
)
