"""The checks of ``matmul``'s arguments, and what they say: nothing that a kernel computes depends on them."""

from __future__ import annotations

import torch

from autotune.kernels._gemm_arguments import ACTIVATIONS, FP8, result_dtype, result_dtypes, result_shape, scale_kind


def check(
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
) -> None:
    """:raises ValueError: naming the argument, its value and the rule that it breaks."""
    check_operands(a, b)
    if activation is not None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; use None or one of {', '.join(ACTIVATIONS)}")
        if activation == "swiglu" and b.shape[-1] % 2:
            raise ValueError(f"b has {b.shape[-1]} columns; swiglu takes an even number: [gate | up]")
    if scale_a is not None or scale_b is not None:
        _check_scales(a, b, scale_a, scale_b)
    if out_dtype is not None:
        allowed = result_dtypes(a.dtype)
        if out_dtype not in allowed:
            raise ValueError(f"out_dtype is {out_dtype}; for {a.dtype} it is one of {', '.join(map(str, allowed))}")
    dtype = result_dtype(a, scale_a, out_dtype)
    follows = {"bias": bias, "activation": activation, "residual": residual, "scale_a": scale_a}
    given = [name for name, value in follows.items() if value is not None]
    if a.dtype == torch.int8 and dtype == torch.int32 and given:
        raise ValueError(
            f"{given[0]} is given and the result is int32, which is the product alone; "
            "pass out_dtype=torch.bfloat16 or another floating-point dtype"
        )
    if bias is not None:
        _check_addend("bias", bias, (b.shape[-1],), dtype, a.device)
    if residual is not None:
        _check_addend("residual", residual, result_shape(a, b, activation), dtype, a.device)


def check_operands(a: torch.Tensor, b: torch.Tensor) -> None:
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


def _check_scales(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor | None, scale_b: torch.Tensor | None
) -> None:
    if scale_a is None or scale_b is None:
        missing, present = ("scale_a", "scale_b") if scale_a is None else ("scale_b", "scale_a")
        raise ValueError(f"{missing} is None and {present} is given; give both or neither")
    if a.dtype not in (*FP8, torch.int8):
        raise ValueError(f"scale_a is given and a is {a.dtype}; scales are for float8 and int8 operands")
    for name, scale in (("scale_a", scale_a), ("scale_b", scale_b)):
        if scale.dtype != torch.float32 or scale.device != a.device:
            raise ValueError(f"{name} is {scale.dtype} on {scale.device}; it must be float32 on {a.device}")
    rows = {(a.shape[-2], 1), (*result_shape(a, b, None)[:-1], 1)}
    if scale_kind(scale_a, scale_b) == "row" and (
        tuple(scale_a.shape) not in rows or tuple(scale_b.shape) != (1, b.shape[-1])
    ):
        raise ValueError(
            f"scale_a is {tuple(scale_a.shape)} and scale_b is {tuple(scale_b.shape)}; give one number each, or "
            f"({a.shape[-2]}, 1) and (1, {b.shape[-1]})"
        )


def _check_addend(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
    if tensor.dtype != dtype or tensor.device != device:
        raise ValueError(
            f"{name} is {tensor.dtype} on {tensor.device}; like the result it must be {dtype} on {device}"
        )


def check_out(out: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """:raises ValueError: if a result of this shape, dtype and device can't be written into ``out``."""
    _check_addend("out", out, shape, dtype, device)
    if not out.is_contiguous():
        raise ValueError(f"out has strides {out.stride()}; it must be contiguous")


def check_apart(out: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    """:raises ValueError: if one of them lies in memory that ``out`` is written to; only where there is memory."""
    start, end = _reach(out)
    for name, tensor in tensors.items():
        if tensor is None or not tensor.numel() or not out.numel():
            continue
        # Each of its elements is read just before the result is written in its place.
        in_place = name == "residual" and (tensor.data_ptr(), tensor.stride()) == (out.data_ptr(), out.stride())
        first, last = _reach(tensor)
        if first < end and start < last and not in_place:
            raise ValueError(
                f"out shares memory with {name}, which is still read while it is written; pass another"
            )


def _reach(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of its first byte, and of the one past its last."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()
