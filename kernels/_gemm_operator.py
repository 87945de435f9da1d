"""The torch side of ``gemm``: the operator ``matmul``, its gradient, and the torch calls it stands in for."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernel import Operator, Serves

aten = torch.ops.aten


def check(a: torch.Tensor, b: torch.Tensor) -> None:
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dim() < 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; matmul takes 2 dimensions or more")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"a is {tuple(a.shape)} and b is {tuple(b.shape)}; the last size of a must be the one before last of b"
        )
    try:
        torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"a is {tuple(a.shape)} and b is {tuple(b.shape)}; their batch dimensions don't broadcast"
        ) from None


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """torch.matmul for 2 dimensions and more: (..., M, K) @ (..., K, N) -> (..., M, N).

    Batch dimensions broadcast; sizes may be 0. float16, bfloat16 and float32 run the tuned kernel, other
    dtypes torch's. Accumulates in float32 (float32 inputs in full precision, never tf32). Differentiable.

    :raises ValueError: if shapes don't multiply, or dtypes or devices differ.
    """
    check(a, b)
    if a.dtype != b.dtype or a.device != b.device:
        raise ValueError(f"a is {a.dtype} on {a.device} but b is {b.dtype} on {b.device}; convert one of them")
    product: torch.Tensor = torch.ops.autotune.matmul(a, b)
    return product


def _fake(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.new_empty(*batch, a.shape[-2], b.shape[-1])


def _backward(gradient: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    grad_a = torch.matmul(gradient, b.mT.conj()).sum_to_size(a.shape)
    grad_b = torch.matmul(a.mT.conj(), gradient).sum_to_size(b.shape)
    return grad_a, grad_b


def _pair(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> tuple[Any, ...] | str:
    if out is not None:
        return "out= is given"
    if a.layout != torch.strided or b.layout != torch.strided:
        return "an operand is sparse"
    return (a, b) if min(a.dim(), b.dim()) >= 2 else "an operand has fewer than 2 dimensions"


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> tuple[Any, ...] | str:
    return _pair(x, weight.mT) if weight.layout == torch.strided else "the weight is sparse"


def _add_bias(
    product: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return product if bias is None else product + bias


def _added(
    addend: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1, out: Any = None
) -> tuple[Any, ...] | str:
    return _pair(a, b, out=out)


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


_PAIR, _LINEAR, _ADDED = Serves(_pair), Serves(_linear, _add_bias), Serves(_added, _add)
SERVES: dict[Any, Serves] = {
    **dict.fromkeys((torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm), _PAIR),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), _PAIR),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm, torch.baddbmm, torch.Tensor.baddbmm), _ADDED),
    torch.nn.functional.linear: _LINEAR,
    # What those, the backward pass and calls made inside torch's C++ come down to.
    **dict.fromkeys((aten.mm, aten.bmm, aten.matmul), _PAIR),
    **dict.fromkeys((aten.addmm, aten.baddbmm), _ADDED),
    aten.linear: _LINEAR,
}

OPERATOR = Operator(front=matmul, schema="(Tensor a, Tensor b) -> Tensor", fake=_fake, backward=_backward)
