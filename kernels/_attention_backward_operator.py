"""The torch side of attention's gradients: argument rules and the operators, dense and of packed sequences."""

from __future__ import annotations

import torch

from autotune.kernel import Operator
from autotune.kernels._attention_operator import check, check_options, lse_dtype

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def check_gradients(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together."""
    check(q, k, v)
    check_results(d_out, d_lse, out, lse, q, (*q.shape[:3], v.shape[3]), tuple(q.shape[:3]))


def check_results(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    q: torch.Tensor,
    out_shape: tuple[int, ...],
    lse_shape: tuple[int, ...],
) -> None:
    """:raises ValueError: if the forward pass's results or their gradients are not what ``q`` says."""
    for name, tensor, shape, dtype in (
        ("d_out", d_out, out_shape, q.dtype),
        ("out", out, out_shape, q.dtype),
        ("lse", lse, lse_shape, lse_dtype(q)),
        ("d_lse", lse if d_lse is None else d_lse, lse_shape, lse_dtype(q)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with these q, k and v it must be {shape}")
        if tensor.dtype != dtype or tensor.device != q.device:
            kind = f"{tensor.dtype} on {tensor.device}"
            raise ValueError(f"{name} is {kind}; with q {q.dtype} on {q.device} it must be {dtype} there")


def attention_backward(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Gradients:
    """(dq, dk, dv): the gradients of ``attention``, from what it was given and returned. Equal from run to run.

    :param d_out: (batch, heads, seq_q, head_dim_v), the gradient of ``out``
    :param d_lse: (batch, heads, seq_q), the gradient of ``lse``, or None
    :param lse: float32 (float64 where ``q`` is); -inf for a query that saw no key, whose gradients are 0

    The rest as ``attention`` has it. ``attention`` calls this itself when it is differentiated.

    :raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or an option breaks its rule.
    """
    check_gradients(d_out, d_lse, q, k, v, out, lse)
    check_options(scale, window, softcap)
    gradients: Gradients = torch.ops.autotune.attention_backward(
        d_out, d_lse, q, k, v, out, lse, causal, scale, window, softcap
    )
    return gradients


def fake(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *others: object,
) -> Gradients:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


OPERATOR = Operator(
    front=attention_backward,
    schema=(
        "(Tensor d_out, Tensor? d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, bool causal=False, "
        "float? scale=None, int? window=None, float? softcap=None) -> (Tensor, Tensor, Tensor)"
    ),
    fake=fake,
    backward=None,
)
