"""``grouped_gemm_weight_gradient``: (groups, K, N) of x[group].T @ d_out[group], as training experts takes it.

One program a tile, and the tiles of all groups are one grid: a hot group's take longer, while the others' fill the
device. ``_grouped_gemm_weight_gradient.py`` has the kernel.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from autotune.arithmetic import cdiv
from autotune.data import ITEMSIZE, Config, Device, Problem
from autotune.kernel import Field, Kernel, Provider, Signature, Tolerance, Work
from autotune.kernels._grouped_gemm_operator import check_values
from autotune.kernels._grouped_gemm_problem import ragged
from autotune.kernels._grouped_gemm_reference import in_rows, lacks_kernel, rows_fit, spans
from autotune.kernels._grouped_gemm_weight_gradient import weight_gradient
from autotune.kernels._grouped_gemm_weight_gradient_operator import OPERATOR, SERVES, check
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._tensors import aligned, dtype_name, matrix_layout, random, relaid


def problem(x: torch.Tensor, d_out: torch.Tensor, offs: torch.Tensor) -> Problem:
    """:raises ValueError: if the arguments don't fit together, or the kernel does not take them."""
    check(x, d_out, offs)
    return KERNEL.make(
        T=x.shape[0],
        K=x.shape[1],
        N=d_out.shape[1],
        G=offs.shape[0],
        dtype=dtype_name(x=x, d_out=d_out),
        layout=matrix_layout(x) + matrix_layout(d_out),
        aligned=aligned(x, d_out),
    )


def key(x: torch.Tensor, d_out: torch.Tensor, offs: torch.Tensor) -> Hashable:
    return (
        x.shape,
        d_out.shape,
        offs.shape,
        x.stride(),
        d_out.stride(),
        x.dtype,
        x.get_device(),
        (x.data_ptr() | d_out.data_ptr()) & 15,
    )


def inputs(problem: Problem, seed: int, device: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    T, K, N, groups = (problem.integer(name) for name in ("T", "K", "N", "G"))
    layout, off = str(problem.get("layout", "nn")), not problem.get("aligned", True)

    def operand(columns: int, letter: str) -> torch.Tensor:
        drawn = random(T, columns, dtype=str(problem["dtype"]), device=device, generator=generator)
        return relaid(drawn, letter, off)

    return operand(K, layout[0]), operand(N, layout[1]), ragged(T, groups, generator).to(device)


def run(config: Config, x: torch.Tensor, d_out: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """See :func:`autotune.ops.grouped_gemm_weight_gradient`."""
    check(x, d_out, offs)
    check_values(offs, x.shape[0])
    if must_widen(weight_gradient, x):
        return run(config, x.float(), d_out.float(), offs).to(x.dtype)
    (T, K), N, groups = x.shape, d_out.shape[1], offs.shape[0]
    d_w = x.new_empty((groups, K, N))
    if d_w.numel() and T:
        launch(
            weight_gradient,
            _programs(K, N, groups, config),
            *(x, d_out, d_w, offs.contiguous(), T, K, N, *x.stride(), *d_out.stride()),
            config=config,
        )
        return d_w
    return d_w.zero_()


def _programs(K: int, N: int, groups: int, config: Config) -> int:
    return groups * cdiv(K, config.integer("BLOCK_K")) * cdiv(N, config.integer("BLOCK_N"))


def reference(x: torch.Tensor, d_out: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    check(x, d_out, offs)
    check_values(offs, x.shape[0])
    d_w = x.new_zeros((offs.shape[0], x.shape[1], d_out.shape[1]))
    for group, (begin, end) in enumerate(spans(offs)):
        d_w[group] = x[begin:end].mT @ d_out[begin:end]
    return d_w


def by_torch(x: torch.Tensor, d_out: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    check(x, d_out, offs)
    check_values(offs, x.shape[0])
    return torch._grouped_mm(in_rows(x).mT, in_rows(d_out), offs=offs.int()).contiguous()


def torch_lacks(problem: Problem, device: Device) -> str | None:
    """Why torch's grouped product can't compute it without reading the device."""
    why = lacks_kernel(problem, device)
    if why is not None or (problem.get("layout", "nn") == "nn" and rows_fit(problem, "K", "N")):
        return why
    return "torch takes contiguous rows of x and d_out, of a multiple of 16 bytes"


def baseline(x: torch.Tensor, d_out: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """torch's grouped product where it takes the tensors, a loop of products where not."""
    try:
        return by_torch(x, d_out, offs)
    except RuntimeError:
        return reference(x, d_out, offs)


def work(problem: Problem) -> Work:
    T, K, N, groups = (problem.integer(name) for name in ("T", "K", "N", "G"))
    moved = T * (K + N) + groups * K * N
    return Work(flops=2 * T * K * N, bytes=moved * ITEMSIZE[str(problem["dtype"])])


def compile_signature(problem: Problem, config: Config) -> Signature:
    T, K, N, groups = (problem.integer(name) for name in ("T", "K", "N", "G"))
    dtype = TRITON_NAMES[str(problem["dtype"])]
    integers = {"T": T, "K": K, "N": N}
    for name, columns, letter in zip("xd", (K, N), str(problem.get("layout", "nn")), strict=True):
        by_token, by_column = {"n": (columns, 1), "t": (1, T), "s": (2 * columns, 2)}[letter]
        integers |= {f"stride_{name}t": by_token, f"stride_{name}{'k' if name == 'x' else 'n'}": by_column}
    return signature(
        weight_gradient,
        _programs(K, N, groups, config),
        pointers={**dict.fromkeys(("x", "d_out", "d_w"), dtype), "offs": "i32"},
        misaligned=() if problem.get("aligned", True) else ("x", "d_out"),
        integers=integers,
        constexprs={},
        config=config,
    )


KERNEL = Kernel(
    fields=(
        Field("T", "size"),
        Field("K", "size"),
        Field("N", "size"),
        Field("G", "size"),
        Field("dtype", "dtype"),
        # BLAS letters for x and d_out: n rows contiguous, t columns contiguous, s neither.
        Field("layout", "choice", "nn", choices=tuple(x + d for x in "nts" for d in "nts")),
        Field("aligned", "flag", default=True),
    ),
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
        "T=70,K=48,N=72,G=3,dtype=bfloat16,layout=nt",
        "T=33,K=50,N=40,G=3,dtype=float32,layout=tn",
        "T=20,K=45,N=34,G=4,dtype=float32,layout=ss,aligned=false",
    ),
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=4),
    },
    signature=compile_signature,
    operator=OPERATOR,
    serves=SERVES,
)
