"""The torch side of ``grouped_gemm``: what its arguments must be, its gradient, and the torch calls it serves."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from autotune.kernel import Operator, Serves
from autotune.kernels._activation_operator import activation_gradient
from autotune.kernels._gemm_arguments import ACTIVATIONS
from autotune.kernels._tensors import check_dense_floats
from autotune.kernels._values import checks_values

#: The kernel's arguments, in its order.
Arguments: TypeAlias = tuple[Any, ...]


def check_offsets(offs: torch.Tensor, x: torch.Tensor) -> None:
    """:raises ValueError: if ``offs`` is no vector of integers beside ``x``. Looks at no number in it."""
    if offs.dim() != 1 or offs.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"offs is {offs.dtype} {tuple(offs.shape)}; it must be int32 or int64 of (groups,)")
    if offs.device != x.device:
        raise ValueError(f"offs is on {offs.device} but x is on {x.device}; move one of them")


def check(
    x: torch.Tensor,
    w: torch.Tensor,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> None:
    """:raises ValueError: naming the argument, its value and the rule that it breaks. Looks at no offset."""
    check_dense_floats(x=x, w=w)
    if x.dim() != 2 or w.dim() != 3:
        raise ValueError(
            f"x is {tuple(x.shape)} and w is {tuple(w.shape)}; grouped_gemm takes (tokens, K) and (groups, K, N)"
        )
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"x is {tuple(x.shape)} and w is {tuple(w.shape)}; the last of x must be the middle of w")
    check_offsets(offs, x)
    if offs.shape[0] != w.shape[0]:
        raise ValueError(f"offs has {offs.shape[0]} entries and w {w.shape[0]} groups; they must be equal")
    if activation is not None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; use None or one of {', '.join(ACTIVATIONS)}")
        if activation == "swiglu" and w.shape[2] % 2:
            raise ValueError(f"w has {w.shape[2]} columns; swiglu takes an even number: [gate | up]")
    if bias is not None and bias.shape != (w.shape[0], w.shape[2]):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({w.shape[0]}, {w.shape[2]})")
    for name, tensor in (("w", w), ("bias", bias)):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            kind = f"{tensor.dtype} on {tensor.device}"
            raise ValueError(f"{name} is {kind} but x is {x.dtype} on {x.device}; convert one of them")


def check_values(offs: torch.Tensor, tokens: int) -> None:
    """:raises ValueError: if the offsets don't ascend from 0 to the tokens. On a GPU only on request."""
    if not checks_values(offs) or not offs.numel():
        return
    if offs[0] < 0 or offs[-1] > tokens:
        raise ValueError(f"offs goes from {int(offs[0])} to {int(offs[-1])}; it must stay in 0 to {tokens} tokens")
    falls = (offs.diff() < 0).nonzero()
    if falls.numel():
        place = int(falls[0])
        raise ValueError(
            f"offs[{place + 1}] is {int(offs[place + 1])} after {int(offs[place])}; offs must never decrease"
        )


def grouped_gemm(
    x: torch.Tensor,
    w: torch.Tensor,
    offs: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """act(x[group] @ w[g] + bias[g]) for each group of rows: a layer of experts whose tokens are sorted by expert.

    As torch.nn.functional.grouped_mm of a matrix and a stack. Accumulates in float32 and rounds once, whatever
    autocast says; equal from run to run. Differentiable in reverse mode. The kernel takes float16, bfloat16 and
    float32, torch float64.

    :param x: (tokens, K), any strides
    :param w: (groups, K, N), any strides: ``weight.mT`` of a (groups, N, K) is free
    :param offs: (groups,) int32 or int64, on the device of ``x``: the end of each group, ascending. A group may be
        empty; its weight is not read. Rows from ``offs[-1]`` on belong to no group and give 0.
    :param bias: (groups, N)
    :param activation: ``relu``, ``gelu``, ``gelu_tanh``, ``silu``, or ``swiglu``: the columns of w are [gate | up],
        and the result silu(gate) * up has N / 2
    :return: (tokens, N), contiguous, in the dtype of ``x``

    The host never waits for the device, so that a CUDA graph may hold it: offsets that descend, or leave 0 to the
    tokens, give undefined results on a GPU, unless the environment variable AUTOTUNE_CHECK_VALUES is 1.

    :raises ValueError: if shapes, dtypes or devices don't fit together; on a CPU also if the offsets are wrong.
    """
    check(x, w, offs, bias, activation)
    result: torch.Tensor = torch.ops.autotune.grouped_gemm(x, w, offs, bias, activation)
    return result


def result_shape(x: torch.Tensor, w: torch.Tensor, activation: str | None) -> tuple[int, int]:
    return x.shape[0], w.shape[2] // 2 if activation == "swiglu" else w.shape[2]


def _fake(
    x: torch.Tensor,
    w: torch.Tensor,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    return x.new_empty(result_shape(x, w, activation))


def _backward(
    gradients: tuple[torch.Tensor, ...], inputs: Arguments, results: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    (gradient,) = gradients
    x, w, offs, bias, activation = inputs
    product, weight_gradient = torch.ops.autotune.grouped_gemm, torch.ops.autotune.grouped_gemm_weight_gradient
    if activation is not None:
        gradient = activation_gradient(activation, gradient, product(x, w, offs, bias, None))
    grad_x = grad_w = grad_bias = None
    if x.requires_grad:
        grad_x = product(gradient, w.mT, offs, None, None)
    if w.requires_grad:
        grad_w = weight_gradient(x, gradient, offs)
    if bias is not None and bias.requires_grad:
        # Sums over the rows of each group.
        grad_bias = weight_gradient(x.new_ones(x.shape[0], 1), gradient, offs).squeeze(1)
    return grad_x, grad_w, None, grad_bias, None


def matrices(
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype | None,
    dims: tuple[int, int],
) -> str | None:
    """Why a call of torch's grouped product is not one of operands of these dimensions; None if it is."""
    if a.layout != torch.strided or b.layout != torch.strided or a.is_nested or b.is_nested:
        return "an operand is sparse or nested"
    if (a.dim(), b.dim()) != dims or offs is None:
        return f"its operands are not of {dims[0]} and {dims[1]} dimensions with offs"
    if bias is not None:
        return "torch has no meaning for a bias yet"
    return None if out_dtype in (None, a.dtype) else "the result is of another dtype"


def _read(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Arguments | str:
    why = matrices(mat_a, mat_b, offs, bias, out_dtype, (2, 3))
    if why is not None or offs is None:
        return why or ""
    try:
        check(mat_a, mat_b, offs)
    except ValueError as error:
        return str(error)
    return mat_a, mat_b, offs, None, None


#: torch's grouped product, as Python and autograd call it; F.grouped_mm comes down to the first.
GROUPED_MM = (torch._grouped_mm, torch.ops.aten._grouped_mm)

#: Autocast leaves it alone.
SERVES: dict[Any, Serves] = dict.fromkeys(GROUPED_MM, Serves(_read, autocast=False))

OPERATOR = Operator(
    front=grouped_gemm,
    schema="(Tensor x, Tensor w, Tensor offs, Tensor? bias=None, str? activation=None) -> Tensor",
    fake=_fake,
    backward=_backward,
    apply=lambda *args: torch.ops.autotune.grouped_gemm(*args),
)
