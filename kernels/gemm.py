"""``matmul``: matrix products with what follows them, batched, any strides, in a structure the tuner chooses.

``tiled``: one program a tile, K split on request. ``persistent``: as many programs as run side by side.
``descriptor``: the same by TMA. ``skinny``: a few rows, without tensor cores. Each is one file, ``_gemm_*.py``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch

from autotune.data import Config, Problem
from autotune.kernel import Kernel, Signature, Tolerance
from autotune.kernels._gemm_arguments import FP8, result_dtype, result_shape, scale_kind
from autotune.kernels._gemm_check_operator import check, check_apart, check_out
from autotune.kernels._gemm_operator import OPERATOR, SERVES
from autotune.kernels._gemm_plan import Product, launches
from autotune.kernels._gemm_problem import FIELDS, inputs, product_of, rule, work
from autotune.kernels._gemm_reference import baseline, peer, reference
from autotune.kernels._gemm_tiled import tiled
from autotune.kernels._launch import TRITON_NAMES, launch, multiprocessors, must_widen, signature
from autotune.kernels._tensors import DTYPE_NAMES, aligned, dtype_name, foldable, matrix_layout


def _batched(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., M, K) and (..., K, N) as views (batch, M, K) and (batch, K, N), broadcast as torch.matmul does.

    A shared right-hand side folds the batch into M: one big product reads it once.
    """
    if a.dim() == b.dim() == 2:
        return a.unsqueeze(0), b.unsqueeze(0)
    if b.dim() == 2 and foldable(a):
        return a.reshape(1, math.prod(a.shape[:-1]), a.shape[-1]), b.unsqueeze(0)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    count = math.prod(batch)
    wide_a = a.expand(*batch, *a.shape[-2:]).reshape(count, *a.shape[-2:])
    wide_b = b.expand(*batch, *b.shape[-2:]).reshape(count, *b.shape[-2:])
    return wide_a, wide_b


def problem(
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
) -> Problem:
    """:raises ValueError: if the arguments don't fit together; see :func:`check`."""
    check(a, b, bias, activation, residual, scale_a, scale_b, out_dtype)
    dtype = dtype_name(a=a, b=b)
    wide_a, wide_b = _batched(a, b)
    batch, M, K = wide_a.shape
    result = result_dtype(a, scale_a, out_dtype)
    return KERNEL.make(
        M=M,
        N=wide_b.shape[2],
        K=K,
        dtype=dtype,
        B=batch,
        layout=matrix_layout(wide_a) + matrix_layout(wide_b),
        aligned=aligned(wide_a, wide_b),
        bias=bias is not None,
        activation=activation or "none",
        residual=residual is not None,
        scale=scale_kind(scale_a, scale_b),
        out="default" if result == result_dtype(a, scale_a, None) else DTYPE_NAMES[result],
        tf32=allow_tf32 and a.dtype == torch.float32,
        batch_invariant=batch_invariant,
        fast_accum=fast_accum and a.dtype in FP8,
    )


def key(
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
) -> Hashable:
    return (
        a.shape,
        b.shape,
        a.stride(),
        b.stride(),
        a.dtype,
        a.dtype is b.dtype,
        a.get_device(),
        (a.data_ptr() | b.data_ptr()) & 15,
        bias is None,
        activation,
        residual is None,
        None if scale_a is None else (scale_a.shape, scale_b is None),
        out_dtype,
        batch_invariant,
        allow_tf32,
        fast_accum,
    )


def run(
    config: Config,
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
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See :func:`autotune.ops.matmul`. The result is contiguous, and ``out`` where that is given."""
    check(a, b, bias, activation, residual, scale_a, scale_b, out_dtype)
    dtype, shape = result_dtype(a, scale_a, out_dtype), result_shape(a, b, activation)
    if out is not None:
        check_out(out, shape, dtype, a.device)
        check_apart(out, a=a, b=b, bias=bias, residual=residual, scale_a=scale_a, scale_b=scale_b)
    c = torch.empty(shape, dtype=dtype, device=a.device) if out is None else out
    if must_widen(tiled, a) or must_widen(tiled, c):
        wide_a, wide_b = _widened(a), _widened(b)
        wide_bias, wide_residual = (None if tensor is None else tensor.float() for tensor in (bias, residual))
        extras = wide_bias, activation, wide_residual, scale_a, scale_b, torch.float32
        return c.copy_(run(config, wide_a, wide_b, *extras, batch_invariant, allow_tf32, fast_accum))
    if not c.numel():
        return c
    wide_a, wide_b = _batched(a, b)
    (batch, M, K), N = wide_a.shape, wide_b.shape[2]
    kind = scale_kind(scale_a, scale_b)
    product = Product(
        batch=batch,
        M=M,
        N=N,
        K=K,
        dtype=DTYPE_NAMES[a.dtype],
        out_dtype=DTYPE_NAMES[c.dtype],
        strides_a=wide_a.stride(),
        strides_b=wide_b.stride(),
        layout=matrix_layout(wide_a) + matrix_layout(wide_b),
        on_16_bytes=(wide_a.data_ptr() | wide_b.data_ptr() | c.data_ptr()) % 16 == 0,
        activation=activation or "none",
        scale=kind,
        tf32=allow_tf32 and a.dtype == torch.float32,
        fast_accum=fast_accum and a.dtype in FP8,
    )
    plan = launches(product, config)
    if kind == "row" and scale_a is not None:
        scale_a = scale_a.expand(*shape[:-1], 1)
    tensors = {
        **{"a": wide_a, "b": wide_b, "c": c, "bias": _dense(bias), "residual": _dense(residual)},
        **{"scale_a": _dense(scale_a), "scale_b": _dense(scale_b)},
    }
    if len(plan) > 1:
        parts = config.integer("SPLIT_K"), batch, M, N
        tensors["parts"] = torch.empty(parts, dtype=getattr(torch, product.sum_dtype), device=a.device)
    for step in plan:
        programs = min(step.programs, multiprocessors(a)) if step.persistent else step.programs
        args = [
            step.integers[name] if name in step.integers else tensors.get(step.operand(name))
            for name in step.arguments
        ]
        launch(step.function, programs, *args, config=step.config, descriptors=step.descriptors, **step.constexprs)
    return c


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


def compile_signature(problem: Problem, config: Config) -> tuple[Signature, ...]:
    product = product_of(problem)
    types = {"a": product.dtype, "b": product.dtype, "c": product.out_dtype, "parts": product.sum_dtype}
    types.update({name: product.out_dtype for name in ("bias", "residual") if problem.get(name)})
    if product.scale != "none":
        types.update(scale_a="float32", scale_b="float32")
    signatures = []
    for step in launches(product, config):
        pointers = {
            name: TRITON_NAMES[types[step.operand(name)]] for name in step.arguments if step.operand(name) in types
        }
        absent = [name for name in step.arguments if name not in step.integers and name not in pointers]
        constexprs: dict[str, Any] = {**step.constexprs, **dict.fromkeys(absent)}
        signatures.append(
            signature(
                step.function,
                step.programs,
                pointers=pointers,
                misaligned=() if product.on_16_bytes else ("a", "b"),
                integers=step.integers,
                constexprs=constexprs,
                config=step.config,
            )
        )
    return tuple(signatures)


KERNEL = Kernel(
    fields=FIELDS,
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    peer=peer,
    baseline=baseline,
    work=work,
    problems=(
        "M=128,N=128,K=64,dtype=float16",
        "M=64,N=96,K=128,dtype=bfloat16,layout=nt",
        "M=64,N=64,K=64,dtype=float32,B=2,layout=tn",
        "M=67,N=131,K=93,dtype=float16,layout=nt",
        "M=1,N=160,K=200,dtype=float32,layout=nt",
        "M=33,N=17,K=70,dtype=float32,layout=ss,aligned=false",
        "M=64,N=96,K=128,dtype=bfloat16,layout=nt,bias=true,activation=swiglu,residual=true",
        "M=33,N=64,K=64,dtype=float8_e4m3fn,layout=nt,scale=row",
        "M=8,N=64,K=96,dtype=int8,layout=nt,bias=true,scale=tensor,out=float16",
    ),
    # 2x is flash-attention's and quack's factor; ulps cover the rounding of the output, and for float32 the
    # order of summation, where torch's blocked sums may happen to be nearly exact.
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=4),
    },
    signature=compile_signature,
    operator=OPERATOR,
    serves=SERVES,
    rule=rule,
)
