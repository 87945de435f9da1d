"""The torch side of ``lora``: what its arguments must be, the operator, and its gradients."""

from __future__ import annotations

import math
from typing import Any

import torch

from autotune.kernel import Operator, Tensors
from autotune.kernels._gemm_check_operator import check_apart
from autotune.kernels._tensors import check_dense_floats
from autotune.kernels._values import checks_values


def check(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    base: torch.Tensor | None = None,
    scale: float = 1.0,
) -> None:
    """All that can be said without reading numbers on a device.

    :raises ValueError: if ranks, sizes, dtypes or devices don't fit together, or the scale is not finite.
    """
    check_dense_floats(x=x, a=a, b=b)
    for name, tensor, takes in (
        ("x", x, "tokens, in"),
        ("a", a, "adapters, rank, in"),
        ("b", b, "adapters, out, rank"),
    ):
        if tensor.dim() != takes.count(",") + 1:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; lora takes ({takes})")
    adapters, rank, width = a.shape
    if x.shape[1] != width:
        raise ValueError(f"x is {tuple(x.shape)} and a is {tuple(a.shape)}; the last sizes must be equal")
    if (b.shape[0], b.shape[2]) != (adapters, rank):
        raise ValueError(
            f"b is {tuple(b.shape)} and a is {tuple(a.shape)}; they must be (adapters, out, rank) and "
            "(adapters, rank, in)"
        )
    if adapter_ids.shape != x.shape[:1] or adapter_ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"adapter_ids is {adapter_ids.dtype} {tuple(adapter_ids.shape)}; it must be int32 or int64 of "
            f"({x.shape[0]},), one a token"
        )
    if base is not None and base.shape != (x.shape[0], b.shape[1]):
        raise ValueError(f"out has shape {tuple(base.shape)}; it must be {(x.shape[0], b.shape[1])}")
    for name, other in (("a", a), ("b", b), ("out", base), ("adapter_ids", adapter_ids)):
        if other is None:
            continue
        if other is not adapter_ids and other.dtype != x.dtype:
            raise ValueError(f"{name} is {other.dtype} but x is {x.dtype}; convert one of them")
        if other.device != x.device:
            raise ValueError(f"{name} is on {other.device} but x is on {x.device}; move one of them")
    if not abs(scale) < math.inf:  # which torch.compile reads, unlike math.isfinite
        raise ValueError(f"scale is {scale}; it must be finite")


def check_out(
    out: torch.Tensor,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    base: torch.Tensor | None,
) -> None:
    """:raises ValueError: if ``out`` is no place for the result, or one that is still read while it is written."""
    shape = x.shape[0], b.shape[1]
    if out.shape != shape or out.dtype != x.dtype or out.device != x.device:
        kind = f"{out.dtype} {tuple(out.shape)} on {out.device}"
        raise ValueError(f"out is {kind}; it must be {x.dtype} {shape} on {x.device}")
    by_row, by_column = out.stride()
    step = math.gcd(by_row, by_column) or 1
    if out.numel() > 1 and by_row // step < shape[1] and by_column // step < shape[0]:
        raise ValueError(f"out has strides {out.stride()} of {shape}; its elements must not share memory")
    check_apart(out, x=x, a=a, b=b, adapter_ids=adapter_ids, base=None if in_place(base, out) else base)


def in_place(base: torch.Tensor | None, out: torch.Tensor) -> bool:
    """Whether each element of the base is where its sum will be."""
    return base is not None and (base.data_ptr(), base.stride()) == (out.data_ptr(), out.stride())


def check_values(adapter_ids: torch.Tensor, adapters: int) -> None:
    """:raises ValueError: naming the first token whose adapter there is not. On a GPU only on request."""
    if not checks_values(adapter_ids):
        return
    wrong = ((adapter_ids < -1) | (adapter_ids >= adapters)).nonzero()
    if wrong.numel():
        token = int(wrong[0])
        raise ValueError(
            f"adapter_ids[{token}] is {int(adapter_ids[token])}; it must be -1 for none, or 0 to {adapters - 1}"
        )


def lora(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """out[t] + scale * b[i] @ (a[i] @ x[t]) for each token t, whose adapter is i = adapter_ids[t].

    Many low-rank adapters in one batch, in any order: thousands of adapters, of which only those that occur are
    read.

    :param x: (tokens, in), any strides
    :param a: (adapters, rank, in), any strides; rank 1 to 256 runs the tuned kernel, more runs in torch
    :param b: (adapters, out, rank), any strides
    :param adapter_ids: (tokens,) int32 or int64. A token with -1 has no adapter: its row of ``out`` keeps every
        bit, without ``out`` it is 0.
    :param out: (tokens, out), any strides: the output of the base layer. It is updated in place, in one pass, and
        returned. Where a gradient is asked for, torch's rules for changes in place hold: it may be no leaf that
        requires grad, nor needed by the backward of what made it (a linear layer's needs it not). No byte of it
        may lie between the first and the last of another argument.
    :return: ``out``, or a new contiguous tensor (tokens, out)

    float16, bfloat16 and float32, float64 in torch. Accumulates in float32, whatever autocast says, and adds before
    it rounds; by tiles, a @ x is rounded in between as torch rounds it. Equal from run to run. Differentiable in
    ``x``, ``a``, ``b`` and ``out``: gradients of ``a`` and ``b`` are dense over adapters and come from
    ``grouped_gemm`` and its weight gradient over the tokens sorted by adapter.

    The host never waits for the device, so that a CUDA graph may hold it: an id out of range counts as -1 there,
    unless the environment variable AUTOTUNE_CHECK_VALUES is 1.

    :raises ValueError: if sizes, dtypes or devices don't fit together, the kernel finds that ``out`` shares memory
        with itself or another argument, or the scale is not finite; on a CPU also if an id is out of range.
    """
    check(x, a, b, adapter_ids, out, scale)
    if out is None:
        result: torch.Tensor = torch.ops.autotune.lora(x, a, b, adapter_ids, None, scale)
        return result
    compiling = torch.compiler.is_compiling()
    trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, a, b, out))
    if trained or (compiling and not out.is_contiguous()):
        # The backward pass keeps a copy, since it may not see its argument change; and torch.compile takes no
        # operator that writes into a tensor with gaps.
        return out.copy_(torch.ops.autotune.lora(x, a, b, adapter_ids, out.clone(), scale))
    torch.ops.autotune.lora_out(x, a, b, adapter_ids, out, scale, out=out)
    return out


def _fake(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    base: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], b.shape[1])


def _backward(gradients: Tensors, inputs: tuple[Any, ...], results: Tensors) -> tuple[torch.Tensor | None, ...]:
    (gradient,), (x, a, b, adapter_ids, base, scale) = gradients, inputs
    grad_x = grad_a = grad_b = None
    if x.requires_grad:
        # The same operator: b and a change places, and turn.
        grad_x = torch.ops.autotune.lora(gradient, b.mT, a.mT, adapter_ids, None, scale)
    if a.requires_grad or b.requires_grad:
        order, ends = _groups(adapter_ids, a.shape[0])
        x, gradient_of_group = x[order], gradient[order]
        product = torch.ops.autotune.grouped_gemm
        weight_gradient = torch.ops.autotune.grouped_gemm_weight_gradient
        if a.requires_grad:
            grad_a = scale * weight_gradient(product(gradient_of_group, b, ends, None, None), x, ends)
        if b.requires_grad:
            grad_b = scale * weight_gradient(gradient_of_group, product(x, a.mT, ends, None, None), ends)
    grad_base = gradient if base is not None and base.requires_grad else None
    return grad_x, grad_a, grad_b, None, grad_base, None


def _groups(adapter_ids: torch.Tensor, adapters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens,) int64: the tokens by adapter, those without one last; (adapters,) int64: where each one's end."""
    real = (adapter_ids >= 0) & (adapter_ids < adapters)
    ids, order = torch.where(real, adapter_ids, adapters).sort(stable=True)
    every = torch.arange(adapters, device=ids.device, dtype=ids.dtype)
    return order, torch.searchsorted(ids, every, right=True)


OPERATOR = Operator(
    front=lora,
    schema=("(Tensor x, Tensor a, Tensor b, Tensor adapter_ids, Tensor? base=None, float scale=1.0) -> Tensor"),
    fake=_fake,
    backward=_backward,
    apply=lambda *args: torch.ops.autotune.lora(*args),
    out=True,
)
