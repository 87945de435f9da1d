"""The torch side of ``bsr_matmul``: what its arguments must be, the operator, and the torch call it serves."""

from __future__ import annotations

import math
from typing import Any

import torch

from autotune.kernel import Operator, Serves, Tensors
from autotune.kernels._activation_operator import activation_gradient
from autotune.kernels._bsr import BsrWeight
from autotune.kernels._bsr_matmul_problem import ACTIVATIONS
from autotune.kernels._gemm_operator import BIAS_MISFIT, bias_fits


def check(
    x: torch.Tensor,
    weight: BsrWeight,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    transposed: bool = False,
    by_column: bool = False,
) -> None:
    """All that can be said without reading numbers on a device; ``weight.pattern`` says the rest.

    :raises ValueError: if the weight is none, or sizes, dtypes or devices don't fit together.
    """
    if x.layout != torch.strided:
        raise ValueError(f"x is {x.layout}; it must be dense")
    weight.check()
    outputs, inner = reversed(weight.shape) if transposed else weight.shape
    if x.dim() < (2 if by_column else 1) or x.shape[-1] != inner:
        rule = "the last of x and the first of w_bsr" if transposed else "the last size of both"
        raise ValueError(f"x is {tuple(x.shape)} and w_bsr is {weight.shape}; {rule} must be equal")
    if x.dtype != weight.values.dtype or x.device != weight.values.device:
        raise ValueError(
            f"x is {x.dtype} on {x.device} but w_bsr is {weight.values.dtype} on {weight.values.device}; "
            "convert one of them"
        )
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != x.dtype or bias.device != x.device):
        raise ValueError(
            f"bias is {tuple(bias.shape)} {bias.dtype} on {bias.device}; "
            f"it must be ({outputs},) {x.dtype} on {x.device}"
        )
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}")


def bsr_matmul(
    x: torch.Tensor | BsrWeight,
    w_bsr: torch.Tensor | BsrWeight,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """act(x @ w_bsr.T + bias), as torch.nn.functional.linear; with the block-sparse matrix first act(w @ x + bias).

    :param x: (..., K), any strides; or a block-sparse matrix (N, K)
    :param w_bsr: (N, K), ``torch.sparse_bsr``, or its :class:`BsrWeight` where torch.compile traces; with the
        block-sparse matrix first the dense one, (..., K, P), any strides
    :param bias: (N,), of the dtype of ``x``: one number a column of the result, in the second form one a row
    :param activation: ``relu``, ``gelu``, ``gelu_tanh`` or ``silu``
    :return: (..., N), or in the second form (..., N, P); contiguous

    Blocks of powers of two from 16 to 256, square or not, in float16, bfloat16 and float32 run the tuned kernel,
    others torch. Accumulates in float32, without tf32, and rounds once, whatever autocast says. Equal from run to
    run. Reads only the stored blocks: NaN and infinity in ``x`` meet no zeros there.

    Differentiable, also twice, in ``x``, ``bias`` and the stored values; keep those as a dense parameter and build
    the weight with :class:`BsrWeight`, since torch accumulates no ``.grad`` on sparse parameters. The first call
    with a weight checks its pattern, for which the host waits for the device; keep ``crow`` and ``columns``.

    Where a dense product is faster, that is served: of a dense copy, kept with the values until they change, and
    made on each call of values that require a gradient. Change a ``torch.sparse_bsr`` weight through itself: it
    does not notice what happens to the tensors it was made of.

    :raises ValueError: if neither argument is block-sparse, blocks are repeated or out of order, or sizes, dtypes
        or devices don't fit together.
    """
    if isinstance(x, BsrWeight) or x.layout == torch.sparse_bsr:
        return _from_left(BsrWeight.of(x), w_bsr, bias, activation)
    weight = BsrWeight.of(w_bsr)
    check(x, weight, bias, activation)
    product: torch.Tensor = torch.ops.autotune.bsr_matmul(
        x, weight.crow, weight.columns, weight.values, *weight.shape, bias, activation
    )
    return product


def _from_left(
    weight: BsrWeight, x: torch.Tensor | BsrWeight, bias: torch.Tensor | None, activation: str | None
) -> torch.Tensor:
    """w @ x is the transpose of x.T @ w.T, which the kernel reads and writes column by column."""
    if isinstance(x, BsrWeight) or x.layout != torch.strided:
        raise ValueError("both arguments are sparse; one of them must be dense")
    if x.dim() < 2 or x.shape[-2] != weight.shape[1]:
        raise ValueError(
            f"the block-sparse matrix is {weight.shape} and the dense one {tuple(x.shape)}; it must be "
            f"(..., {weight.shape[1]}, columns)"
        )
    check(x.mT, weight, bias, activation, by_column=True)
    product: torch.Tensor = torch.ops.autotune.bsr_matmul(
        x.mT, weight.crow, weight.columns, weight.values, *weight.shape, bias, activation, False, True
    )
    return product.mT


def _fake(
    x: torch.Tensor,
    crow: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
    n: int,
    k: int,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    transposed: bool = False,
    by_column: bool = False,
) -> torch.Tensor:
    outputs = k if transposed else n
    if by_column:
        return x.new_empty(*x.shape[:-2], outputs, x.shape[-2]).mT
    return x.new_empty(*x.shape[:-1], outputs)


def _backward(gradients: Tensors, inputs: tuple[Any, ...], results: Tensors) -> tuple[torch.Tensor | None, ...]:
    """To x by the product with the weight turned round, to the values by their share of a dense product."""
    (gradient,), (x, crow, columns, values, n, k, bias, activation, transposed, by_column) = gradients, inputs
    weight = crow, columns, values, n, k
    before = gradient
    if activation is not None:
        before = activation_gradient(
            activation, gradient, torch.ops.autotune.bsr_matmul(x, *weight, bias, None, transposed, by_column)
        )
    grad_x = grad_values = None
    if x.requires_grad:
        grad_x = torch.ops.autotune.bsr_matmul(before, *weight, None, None, not transposed, by_column)
    if values.requires_grad:
        rows, slopes = (tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1]) for tensor in (x, before))
        left, right = (rows, slopes) if transposed else (slopes, rows)
        grad_values = torch.ops.autotune.sddmm(crow, columns, left.mT, right, *values.shape[1:])
    grad_bias = before.sum_to_size(bias.shape) if bias is not None and bias.requires_grad else None
    return grad_x, None, None, grad_values, None, None, grad_bias, None, None, None


def _kernel_args(
    x: torch.Tensor, crow: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, n: int, k: int, *follows: Any
) -> tuple[Any, ...]:
    return x, BsrWeight(crow, columns, values, (n, k)), *follows


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> tuple[Any, ...] | str:
    if weight.layout != torch.sparse_bsr:
        return "the weight is not block-sparse"
    return (x, weight, bias) if bias_fits(x, weight, bias) else BIAS_MISFIT


OPERATOR = Operator(
    front=bsr_matmul,
    schema=(
        "(Tensor x, Tensor crow, Tensor columns, Tensor values, SymInt n, SymInt k, Tensor? bias=None, "
        "str? activation=None, bool transposed=False, bool by_column=False) -> Tensor"
    ),
    fake=_fake,
    backward=_backward,
    kernel_args=_kernel_args,
    apply=lambda x, weight, bias: bsr_matmul(x, weight, bias=bias),
    types=(BsrWeight,),
)

SERVES = {torch.nn.functional.linear: Serves(_linear)}
