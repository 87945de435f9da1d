"""The torch side of ``grouped_gemm_weight_gradient``: argument rules, its gradient, the torch calls it serves."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernel import Operator, Serves
from autotune.kernels._grouped_gemm_operator import GROUPED_MM, Arguments, check_offsets, matrices
from autotune.kernels._tensors import check_dense_floats


def check(x: torch.Tensor, d_out: torch.Tensor, offs: torch.Tensor) -> None:
    """:raises ValueError: naming the argument, its value and the rule that it breaks. Looks at no offset."""
    check_dense_floats(x=x, d_out=d_out)
    if x.dim() != 2 or d_out.dim() != 2 or x.shape[0] != d_out.shape[0]:
        raise ValueError(
            f"x is {tuple(x.shape)} and d_out is {tuple(d_out.shape)}; they must be (tokens, K) and (tokens, N)"
        )
    if x.dtype != d_out.dtype or x.device != d_out.device:
        raise ValueError(
            f"x is {x.dtype} on {x.device} but d_out is {d_out.dtype} on {d_out.device}; convert one of them"
        )
    check_offsets(offs, x)


def grouped_gemm_weight_gradient(x: torch.Tensor, d_out: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """x[group].T @ d_out[group] for each group of rows: the gradient of the weights of ``grouped_gemm``.

    As torch.nn.functional.grouped_mm of two matrices. ``grouped_gemm`` calls this itself when it is differentiated.
    Accumulates in float32 and rounds once; equal from run to run. Differentiable in reverse mode.

    :param x: (tokens, K), any strides
    :param d_out: (tokens, N), any strides
    :param offs: (groups,) as in ``grouped_gemm``. Rows of no group do not count.
    :return: (groups, K, N), contiguous, in the dtype of ``x``; 0 for an empty group
    :raises ValueError: as ``grouped_gemm``.
    """
    check(x, d_out, offs)
    result: torch.Tensor = torch.ops.autotune.grouped_gemm_weight_gradient(x, d_out, offs)
    return result


def _fake(x: torch.Tensor, d_out: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    return x.new_empty((offs.shape[0], x.shape[1], d_out.shape[1]))


def _backward(
    gradients: tuple[torch.Tensor, ...], inputs: Arguments, results: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    (gradient,) = gradients
    x, d_out, offs = inputs
    product = torch.ops.autotune.grouped_gemm
    grad_x = product(d_out, gradient.mT, offs, None, None) if x.requires_grad else None
    return grad_x, product(x, gradient, offs, None, None) if d_out.requires_grad else None, None


def _read(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Arguments | str:
    why = matrices(mat_a, mat_b, offs, bias, out_dtype, (2, 2))
    if why is not None or offs is None:
        return why or ""
    try:
        check(mat_a.mT, mat_b, offs)
    except ValueError as error:
        return str(error)
    return mat_a.mT, mat_b, offs


SERVES: dict[Any, Serves] = dict.fromkeys(GROUPED_MM, Serves(_read, autocast=False))

OPERATOR = Operator(
    front=grouped_gemm_weight_gradient,
    schema="(Tensor x, Tensor d_out, Tensor offs) -> Tensor",
    fake=_fake,
    backward=_backward,
)
