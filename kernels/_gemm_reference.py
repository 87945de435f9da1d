"""``matmul`` in plain torch: what its results are held to, and what torch's users would run."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernels._gemm_arguments import FP8, result_dtype
from autotune.kernels._gemm_check_operator import check

_TABLE = (torch.float16, torch.bfloat16, torch.float32, *FP8, torch.int8)


def reference(
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
    """Added up in float32 and rounded once; all in float64 where the floating tensors are."""
    tensors = (a, b, bias, residual, scale_a, scale_b)
    floating = {tensor.dtype for tensor in tensors if tensor is not None and tensor.is_floating_point()}
    if floating == {torch.float64}:
        # Those that verification has widened, whose out_dtype is no longer theirs.
        product = torch.matmul(a.double(), b.double())
        return finished(product, bias, activation, residual, scale_a, scale_b).contiguous()
    check(a, b, bias, activation, residual, scale_a, scale_b, out_dtype)
    dtype = result_dtype(a, scale_a, out_dtype)
    follows = any(value is not None for value in (bias, activation, residual, scale_a))
    if dtype == a.dtype and not follows:
        return torch.matmul(a, b).contiguous()
    return _rounded(_product(a, b), dtype, bias, activation, residual, scale_a, scale_b)


def peer(
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
    """As :func:`reference`, but off by what tensor cores are: operands of tf32, sums of float8."""
    if allow_tf32 and a.dtype == torch.float32:
        product = torch.matmul(_shortened(a, 10), _shortened(b, 10))
    elif a.dtype in FP8:
        # sm_90 keeps 14 bits of a sum until float32 takes it over, every 128 products or with fast_accum never.
        product = _shortened(_product(a, b), 10 if fast_accum else 13)
    else:
        return reference(a, b, bias, activation, residual, scale_a, scale_b, out_dtype)
    dtype = result_dtype(a, scale_a, out_dtype)
    return _rounded(product, dtype, bias, activation, residual, scale_a, scale_b)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.dtype == torch.int8:
        return torch.matmul(a.double(), b.double())  # exact, and torch multiplies no integers on a GPU
    return torch.matmul(a.float(), b.float()) if a.dtype in _TABLE else torch.matmul(a, b)


def _rounded(product: torch.Tensor, dtype: torch.dtype, *follows: Any) -> torch.Tensor:
    if dtype == torch.int32:
        return product.to(dtype).contiguous()
    if product.dtype == torch.float64 and dtype != torch.float64:
        product = product.float()  # of int8
    return finished(product, *follows).to(dtype).contiguous()


def _shortened(x: torch.Tensor, bits: int) -> torch.Tensor:
    """float32 rounded to so many bits after the first; infinities and NaN as they are."""
    half = 1 << (22 - bits)
    short = ((x.view(torch.int32) + half) & -2 * half).view(torch.float32)
    return torch.where(x.isfinite(), short, x)


def finished(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
) -> torch.Tensor:
    """act(scale_a * scale_b * x + bias) + residual in the dtype of ``x``; differentiable."""
    if scale_a is not None and scale_b is not None:
        x = x * (scale_a * scale_b).to(x.dtype)
    if bias is not None:
        x = x + bias.to(x.dtype)
    x = activate(x, activation)
    return x if residual is None else x + residual.to(x.dtype)


def activate(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    """In the dtype of ``x``; swiglu: (..., N) [gate | up] -> (..., N / 2)."""
    if activation == "relu":
        return torch.relu(x)
    if activation == "gelu":
        return torch.nn.functional.gelu(x)
    if activation == "gelu_tanh":
        return torch.nn.functional.gelu(x, approximate="tanh")
    if activation == "silu":
        return torch.nn.functional.silu(x)
    if activation == "swiglu":
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up
    return x


def baseline(
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
    """torch's fastest for the same: one product with its bias, and each further step by itself in the result's
    dtype. float8 and int8 have one on CUDA, for sizes that its tensor cores take; elsewhere the reference.
    """
    dtype = result_dtype(a, scale_a, out_dtype)
    x: torch.Tensor | None = None
    if a.dtype == dtype and a.is_floating_point():
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        try:
            x = torch.addmm(bias, a, b) if bias is not None and a.dim() == b.dim() == 2 else torch.matmul(a, b)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        bias = None if bias is not None and a.dim() == b.dim() == 2 else bias
    elif _has_float8_cores(a) and _fits_scaled_mm(a, b, scale_a, dtype):
        if scale_a is None or scale_b is None:
            scale_a = scale_b = torch.ones((), device=a.device)
        x = torch._scaled_mm(a, b, scale_a, scale_b, out_dtype=dtype, use_fast_accum=fast_accum)
        scale_a = scale_b = None
    elif a.dtype == torch.int8 and a.is_cuda and a.dim() == b.dim() == 2 and _fits_int_mm(a, b):
        x = torch._int_mm(a, b)
        if dtype != torch.int32:
            x = x.float()
    if x is None:
        return reference(a, b, bias, activation, residual, scale_a, scale_b, out_dtype)
    return finished(x, bias, activation, residual, scale_a, scale_b).to(dtype)


def _has_float8_cores(a: torch.Tensor) -> bool:
    return a.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(a.device) >= (8, 9)


def _fits_scaled_mm(a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor | None, dtype: torch.dtype) -> bool:
    """torch's own rules: of float8 e4m3fn alone by itself, and a scale a row for results in bfloat16."""
    if a.dtype != torch.float8_e4m3fn or a.dim() != 2 or b.dim() != 2 or not a.numel() or not b.numel():
        return False
    if scale_a is not None and scale_a.numel() > 1 and dtype != torch.bfloat16:
        return False
    by_row_and_column = a.stride(1) == 1 and b.stride(0) == 1
    return by_row_and_column and a.shape[1] % 16 == 0 and b.shape[1] % 16 == 0


def _fits_int_mm(a: torch.Tensor, b: torch.Tensor) -> bool:
    (rows, inner), columns = a.shape, b.shape[1]
    return rows > 16 and inner > 0 and columns > 0 and inner % 8 == 0 and columns % 8 == 0
