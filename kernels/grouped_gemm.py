"""``grouped_gemm``: each group of rows times its own weight, as in a mixture of experts.

Group sizes are on the device and stay there: the launch depends on shapes alone, and each program finds the rows
of its tile in the offsets. ``tiled``: one program a tile. ``persistent``: as many programs as run side by side
take tile after tile. ``descriptor``: the same by TMA. The kernels are in ``_grouped_gemm_tiles.py`` and
``_grouped_gemm_descriptor.py``.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from autotune.data import Config, Problem
from autotune.kernel import Kernel, Provider, Signature, Tolerance
from autotune.kernels._grouped_gemm_descriptor import descriptor
from autotune.kernels._grouped_gemm_operator import OPERATOR, SERVES, check, check_values, result_shape
from autotune.kernels._grouped_gemm_plan import Grouped, plan
from autotune.kernels._grouped_gemm_problem import FIELDS, inputs, product_of, rule, work
from autotune.kernels._grouped_gemm_reference import baseline, by_torch, reference, torch_lacks
from autotune.kernels._grouped_gemm_tiles import tiled
from autotune.kernels._launch import TRITON_NAMES, launch, multiprocessors, must_widen, signature
from autotune.kernels._tensors import DTYPE_NAMES, aligned, dtype_name, matrix_layout


def problem(
    x: torch.Tensor,
    w: torch.Tensor,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> Problem:
    """:raises ValueError: if the arguments don't fit together, or the kernel does not take them."""
    check(x, w, offs, bias, activation)
    return KERNEL.make(
        T=x.shape[0],
        K=x.shape[1],
        N=w.shape[2],
        G=w.shape[0],
        dtype=dtype_name(x=x, w=w),
        layout=matrix_layout(x) + matrix_layout(w),
        aligned=aligned(x, w),
        bias=bias is not None,
        activation=activation or "none",
    )


def key(
    x: torch.Tensor,
    w: torch.Tensor,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> Hashable:
    # What is not here, run refuses.
    return (
        x.shape,
        w.shape,
        x.stride(),
        w.stride(),
        x.dtype,
        x.get_device(),
        (x.data_ptr() | w.data_ptr()) & 15,
        bias is None,
        activation,
    )


def run(
    config: Config,
    x: torch.Tensor,
    w: torch.Tensor,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """See :func:`autotune.ops.grouped_gemm`."""
    check(x, w, offs, bias, activation)
    check_values(offs, x.shape[0])
    if must_widen(tiled, x):
        wide_bias = None if bias is None else bias.float()
        return run(config, x.float(), w.float(), offs, wide_bias, activation).to(x.dtype)
    shape, (groups, K, N) = result_shape(x, w, activation), w.shape
    if not groups:
        return x.new_zeros(shape)
    c = x.new_empty(shape)
    if not c.numel():
        return c
    product = Grouped(
        T=x.shape[0],
        K=K,
        N=N,
        groups=groups,
        dtype=DTYPE_NAMES[x.dtype],
        strides_x=x.stride(),
        strides_w=w.stride(),
        layout=matrix_layout(x) + matrix_layout(w),
        on_16_bytes=(x.data_ptr() | w.data_ptr()) % 16 == 0,
        activation=activation or "none",
    )
    step = plan(product, config)
    launch(
        step.function,
        min(step.programs, multiprocessors(x)) if step.persistent else step.programs,
        *(x, w, c, None if bias is None else bias.contiguous(), offs.contiguous(), *step.integers.values()),
        config=config,
        descriptors=step.function is descriptor,
        **step.constexprs,
    )
    return c


def compile_signature(problem: Problem, config: Config) -> Signature:
    product = product_of(problem)
    absent: dict[str, Any] = {} if problem.get("bias") else {"bias": None}
    made, element = plan(product, config), TRITON_NAMES[product.dtype]
    tensors = ("x", "w", "c", "bias") if problem.get("bias") else ("x", "w", "c")
    return signature(
        made.function,
        made.programs,
        pointers={**dict.fromkeys(tensors, element), "offs": "i32"},
        misaligned=() if product.on_16_bytes else ("x", "w"),
        integers=made.integers,
        constexprs={**made.constexprs, **absent},
        config=config,
    )


KERNEL = Kernel(
    fields=FIELDS,
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    baseline=baseline,
    providers={"grouped_mm": Provider(by_torch, torch_lacks)},
    work=work,
    problems=(
        "T=96,K=64,N=64,G=4,dtype=float16",
        "T=70,K=72,N=48,G=5,dtype=bfloat16,layout=nt,bias=true,activation=swiglu",
        "T=33,K=50,N=40,G=3,dtype=float32,layout=tn",
        "T=20,K=45,N=34,G=4,dtype=float32,layout=ss,aligned=false,bias=true,activation=gelu",
    ),
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=4),
    },
    signature=compile_signature,
    rule=rule,
    operator=OPERATOR,
    serves=SERVES,
)
