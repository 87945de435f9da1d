"""The torch side of ``gemm``: the operator ``matmul``, its gradient, and the torch calls it stands in for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from autotune.kernel import Operator, Serves
from autotune.kernels._activation_operator import activation_gradient
from autotune.kernels._gemm_arguments import FP8, result_dtype, result_shape
from autotune.kernels._gemm_check_operator import check, check_out

aten = torch.ops.aten

#: The kernel's arguments, in its order.
Arguments: TypeAlias = tuple[Any, ...]


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    allow_tf32: bool = False,
    fast_accum: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """act(scale_a * scale_b * (a @ b) + bias) + residual: (..., M, K) @ (..., K, N) -> (..., M, N).

    Accumulates in float32 (int8 in int32) and rounds once, whatever autocast says. Shapes are torch.matmul's for 2
    dimensions and more: batch dimensions broadcast; sizes may be 0. Differentiable in reverse mode, but for float8
    and int8. The kernel takes float16, bfloat16, float32, float8_e4m3fn, float8_e5m2 and int8; torch the others.

    :param bias: (N,), of the result's dtype
    :param activation: ``relu``, ``gelu``, ``gelu_tanh``, ``silu``, or ``swiglu``: the columns of b are [gate | up],
        and the result silu(gate) * up has N / 2
    :param residual: of the result's shape and dtype
    :param scale_a: for float8 and int8, float32: one number, shape () or (1,), or one a row, (..., M, 1)
    :param scale_b: as ``scale_a``, and given with it: one number, or one a column, (1, N)
    :param out_dtype: float16, bfloat16 or float32, for int8 without anything else int32; default that of a and b,
        for float8 and scaled int8 bfloat16, for int8 int32
    :param batch_invariant: the bits of a row depend on no other row, nor on how many there are; a promise of the
        kernel, which torch does not make where it computes (float64, a CPU, what a device cannot run)
    :param allow_tf32: float32 operands may be rounded to the 10 bits of tf32, which is never the default
    :param fast_accum: float8 products may be added up in the tensor cores' own 14 bits (sm_90)
    :param out: where to write the result: contiguous, apart from the other tensors (but ``out=residual`` adds in
        place), and without gradients
    :raises ValueError: if the arguments don't fit together.
    """
    check(a, b, bias, activation, residual, scale_a, scale_b, out_dtype)
    follows = bias, activation, residual, scale_a, scale_b, out_dtype, batch_invariant, allow_tf32, fast_accum
    if out is None:
        product: torch.Tensor = torch.ops.autotune.matmul(a, b, *follows)
        return product
    check_out(out, result_shape(a, b, activation), result_dtype(a, scale_a, out_dtype), a.device)
    tensors = [tensor for tensor in (a, b, bias, residual, out) if tensor is not None]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError("out is given and an argument requires grad; call it without out, or in torch.no_grad()")
    torch.ops.autotune.matmul_out(a, b, *follows, out=out)
    return out


def _fake(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    allow_tf32: bool = False,
    fast_accum: bool = False,
) -> torch.Tensor:
    return a.new_empty(result_shape(a, b, activation), dtype=result_dtype(a, scale_a, out_dtype))


def _backward(
    gradients: tuple[torch.Tensor, ...], inputs: Arguments, results: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    (gradient,) = gradients
    a, b, bias, activation, residual, scale_a, _, _, *flags = inputs
    if scale_a is not None or a.dtype in FP8:
        raise RuntimeError(f"matmul of {a.dtype} has no gradient; train in bfloat16, or call it in torch.no_grad()")

    def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        result: torch.Tensor = torch.ops.autotune.matmul(a, b, bias, None, None, None, None, dtype, *flags)
        return result

    before = gradient
    if activation is not None:
        before = activation_gradient(activation, gradient, product(a, b, bias, gradient.dtype))
    grad_bias = None if bias is None else before.sum_to_size(bias.shape)
    before = before.to(a.dtype)
    grad_a = grad_b = None
    if a.requires_grad:
        grad_a = product(before, b.mT.conj(), None, a.dtype).sum_to_size(a.shape)
    if b.requires_grad:
        left, right = a, before
        if b.dim() == 2:
            left, right = a.flatten(0, -2), before.flatten(0, -2)
        grad_b = product(left.mT.conj(), right, None, b.dtype).sum_to_size(b.shape)
    return grad_a, grad_b, grad_bias, None, None if residual is None else gradient, *[None] * 6


def _call(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> Arguments | str:
    """The kernel's arguments for torch's ``a @ b + bias``, or why it can't serve it."""
    if a.layout != torch.strided or b.layout != torch.strided or a.is_nested or b.is_nested:
        return "an operand is sparse or nested"
    allow_tf32 = a.dtype == torch.float32 and _torch_takes_tf32()
    arguments = a, b, bias, None, None, None, None, None, False, allow_tf32
    try:
        check(*arguments)
    except ValueError as error:
        return str(error)
    return arguments


@torch.compiler.assume_constant_result  # which torch.compile can't read by itself
def _torch_takes_tf32() -> bool:
    """What torch is told for its own products, which ours stand in for."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def _pair(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> Arguments | str:
    return _call(a, b) if out is None else "out= is given"


def _of_rank(rank: int) -> Callable[..., Arguments | str]:
    """Like ``_pair``, for a call that takes exactly ``rank`` dimensions and broadcasts nothing."""

    def read(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> Arguments | str:
        if a.dim() != rank or b.dim() != rank or a.shape[:-2] != b.shape[:-2]:
            return f"the operands are not of {rank} dimensions and one batch size"
        return _pair(a, b, out=out)

    return read


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Arguments | str:
    if weight.layout != torch.strided or weight.dim() != 2:
        return "the weight is no dense matrix"
    return _call(x, weight.mT, bias) if bias_fits(x, weight, bias) else BIAS_MISFIT


#: Why a linear layer's bias keeps a kernel from serving it.
BIAS_MISFIT = "the bias is no vector of the outputs' number and dtype"


def bias_fits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    return bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype)


def _added(rank: int) -> Callable[..., Arguments | str]:
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
    ) -> Arguments | str:
        operands = operands_of(a, b, out=out)
        if isinstance(operands, str):
            return operands
        if alpha == 0 or (alpha != 1 and a.dtype != torch.float32):
            return "alpha scales before the result is rounded"
        shape = (*a.shape[:-1], b.shape[-1])
        if addend.dtype != a.dtype or addend.layout != torch.strided or not _expands(addend.shape, shape):
            return "the addend does not expand to the product in its dtype"
        return _call(a, b, addend) if _fuses(addend, b, beta, alpha) else operands

    return read


def _fuses(addend: torch.Tensor, b: torch.Tensor, beta: float, alpha: float) -> bool:
    """Whether the kernel adds it, as a bias."""
    return beta == alpha == 1 and addend.shape == b.shape[-1:]


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
    if _fuses(addend, b, beta, alpha):
        return product
    scaled = product if alpha == 1 else alpha * product
    return scaled if beta == 0 else torch.add(scaled, addend, alpha=beta)


def _scaled(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale_result: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Arguments | str:
    if scale_result is not None or out_dtype is None:
        return "the result is float8"
    arguments = a, b, bias, None, None, scale_a, scale_b, out_dtype, False, False, use_fast_accum
    try:
        check(*arguments)
    except ValueError as error:
        return str(error)
    return arguments


_MM, _BMM, _MATMUL = Serves(_of_rank(2)), Serves(_of_rank(3)), Serves(_pair)
_ADDMM, _BADDBMM = Serves(_added(2), _add), Serves(_added(3), _add)
_LINEAR, _SCALED_MM = Serves(_linear), Serves(_scaled)

#: The Python calls, and the aten operators that those, the backward pass and torch's C++ come down to.
SERVES: dict[Any, Serves] = {
    **dict.fromkeys((torch.mm, torch.Tensor.mm, aten.mm), _MM),
    **dict.fromkeys((torch.bmm, torch.Tensor.bmm, aten.bmm), _BMM),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, aten.matmul), _MATMUL),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm, aten.addmm), _ADDMM),
    **dict.fromkeys((torch.baddbmm, torch.Tensor.baddbmm, aten.baddbmm), _BADDBMM),
    **dict.fromkeys((torch.nn.functional.linear, aten.linear), _LINEAR),
    **dict.fromkeys((torch._scaled_mm, aten._scaled_mm), _SCALED_MM),
}

OPERATOR = Operator(
    front=matmul,
    schema=(
        "(Tensor a, Tensor b, Tensor? bias=None, str? activation=None, Tensor? residual=None, "
        "Tensor? scale_a=None, Tensor? scale_b=None, ScalarType? out_dtype=None, bool batch_invariant=False, "
        "bool allow_tf32=False, bool fast_accum=False) -> Tensor"
    ),
    fake=_fake,
    backward=_backward,
    apply=lambda *args: torch.ops.autotune.matmul(*args),
    out=True,
)
