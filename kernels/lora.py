"""``lora``: many low-rank adapters in one batch, added to the output of the base layer in the same pass.

A launch shrinks each token to the rank of its adapter, splitting the long sum over programs where tokens are few; a
second one adds up the parts, expands and adds the base. ``gathered``: token by token. ``fused``: the same in one
launch. ``runs``: by tiles of tokens as they lie, on tensor cores. ``grouped``: by tiles of tokens sorted by adapter
on the device.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from autotune.data import Config, Problem
from autotune.kernel import Kernel, Signature, Tolerance
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._lora_operator import OPERATOR, check, check_out, check_values, in_place
from autotune.kernels._lora_plan import Sizes, launches, sorts
from autotune.kernels._lora_problem import FIELDS, PROVIDERS, baseline, inputs, reference, sizes, work
from autotune.kernels._lora_rows import shrink_row
from autotune.kernels._tensors import aligned, dtype_name, matrix_layout

#: Pointers of the functions, with "order" and "base" None where there is none.
_TENSORS = ("x", "a", "b", "ids", "order", "h", "base", "out")


def problem(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    base: torch.Tensor | None = None,
    scale: float = 1.0,
) -> Problem:
    """:raises ValueError: if the arguments don't fit together, or the kernel does not take them."""
    check(x, a, b, adapter_ids, base, scale)
    return KERNEL.make(
        T=x.shape[0],
        K=x.shape[1],
        N=b.shape[1],
        R=a.shape[1],
        A=a.shape[0],
        dtype=dtype_name(x=x, a=a, b=b),
        base=base is not None,
        layout=matrix_layout(a) + matrix_layout(b),
        aligned=aligned(x, a, b),
    )


def key(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    base: torch.Tensor | None = None,
    scale: float = 1.0,
) -> Hashable:
    # That sizes and dtypes of a are those of b and x, run checks.
    return (
        x.shape,
        b.shape,
        x.stride(),
        a.stride(),
        b.stride(),
        x.dtype,
        x.get_device(),
        (x.data_ptr() | a.data_ptr() | b.data_ptr()) & 15,
        base is None,
    )


def run(
    config: Config,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    base: torch.Tensor | None = None,
    scale: float = 1.0,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """(tokens, out) in the dtype of ``x``: contiguous, or ``out``, which may be ``base``; see :func:`lora`."""
    check(x, a, b, adapter_ids, base, scale)
    check_values(adapter_ids, a.shape[0])
    if out is not None:
        check_out(out, x, a, b, adapter_ids, base)
    if must_widen(shrink_row, x) or (out is not None and _strided(out) is None):
        result = _beside(config, x, a, b, adapter_ids, base, scale)
        return result if out is None else out.copy_(result)
    (tokens, width), outputs = x.shape, b.shape[1]
    result = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device) if out is None else out
    if not result.numel():
        return result
    x = x if _strided(x) is not None else x.contiguous()
    base = base if base is None or _strided(base) is not None else base.contiguous()
    call = Sizes(
        T=tokens,
        K=width,
        N=outputs,
        R=a.shape[1],
        A=a.shape[0],
        stride_xt=x.stride(0),
        strides_a=a.stride(),
        strides_b=b.stride(),
        stride_base=0 if base is None else base.stride(0),
        stride_out=result.stride(0),
        in_place=in_place(base, result),
    )
    ids = adapter_ids.contiguous()
    order = torch.sort(ids, stable=True).indices if sorts(config) else None
    values: dict[str, Any] = {"x": x, "a": a, "b": b, "ids": ids, "order": order, "base": base, "out": result}
    plan = launches(call, config)
    if len(plan) > 1:
        shape = config.integer("SPLIT_K"), tokens, a.shape[1]
        values["h"] = torch.empty(shape, dtype=torch.float32, device=x.device)
    for step in plan:
        given = {**values, **step.integers, "scale": scale}
        args = [given[name] for name in step.given(*given)]
        launch(step.function, step.programs, *args, config=config, **step.constexprs)
    return result


def _strided(rows: torch.Tensor) -> int | None:
    """The distance of its rows, if they are contiguous."""
    return rows.stride(0) if rows.stride(1) == 1 or rows.shape[1] <= 1 else None


def _beside(
    config: Config,
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    base: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """A new tensor; where it must be, by way of float32."""
    if not must_widen(shrink_row, x):
        return run(config, x, a, b, adapter_ids, base, scale)
    wide = run(config, x.float(), a.float(), b.float(), adapter_ids, None if base is None else base.float(), scale)
    return wide.to(x.dtype)


def compile_signature(problem: Problem, config: Config) -> tuple[Signature, ...]:
    tokens, width, outputs, rank, adapters = sizes(problem)
    layout, based = str(problem.get("layout", "nn")), bool(problem.get("base", False))

    def strides(letter: str, rows: int, columns: int) -> tuple[int, int, int]:
        step = 2 if letter == "s" else 1
        inner = (1, rows) if letter == "t" else (step * columns, step)
        return step * rows * columns, *inner

    call = Sizes(
        T=tokens,
        K=width,
        N=outputs,
        R=rank,
        A=adapters,
        stride_xt=width,
        strides_a=strides(layout[0], rank, width),
        strides_b=strides(layout[1], outputs, rank),
        stride_base=outputs if based else 0,
        stride_out=outputs,
    )
    dtype = TRITON_NAMES[str(problem["dtype"])]
    types: dict[str, str] = {**dict.fromkeys(("x", "a", "b", "out"), dtype), "ids": "i32", "h": "fp32"}
    types |= {"order": "i64"} if sorts(config) else {}
    types |= {"base": dtype} if based else {}
    signatures = []
    for step in launches(call, config):
        names = step.given(*_TENSORS)
        absent: dict[str, Any] = dict.fromkeys(name for name in names if name not in types)
        signatures.append(
            signature(
                step.function,
                step.programs,
                pointers={name: types[name] for name in names if name in types},
                misaligned=() if problem.get("aligned", True) else ("x", "a", "b"),
                integers=step.integers,
                floats=step.given("scale"),
                constexprs={**step.constexprs, **absent},
                config=config,
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
    baseline=baseline,
    work=work,
    problems=(
        "T=9,K=128,N=96,R=16,A=4,dtype=float16,base=true",
        "T=5,K=200,N=72,R=1,A=40,dtype=float32",
        "T=300,K=96,N=72,R=24,A=3,dtype=bfloat16,base=true,layout=tt",
        "T=4,K=70,N=33,R=40,A=2,dtype=float16,layout=ss,aligned=false",
    ),
    # Two products, one after the other.
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=8),
    },
    signature=compile_signature,
    providers=PROVIDERS,
    operator=OPERATOR,
)
