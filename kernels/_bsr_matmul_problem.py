"""What the problems of ``bsr_matmul`` say: their fields, random arguments for one, and its work."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import lru_cache, partial
from typing import Any

import torch

from autotune.arithmetic import cdiv, clamp
from autotune.data import ITEMSIZE, Problem
from autotune.kernel import Field, Work
from autotune.kernels._bsr import BLOCKS, BsrWeight
from autotune.kernels._bsr_chunks import counts
from autotune.kernels._bsr_matmul_plan import Product
from autotune.kernels._bsr_pattern import IMBALANCES, imbalance_step
from autotune.kernels._density import DENSITIES, density_step
from autotune.kernels._tensors import random, relaid

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")

FIELDS = (
    # Of x, and of the weight as it is stored.
    Field("M", "size"),
    Field("N", "size"),
    Field("K", "size"),
    # Traits, not sizes: a config tuned for blocks of 32 says nothing about blocks of 128.
    Field("BLOCK_ROWS", "choice", choices=BLOCKS),
    Field("BLOCK_COLUMNS", "choice", choices=BLOCKS),
    Field("density", "size", choices=DENSITIES),
    Field("dtype", "dtype"),
    # Of the block rows, or of the block columns where transposed.
    Field("imbalance", "size", default=1, choices=IMBALANCES),
    # Products of x that can't be one of more rows.
    Field("B", "size", default=1),
    # x @ w in place of x @ w.T.
    Field("transposed", "flag", default=False),
    # Of x: n rows contiguous, t columns contiguous, s neither.
    Field("layout", "choice", "n", choices=("n", "t", "s")),
    # The result's columns are contiguous: it is the transpose of what is asked for.
    Field("by_column", "flag", default=False),
    Field("aligned", "flag", default=True),
    Field("bias", "flag", default=False),
    Field("activation", "choice", "none", choices=("none", *ACTIVATIONS)),
    # Of each four of a weight's row two at least are zeros, also within blocks, and torch can use it.
    Field("semi_structured", "flag", default=False),
)


def rule(problem: Problem) -> str | None:
    for size, block in (("N", "BLOCK_ROWS"), ("K", "BLOCK_COLUMNS")):
        if problem.integer(size) % problem.integer(block):
            return f"{size}={problem[size]} must be a multiple of {block}={problem[block]}"
    if problem.get("semi_structured") and problem.get("transposed"):
        return "semi_structured=true is of a weight's rows, not of transposed=true"
    if _stored(problem) is None:
        rows, across = _places(problem)
        return (
            f"no pattern of {rows} x {across} blocks has density={problem['density']} and "
            f"imbalance={problem.get('imbalance', 1)}"
        )
    return None


def _places(problem: Problem) -> tuple[int, int]:
    """Block rows of results, and the most blocks one can have."""
    down = problem.integer("N") // problem.integer("BLOCK_ROWS")
    across = problem.integer("K") // problem.integer("BLOCK_COLUMNS")
    return (across, down) if problem.get("transposed") else (down, across)


@lru_cache(maxsize=1024)
def _stored(problem: Problem) -> tuple[int, int] | None:
    """How many blocks such a pattern has, and how many its fullest row; None if there is no such pattern.

    As near to density and imbalance as whole blocks can be.
    """
    rows, across = _places(problem)
    density, imbalance, places = problem.integer("density"), problem.integer("imbalance", 1), rows * across
    step = partial(density_step, places=places)
    fewest, most = (
        bisect_left(range(places + 1), density, key=step),
        bisect_right(range(places + 1), density, key=step) - 1,
    )
    if fewest > most:
        return None
    wanted = clamp(round(places * density / 100), fewest, most)
    if not wanted and imbalance == 1:
        return 0, 0
    # The mean row, rounded up, from the one wanted outwards.
    means = range(cdiv(max(1, fewest), max(1, rows)), cdiv(most, max(1, rows)) + 1)
    for mean in sorted(means, key=lambda mean: abs(mean - wanted / rows)):
        low, high = max(1, fewest, (mean - 1) * rows + 1), min(most, mean * rows)
        blocks = clamp(max(wanted, min(imbalance * mean, across)), low, high)
        longest = clamp(imbalance * mean, mean, min(across, blocks))
        if imbalance_step(longest, blocks, rows) == imbalance:
            return blocks, longest
    return None


def row_lengths(problem: Problem) -> list[int]:
    """Blocks of each block row of results: some longest rows, that hold up to a quarter of all, then even ones."""
    rows, _ = _places(problem)
    found = _stored(problem)
    if found is None or not rows:
        return [0] * rows
    blocks, longest = found
    long_rows = max(1, min(rows // (4 * problem.integer("imbalance", 1)), blocks // longest)) if longest else 0
    lengths = [longest] * long_rows
    left, others = blocks - longest * long_rows, rows - long_rows
    return lengths + [left * (place + 1) // others - left * place // others for place in range(others)]


def chunk_counts(problem: Problem, most: int) -> tuple[int, int]:
    return counts(row_lengths(problem), most)


def draw_pattern(problem: Problem, generator: torch.Generator) -> torch.Tensor:
    """(N / BLOCK_ROWS, K / BLOCK_COLUMNS) bool, with blocks at random places of rows in random order."""
    rows, across = _places(problem)
    lengths = torch.tensor(row_lengths(problem), dtype=torch.long)[torch.randperm(rows, generator=generator)]
    ranks = torch.rand(rows, across, generator=generator).argsort(dim=1).argsort(dim=1)
    pattern = ranks < lengths[:, None]
    return pattern.T if problem.get("transposed") else pattern


def inputs(problem: Problem, seed: int, device: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    batch, M, N, K = problem.integer("B", 1), *(problem.integer(name) for name in "MNK")
    block = problem.integer("BLOCK_ROWS"), problem.integer("BLOCK_COLUMNS")
    transposed, by_column = (bool(problem.get(name, False)) for name in ("transposed", "by_column"))
    inner, outputs = (N, K) if transposed else (K, N)
    draw = partial(random, dtype=str(problem["dtype"]), device=device, generator=generator)

    pattern = draw_pattern(problem, generator)
    values = draw(int(pattern.sum()), *block)
    if problem.get("semi_structured"):
        values.view(*values.shape[:2], -1, 4)[..., 2:] = 0
    crow = torch.cat([torch.zeros(1, dtype=torch.long), pattern.sum(1).cumsum(0)])
    weight = BsrWeight(crow.to(device), pattern.nonzero()[:, 1].to(device), values, (N, K))

    layout, off = str(problem.get("layout", "n")), not problem.get("aligned", True)
    spare = spare_rows(problem)
    x = relaid(draw(batch, M + spare, inner), layout, off)[:, :M]
    x = x.squeeze(0) if batch == 1 else x
    activation = problem.get("activation")
    if not any(name in problem for name in ("bias", "activation", "transposed", "by_column")):
        return x, weight
    return x, weight, draw(outputs) if problem.get("bias") else None, activation, transposed, by_column


def spare_rows(problem: Problem) -> int:
    """Rows between the products of a batch, which would be one product of more rows without."""
    apart = problem.integer("B", 1) == 1 or problem.get("layout") == "t" or problem.get("by_column", False)
    return 0 if apart else 1


def product_of(problem: Problem) -> Product:
    """The call that :func:`inputs` are the arguments of."""
    batch, M, N, K = problem.integer("B", 1), *(problem.integer(name) for name in "MNK")
    inner, outputs = (N, K) if problem.get("transposed") else (K, N)
    x_row, x_column = {"n": (inner, 1), "t": (1, M), "s": (2 * inner, 2)}[str(problem.get("layout", "n"))]
    between = (M + spare_rows(problem)) * inner * (2 if problem.get("layout") == "s" else 1)
    return Product(
        batch=batch,
        M=M,
        rows=_places(problem)[0],
        block=(problem.integer("BLOCK_ROWS"), problem.integer("BLOCK_COLUMNS")),
        transposed=bool(problem.get("transposed", False)),
        strides_x=(between if batch != 1 else 0, x_row, x_column),
        strides_out=(M * outputs if batch != 1 else 0, *((1, M) if problem.get("by_column") else (outputs, 1))),
        activation=str(problem.get("activation", "none")),
    )


def work(problem: Problem) -> Work:
    """Of as many blocks as :func:`inputs` draws."""
    batch, M, N, K = problem.integer("B", 1), *(problem.integer(name) for name in "MNK")
    stored = sum(row_lengths(problem)) * problem.integer("BLOCK_ROWS") * problem.integer("BLOCK_COLUMNS")
    moved = batch * M * (N + K) + stored
    return Work(flops=2 * batch * M * stored, bytes=moved * ITEMSIZE[str(problem["dtype"])])
