"""``bsr_matmul``: products with a block-sparse matrix from either side, which skip the blocks that are not stored.

A program computes a tile of x's rows against one block row of the weight: it walks over the blocks which that row
stores. ``row``: one program a tile. ``ordered``: the same, the longest rows first. ``persistent``: as many programs
as run side by side, the longest rows first. ``split``: long rows in chunks, whose sums a second launch adds up.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch

from autotune.data import Config, Problem
from autotune.kernel import Kernel, Signature, Tolerance
from autotune.kernels._bsr import BsrWeight
from autotune.kernels._bsr_chunks import chunks_of
from autotune.kernels._bsr_matmul_kept import forget_if_trained, semi_structured
from autotune.kernels._bsr_matmul_operator import OPERATOR, SERVES, check
from autotune.kernels._bsr_matmul_plan import INDICES, Product, launches
from autotune.kernels._bsr_matmul_problem import FIELDS, chunk_counts, inputs, product_of, rule, work
from autotune.kernels._bsr_matmul_reference import PROVIDERS, baseline, reference
from autotune.kernels._bsr_pattern import Pattern
from autotune.kernels._bsr_walk import walk
from autotune.kernels._launch import TRITON_NAMES, launch, multiprocessors, must_widen, signature
from autotune.kernels._tensors import aligned, dtype_name, foldable, matrix_layout


def _batched(x: torch.Tensor, by_column: bool) -> torch.Tensor:
    """(..., inner) as (batch, M, inner): one product where evenly spaced rows make it one, or a copy if need be."""
    if x.dim() <= 2:
        return x.reshape(1, -1, x.shape[-1]) if x.dim() == 1 else x.unsqueeze(0)
    if not by_column and foldable(x):
        return x.reshape(1, math.prod(x.shape[:-1]), x.shape[-1])
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def _walk_of(weight: BsrWeight, transposed: bool) -> tuple[Pattern, torch.Tensor | None]:
    """The pattern whose block rows are the result's, and which stored blocks it means."""
    return weight.pattern.transposed if transposed else (weight.pattern, None)


def problem(
    x: torch.Tensor,
    w_bsr: torch.Tensor | BsrWeight,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    transposed: bool = False,
    by_column: bool = False,
) -> Problem:
    """:raises ValueError: if the arguments don't fit together, or the block size is not the kernel's."""
    weight = BsrWeight.of(w_bsr)
    check(x, weight, bias, activation, transposed, by_column)
    dtype = dtype_name(x=x, w_bsr=weight.values)
    batched = _batched(x, by_column)
    (batch, M, _), (n, k) = batched.shape, weight.shape
    return KERNEL.make(
        M=M,
        N=n,
        K=k,
        BLOCK_ROWS=weight.block[0],
        BLOCK_COLUMNS=weight.block[1],
        density=weight.pattern.density,
        dtype=dtype,
        imbalance=_walk_of(weight, transposed)[0].imbalance,
        B=batch,
        transposed=transposed,
        layout=matrix_layout(batched),
        by_column=by_column,
        aligned=aligned(batched, weight.values),
        bias=bias is not None,
        activation=activation or "none",
        semi_structured=not transposed and semi_structured(weight),
    )


def key(
    x: torch.Tensor,
    w_bsr: torch.Tensor | BsrWeight,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    transposed: bool = False,
    by_column: bool = False,
) -> Hashable:
    weight = BsrWeight.of(w_bsr)
    values, pattern = weight.values, weight.pattern
    # What is not here, run refuses. The density follows from the number of blocks.
    return (
        x.shape,
        x.stride(),
        x.dtype,
        x.get_device(),
        (x.data_ptr() | values.data_ptr()) & 15,
        weight.shape,
        values.shape,
        values.dtype,
        pattern.transposed[0].imbalance if transposed else pattern.imbalance,
        not transposed and semi_structured(weight),
        bias is None,
        activation,
        transposed,
        by_column,
    )


def run(
    config: Config,
    x: torch.Tensor,
    w_bsr: torch.Tensor | BsrWeight,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    transposed: bool = False,
    by_column: bool = False,
) -> torch.Tensor:
    """act(x @ w.T + bias), or if ``transposed`` act(x @ w + bias), accumulated in float32, in the dtype of ``x``.

    Contiguous, or if ``by_column`` the transpose of a contiguous tensor.
    """
    weight = BsrWeight.of(w_bsr)
    check(x, weight, bias, activation, transposed, by_column)
    forget_if_trained(weight)
    if must_widen(walk, x):
        wide = weight._replace(values=weight.values.float())
        wide_bias = None if bias is None else bias.float()
        return run(config, x.float(), wide, wide_bias, activation, transposed, by_column).to(x.dtype)
    outputs = weight.shape[1] if transposed else weight.shape[0]
    if by_column:
        out = torch.empty((*x.shape[:-2], outputs, x.shape[-2]), dtype=x.dtype, device=x.device).mT
    else:
        out = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    pattern, stored_of = _walk_of(weight, transposed)
    batched = _batched(x, by_column)
    batch, M, _ = batched.shape
    product = Product(
        batch=batch,
        M=M,
        rows=pattern.rows,
        block=weight.block,
        transposed=transposed,
        strides_x=_strides(batched.stride(), batch),
        strides_out=_strides((M * outputs, *((1, M) if by_column else (outputs, 1))), batch),
        activation=activation or "none",
    )
    tensors = {
        "x": batched,
        "values": weight.values.contiguous(),
        "starts": pattern.starts,
        "column_of": pattern.column_of,
        "stored_of": stored_of,
        "bias": None if bias is None else bias.contiguous(),
        "out": out,
    }
    if config["STRUCTURE"] in ("ordered", "persistent"):
        tensors["order"] = pattern.longest_first
    if config["STRUCTURE"] == "split":
        chunks = pattern.fact(chunks_of, config.integer("SPLIT"))
        tensors.update(chunks=chunks.table, sums=chunks.sums)
        tensors["partial"] = torch.empty(
            (chunks.parts, batch, M, product.outputs), dtype=torch.float32, device=x.device
        )
    for step in launches(product, config, lambda most: pattern.fact(chunks_of, most).counts):
        programs = step.programs
        if step.persistent:
            programs = min(programs, multiprocessors(x) * config.integer("PER_SM"))
        args = [
            step.integers[name] if name in step.integers else tensors.get(name)
            for name in step.function.arg_names
            if name in step.integers or name in step.tensors
        ]
        launch(step.function, programs, *args, config=step.config, **step.constexprs)
    return out


def _strides(strides: tuple[int, ...], batch: int) -> tuple[int, int, int]:
    """That of the batch is not read where there is one product: 0, so that it recompiles nothing."""
    between, by_row, by_column = strides
    return between if batch != 1 else 0, by_row, by_column


def compile_signature(problem: Problem, config: Config) -> tuple[Signature, ...]:
    dtype = TRITON_NAMES[str(problem["dtype"])]
    types = {
        **dict.fromkeys(("x", "values", "out"), dtype),
        **dict.fromkeys(INDICES, "i32"),
        "partial": "fp32",
    }
    if problem.get("bias"):
        types["bias"] = dtype
    if not problem.get("transposed"):
        del types["stored_of"]
    if config["STRUCTURE"] == "row":
        del types["order"]
    signatures = []
    for step in launches(product_of(problem), config, lambda most: chunk_counts(problem, most)):
        absent: dict[str, Any] = dict.fromkeys(name for name in step.tensors if name not in types)
        signatures.append(
            signature(
                step.function,
                step.programs,
                pointers={name: types[name] for name in step.tensors if name in types},
                misaligned=() if problem.get("aligned", True) else ("x",),
                integers=step.integers,
                constexprs={**step.constexprs, **absent},
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
    baseline=baseline,
    providers=PROVIDERS,
    flips="density",
    work=work,
    problems=(
        "M=64,N=128,K=256,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=50,dtype=float16",
        "M=32,N=128,K=128,BLOCK_ROWS=64,BLOCK_COLUMNS=64,density=20,dtype=bfloat16,bias=true,activation=silu",
        "M=67,N=96,K=160,BLOCK_ROWS=16,BLOCK_COLUMNS=32,density=35,dtype=float32",
        "M=33,N=64,K=128,BLOCK_ROWS=32,BLOCK_COLUMNS=64,density=75,dtype=float16,layout=t",
        "M=48,N=128,K=512,BLOCK_ROWS=16,BLOCK_COLUMNS=32,density=20,dtype=float16,imbalance=4,bias=true",
        "M=33,N=256,K=64,BLOCK_ROWS=32,BLOCK_COLUMNS=16,density=50,dtype=float32,transposed=true",
        "M=20,N=64,K=128,BLOCK_ROWS=16,BLOCK_COLUMNS=64,density=50,dtype=float16,B=2,layout=t,by_column=true",
    ),
    # As gemm, of which this is the sum over fewer terms.
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
