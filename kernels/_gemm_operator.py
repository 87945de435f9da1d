"""The torch side of ``gemm``: the operator ``matmul``, its gradient, and the torch calls it stands in for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from autotune.kernel import Operator, Serves

aten = torch.ops.aten

Operands: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def check(a: torch.Tensor, b: torch.Tensor) -> None:
    """:raises ValueError: if a (..., M, K) and b (..., K, N) don't multiply, or differ in dtype or device."""
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dim() < 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; matmul takes 2 dimensions or more")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"a is {tuple(a.shape)} and b is {tuple(b.shape)}; the last size of a must be the one before last of b"
        )
    if a.dim() > 2 and b.dim() > 2:
        try:
            torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except RuntimeError:
            raise ValueError(
                f"a is {tuple(a.shape)} and b is {tuple(b.shape)}; their batch dimensions don't broadcast"
            ) from None
    if a.dtype != b.dtype or a.device != b.device:
        raise ValueError(f"a is {a.dtype} on {a.device} but b is {b.dtype} on {b.device}; convert one of them")


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """torch.matmul for 2 dimensions and more: (..., M, K) @ (..., K, N) -> (..., M, N).

    Batch dimensions broadcast; sizes may be 0. float16, bfloat16 and float32 run the tuned kernel, other
    dtypes torch's. Accumulates in float32 (float32 inputs in full precision, never tf32), whatever autocast
    says. Differentiable in reverse mode.

    :raises ValueError: if shapes don't multiply, or dtypes or devices differ.
    """
    check(a, b)
    product: torch.Tensor = torch.ops.autotune.matmul(a, b)
    return product


def _fake(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.new_empty(*batch, a.shape[-2], b.shape[-1])


def _backward(gradient: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Operands:
    grad_a = torch.matmul(gradient, b.mT.conj()).sum_to_size(a.shape)
    grad_b = torch.matmul(a.mT.conj(), gradient).sum_to_size(b.shape)
    return grad_a, grad_b


def _pair(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> Operands | str:
    if out is not None:
        return "out= is given"
    if a.layout != torch.strided or b.layout != torch.strided or a.is_nested or b.is_nested:
        return "an operand is sparse or nested"
    try:
        check(a, b)
    except ValueError as error:
        return str(error)
    return a, b


def _of_rank(rank: int) -> Callable[..., Operands | str]:
    """Like ``_pair``, for a call that takes exactly ``rank`` dimensions and broadcasts nothing."""

    def read(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> Operands | str:
        if a.dim() != rank or b.dim() != rank or a.shape[:-2] != b.shape[:-2]:
            return f"the operands are not of {rank} dimensions and one batch size"
        return _pair(a, b, out=out)

    return read


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Operands | str:
    if weight.layout != torch.strided or weight.dim() != 2:
        return "the weight is no dense matrix"
    return _pair(x, weight.mT) if bias_fits(x, weight, bias) else BIAS_MISFIT


#: Why a linear layer's bias keeps a kernel from serving it.
BIAS_MISFIT = "the bias is no vector of the outputs' number and dtype"


def bias_fits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    return bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype)


def add_bias(
    product: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return product if bias is None else product + bias


def _added(rank: int) -> Callable[..., Operands | str]:
    """For addmm and baddbmm: beta * addend + alpha * (a @ b)."""
    operands_of = _of_rank(rank)

    def read(
        addend: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        *,
        beta: float = 1,
        alpha: float = 1,
        out: torch.Tensor | None = None,
    ) -> Operands | str:
        operands = operands_of(a, b, out=out)
        if isinstance(operands, str):
            return operands
        if alpha == 0 or (alpha != 1 and a.dtype != torch.float32):
            return "alpha scales before the result is rounded"
        shape = (*a.shape[:-1], b.shape[-1])
        if addend.dtype != a.dtype or addend.layout != torch.strided or not _expands(addend.shape, shape):
            return "the addend does not expand to the product in its dtype"
        return operands

    return read


def _expands(small: torch.Size, large: tuple[int, ...]) -> bool:
    if len(small) > len(large):
        return False
    return all(size in (1, wanted) for size, wanted in zip(reversed(small), reversed(large), strict=False))


def _add(
    product: torch.Tensor,
    addend: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> torch.Tensor:
    scaled = product if alpha == 1 else alpha * product
    return scaled if beta == 0 else torch.add(scaled, addend, alpha=beta)


_MM, _BMM, _MATMUL = Serves(_of_rank(2)), Serves(_of_rank(3)), Serves(_pair)
_ADDMM, _BADDBMM = Serves(_added(2), _add), Serves(_added(3), _add)
_LINEAR = Serves(_linear, add_bias)

#: The Python calls, and the aten operators that those, the backward pass and torch's C++ come down to.
SERVES: dict[Any, Serves] = {
    **dict.fromkeys((torch.mm, torch.Tensor.mm, aten.mm), _MM),
    **dict.fromkeys((torch.bmm, torch.Tensor.bmm, aten.bmm), _BMM),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, aten.matmul), _MATMUL),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm, aten.addmm), _ADDMM),
    **dict.fromkeys((torch.baddbmm, torch.Tensor.baddbmm, aten.baddbmm), _BADDBMM),
    **dict.fromkeys((torch.nn.functional.linear, aten.linear), _LINEAR),
}

OPERATOR = Operator(front=matmul, schema="(Tensor a, Tensor b) -> Tensor", fake=_fake, backward=_backward)
