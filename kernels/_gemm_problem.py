"""What the problems of ``matmul`` say: their fields, random arguments for one, and its work."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from autotune.data import FLOATS, ITEMSIZE, Problem
from autotune.kernel import Field, Work
from autotune.kernels._gemm_arguments import ACTIVATIONS
from autotune.kernels._gemm_plan import FP8, Product
from autotune.kernels._tensors import random, relaid

FIELDS = (
    Field("M", "size"),
    Field("N", "size"),
    Field("K", "size"),
    Field("dtype", "dtype", choices=(*FLOATS, *FP8, "int8")),
    Field("B", "size", default=1),
    # BLAS letters for a and b: n rows contiguous, t columns contiguous (a linear layer is nt), s neither.
    Field("layout", "choice", "nn", choices=tuple(x + y for x in "nts" for y in "nts")),
    # False where a base address or a stride is less aligned than fresh tensors of these sizes.
    Field("aligned", "flag", default=True),
    Field("bias", "flag", default=False),
    Field("activation", "choice", "none", choices=("none", *ACTIVATIONS)),
    Field("residual", "flag", default=False),
    Field("scale", "choice", "none", choices=("none", "tensor", "row")),
    # Of the result, where it is not what the operands' dtype and scale make it.
    Field("out", "choice", "default", choices=("default", *FLOATS, "int32")),
    Field("tf32", "flag", default=False),
    # A row's bits don't depend on the other rows: one config for every M.
    Field("batch_invariant", "flag", default=False),
    # Products may be added up in the bits that the tensor cores have.
    Field("fast_accum", "flag", default=False),
)


def _strides(batch: int, rows: int, columns: int, layout: str) -> tuple[int, int, int]:
    """Of the batch, the rows and the columns of what :func:`inputs` makes."""
    row, column = {"n": (columns, 1), "t": (1, rows), "s": (2 * columns, 2)}[layout]
    # To torch a batch of one is a new first dimension, whose stride is the next one's size times its stride.
    return rows * row if batch == 1 else rows * columns * (2 if layout == "s" else 1), row, column


def rule(problem: Problem) -> str | None:
    dtype, result = str(problem["dtype"]), out_dtype(problem)
    if problem.get("activation") == "swiglu" and problem.integer("N") % 2:
        return f"N={problem['N']} must be even for activation=swiglu"
    if "scale" in problem and dtype not in (*FP8, "int8"):
        return f"scale={problem['scale']} is for float8 and int8, not for dtype={dtype}"
    if problem.get("tf32") and dtype != "float32":
        return f"tf32=true is for dtype=float32, not for {dtype}"
    if problem.get("fast_accum") and dtype not in FP8:
        return f"fast_accum=true is for float8, not for dtype={dtype}"
    if result == "int32" and (
        dtype != "int8" or any(n in problem for n in ("bias", "activation", "residual", "scale"))
    ):
        return "a result in int32 is of dtype=int8, and nothing follows the product; give out=bfloat16"
    return None


def product_of(problem: Problem) -> Product:
    """The call that :func:`inputs` are the arguments of."""
    batch, M, N, K = problem.integer("B", 1), *(problem.integer(name) for name in "MNK")
    layout, on_16_bytes = str(problem.get("layout", "nn")), bool(problem.get("aligned", True))
    dtype, result = str(problem["dtype"]), out_dtype(problem)
    return Product(
        batch=batch,
        M=M,
        N=N,
        K=K,
        dtype=dtype,
        out_dtype=result,
        strides_a=_strides(batch, M, K, layout[0]),
        strides_b=_strides(batch, K, N, layout[1]),
        layout=layout,
        on_16_bytes=on_16_bytes,
        activation=str(problem.get("activation", "none")),
        scale=str(problem.get("scale", "none")),
        tf32=bool(problem.get("tf32", False)),
        fast_accum=bool(problem.get("fast_accum", False)),
    )


def inputs(problem: Problem, seed: int, device: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    batch, M, N, K = problem.integer("B", 1), *(problem.integer(name) for name in "MNK")
    layout, off = str(problem.get("layout", "nn")), not problem.get("aligned", True)
    dtype, result = str(problem["dtype"]), out_dtype(problem)

    def operand(*sizes: int) -> torch.Tensor:
        if dtype == "int8":
            return torch.randint(-128, 128, sizes, dtype=torch.int8, generator=generator).to(device)
        return random(*sizes, dtype=dtype, device=device, generator=generator)

    def scale(*sizes: int) -> torch.Tensor:
        return (0.5 + 1.5 * torch.rand(*sizes, generator=generator)).to(device)

    def shaped(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if batch != 1 else tensor.squeeze(0)

    a = shaped(relaid(operand(batch, M, K), layout[0], off))
    b = shaped(relaid(operand(batch, K, N), layout[1], off))
    if not _follows(problem):
        return a, b
    activation = problem.get("activation")
    kind, extra = problem.get("scale"), partial(random, dtype=result, device=device, generator=generator)
    scale_a = scale_b = None
    if kind is not None:
        scale_a, scale_b = (shaped(scale(batch, M, 1)), scale(1, N)) if kind == "row" else (scale(1), scale(1))
        # Results near 1, whatever K; the mean square of random int8 is 74**2.
        scale_b = scale_b / (max(1, K) ** 0.5 * (74**2 if dtype == "int8" else 1))
    bias = extra(N) if problem.get("bias") else None
    columns = N // 2 if activation == "swiglu" else N
    residual = shaped(extra(batch, M, columns)) if problem.get("residual") else None
    out = getattr(torch, result) if "out" in problem else None
    flags = (bool(problem.get(name, False)) for name in ("batch_invariant", "tf32", "fast_accum"))
    return (a, b, bias, activation, residual, scale_a, scale_b, out, *flags)


def _follows(problem: Problem) -> bool:
    """Whether the problem is more than a @ b."""
    names = ("bias", "activation", "residual", "scale", "out", "tf32", "batch_invariant", "fast_accum")
    return any(name in problem for name in names)


def out_dtype(problem: Problem) -> str:
    """The dtype of the result."""
    dtype, out = str(problem["dtype"]), str(problem.get("out", "default"))
    if out != "default":
        return out
    if dtype == "int8":
        return "bfloat16" if "scale" in problem else "int32"
    return "bfloat16" if dtype in FP8 else dtype


def work(problem: Problem) -> Work:
    batch, M, N, K = problem.integer("B", 1), *(problem.integer(name) for name in "MNK")
    columns = N // 2 if problem.get("activation") == "swiglu" else N
    read = (M * K + K * N) * ITEMSIZE[str(problem["dtype"])]
    written = M * columns * (2 if problem.get("residual") else 1) * ITEMSIZE[out_dtype(problem)]
    return Work(flops=2 * batch * M * N * K, bytes=batch * (read + written))
