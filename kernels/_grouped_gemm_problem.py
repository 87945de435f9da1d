"""The problems of ``grouped_gemm``: their fields, random arguments of one, and what it costs."""

from __future__ import annotations

from typing import Any

import torch

from autotune.data import ITEMSIZE, Problem
from autotune.kernel import Field, Work
from autotune.kernels._gemm_arguments import ACTIVATIONS
from autotune.kernels._grouped_gemm_plan import Grouped
from autotune.kernels._tensors import random, relaid

#: How even the groups are is no field: it changes from call to call, and only the device knows.
FIELDS = (
    Field("T", "size"),
    Field("K", "size"),
    Field("N", "size"),
    Field("G", "size"),
    Field("dtype", "dtype"),
    # BLAS letters for x and each weight: n rows contiguous, t columns contiguous, s neither.
    Field("layout", "choice", "nn", choices=tuple(x + w for x in "nts" for w in "nts")),
    Field("aligned", "flag", default=True),
    Field("bias", "flag", default=False),
    Field("activation", "choice", "none", choices=("none", *ACTIVATIONS)),
)


def rule(problem: Problem) -> str | None:
    if problem.get("activation") == "swiglu" and problem.integer("N") % 2:
        return f"N={problem['N']} must be even for activation=swiglu"
    return None


def sizes(problem: Problem) -> tuple[int, int, int, int]:
    """T, K, N and G."""
    T, K, N, groups = (problem.integer(name) for name in ("T", "K", "N", "G"))
    return T, K, N, groups


def product_of(problem: Problem) -> Grouped:
    """The call that :func:`inputs` are the arguments of."""
    T, K, N, groups = sizes(problem)
    layout = str(problem.get("layout", "nn"))
    by_group = K * N * (2 if layout[1] == "s" else 1)
    return Grouped(
        T=T,
        K=K,
        N=N,
        groups=groups,
        dtype=str(problem["dtype"]),
        strides_x={"n": (K, 1), "t": (1, T), "s": (2 * K, 2)}[layout[0]],
        strides_w=(by_group, *{"n": (N, 1), "t": (1, K), "s": (2 * N, 2)}[layout[1]]),
        layout=layout,
        on_16_bytes=bool(problem.get("aligned", True)),
        activation=str(problem.get("activation", "none")),
    )


def inputs(problem: Problem, seed: int, device: str) -> tuple[Any, ...]:
    """Of a split that :func:`ragged` draws; no row is without a group."""
    generator = torch.Generator().manual_seed(seed)
    T, K, N, groups = sizes(problem)
    layout, off = str(problem.get("layout", "nn")), not problem.get("aligned", True)

    def drawn(*shape: int) -> torch.Tensor:
        return random(*shape, dtype=str(problem["dtype"]), device=device, generator=generator)

    x, w = relaid(drawn(T, K), layout[0], off), relaid(drawn(groups, K, N), layout[1], off)
    offs = ragged(T, groups, generator).to(device)
    if not ("bias" in problem or "activation" in problem):
        return x, w, offs
    return x, w, offs, drawn(groups, N) if problem.get("bias") else None, problem.get("activation")


def ragged(tokens: int, groups: int, generator: torch.Generator) -> torch.Tensor:
    """(groups,) int32: where groups end that share ``tokens``; one is empty, and one has half of them."""
    if groups < 2:
        return torch.full((groups,), tokens, dtype=torch.int32)
    empty, hot = torch.randperm(groups, generator=generator)[:2].tolist()
    shares = torch.rand(groups, generator=generator, dtype=torch.float64)
    shares[[empty, hot]] = 0
    shares[hot] = shares.sum() + 0.1
    return (shares.cumsum(0) / shares.sum() * tokens).round().int()


def work(problem: Problem) -> Work:
    """Of groups none of which is empty."""
    T, K, N, groups = sizes(problem)
    columns = N // 2 if problem.get("activation") == "swiglu" else N
    moved = T * (K + columns) + min(groups, T) * K * N
    return Work(flops=2 * T * K * N, bytes=moved * ITEMSIZE[str(problem["dtype"])])
