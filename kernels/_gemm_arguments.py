"""What ``matmul``'s arguments are, beyond tensors, and what its result is."""

from __future__ import annotations

import torch

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "swiglu")

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def scale_kind(scale_a: torch.Tensor | None, scale_b: torch.Tensor | None) -> str:
    """``none``, ``tensor`` for one number each (shape () or (1,)), ``row`` for one a row of a and a column of b."""
    if scale_a is None or scale_b is None:
        return "none"
    return (
        "tensor" if scale_a.dim() < 2 and scale_b.dim() < 2 and scale_a.numel() == scale_b.numel() == 1 else "row"
    )


def result_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Those a product of two such operands may have."""
    if dtype == torch.int8:
        return (*_FLOATS, torch.int32)
    return _FLOATS if dtype in _FLOATS or dtype in FP8 else (dtype,)


def result_dtype(a: torch.Tensor, scale_a: torch.Tensor | None, out_dtype: torch.dtype | None) -> torch.dtype:
    """``out_dtype``, or that of the operands; bfloat16 for float8 and scaled int8, int32 for bare int8."""
    if out_dtype is not None:
        return out_dtype
    if a.dtype == torch.int8:
        return torch.int32 if scale_a is None else torch.bfloat16
    return torch.bfloat16 if a.dtype in FP8 else a.dtype


def result_shape(a: torch.Tensor, b: torch.Tensor, activation: str | None) -> tuple[int, ...]:
    columns = b.shape[-1] // 2 if activation == "swiglu" else b.shape[-1]
    return (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], columns)
