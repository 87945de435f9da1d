"""The problems of ``lora``: their fields, random arguments of one, what it costs, and the ways torch has."""

from __future__ import annotations

from typing import TypeAlias

import torch

from autotune.arithmetic import cdiv
from autotune.data import ITEMSIZE, Device, Problem
from autotune.kernel import Field, Provider, Work
from autotune.kernels._lora_operator import check, check_values
from autotune.kernels._tensors import random, relaid

MAX_RANK = 256

#: Which adapters a batch has is no field: it changes from call to call, and only the device knows.
FIELDS = (
    #: Tokens.
    Field("T", "size"),
    Field("K", "size"),
    Field("N", "size"),
    Field("R", "size", minimum=1, maximum=MAX_RANK),
    #: Adapters.
    Field("A", "size"),
    Field("dtype", "dtype"),
    #: Whether there is something to add to.
    Field("base", "flag", default=False),
    # Letters for the matrices of a and b: n rows contiguous, t columns contiguous, s neither.
    Field("layout", "choice", "nn", choices=tuple(a + b for a in "nts" for b in "nts")),
    Field("aligned", "flag", default=True),
)

#: Up to as many tokens :func:`inputs` draws an adapter for each, as in decoding; above, for runs, as of prompts.
DECODED = 256
#: Tokens of one run, on average.
_RUN = 128

#: Weights that the provider ``gather`` may copy, in elements, and adapters that ``loop`` may take for every token.
_MOST_GATHERED = 2**28
_MOST_LOOPED = 16
#: Weights that the reference copies at a time.
_PIECE = 2**26

_Args: TypeAlias = (
    "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] "
    "| tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]"
)


def sizes(problem: Problem) -> tuple[int, int, int, int, int]:
    """T, K, N, R and A."""
    tokens, width, outputs, rank, adapters = (problem.integer(name) for name in "TKNRA")
    return tokens, width, outputs, rank, adapters


def inputs(problem: Problem, seed: int, device: str) -> _Args:
    """Every sixteenth token has no adapter."""
    generator = torch.Generator().manual_seed(seed)
    tokens, width, outputs, rank, adapters = sizes(problem)
    layout, off = str(problem.get("layout", "nn")), not problem.get("aligned", True)

    def draw(*shape: int) -> torch.Tensor:
        return random(*shape, dtype=str(problem["dtype"]), device=device, generator=generator)

    x = relaid(draw(tokens, width), "n", off)
    a, b = (
        relaid(draw(adapters, rank, width), layout[0], off),
        relaid(draw(adapters, outputs, rank), layout[1], off),
    )
    ids = _ids(tokens, adapters, generator).to(device)
    return (x, a, b, ids, draw(tokens, outputs)) if problem.get("base") else (x, a, b, ids)


def _ids(tokens: int, adapters: int, generator: torch.Generator) -> torch.Tensor:
    if adapters == 0:
        return torch.full((tokens,), -1, dtype=torch.int32)
    run = 1 if tokens <= DECODED else _RUN
    ids = torch.randint(adapters, (cdiv(tokens, run),), generator=generator, dtype=torch.int32)
    ids = ids.repeat_interleave(run)[:tokens]
    ids[15::16] = -1
    return ids


def work(problem: Problem) -> Work:
    """Of the adapters that :func:`inputs` draws, each read once; as if every token had one."""
    tokens, width, outputs, rank, adapters = sizes(problem)
    runs = tokens if tokens <= DECODED else cdiv(tokens, _RUN)
    weights = min(runs, adapters) * rank * (width + outputs)
    moved = tokens * (width + outputs * (2 if problem.get("base") else 1)) + weights
    return Work(flops=2 * tokens * rank * (width + outputs), bytes=moved * ITEMSIZE[str(problem["dtype"])])


def reference(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    base: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """Batched products with each token's weights, as many tokens at a time as their copies allow."""
    check(x, a, b, adapter_ids, base, scale)
    check_values(adapter_ids, a.shape[0])
    if a.shape[0] == 0:
        return _start(x, b, base)
    piece = max(1, _PIECE // max(1, a.shape[1] * (a.shape[2] + b.shape[1])))
    ids = torch.where(adapter_ids < a.shape[0], adapter_ids, -1)
    deltas = [
        torch.bmm(b[some], torch.bmm(a[some], rows.unsqueeze(2))).squeeze(2)
        for some, rows in zip(ids.clamp(min=0).split(piece), x.split(piece), strict=True)
    ]
    whole = scale * torch.cat(deltas)
    start = _start(x, b, base)
    return torch.where((ids >= 0).unsqueeze(1), start + whole, start)


def _start(x: torch.Tensor, b: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
    if base is None:
        return x.new_zeros(x.shape[0], b.shape[1])
    return base.clone(memory_format=torch.contiguous_format)


def _loop(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    base: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """Every adapter for every token; which of them occur only the device knows."""
    check(x, a, b, adapter_ids, base, scale)
    check_values(adapter_ids, a.shape[0])
    start = result = _start(x, b, base)
    for adapter in range(a.shape[0]):
        moved = start + scale * (x @ a[adapter].mT @ b[adapter].mT)
        result = torch.where((adapter_ids == adapter).unsqueeze(1), moved, result)
    return result


def baseline(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    adapter_ids: torch.Tensor,
    base: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """A loop over few adapters for many tokens, else each token's own weights."""
    few = a.shape[0] <= min(_MOST_LOOPED, x.shape[0])
    return (_loop if few else reference)(x, a, b, adapter_ids, base, scale)


def _gathers_too_much(problem: Problem, device: Device) -> str | None:
    tokens, width, outputs, rank, _ = sizes(problem)
    copied = tokens * rank * (width + outputs)
    if copied <= _MOST_GATHERED:
        return None
    return f"copies {copied} weights, over {_MOST_GATHERED}"


def _loops_too_long(problem: Problem, device: Device) -> str | None:
    adapters = problem.integer("A")
    if adapters <= _MOST_LOOPED:
        return None
    return f"takes all {adapters} adapters for every token, over {_MOST_LOOPED}"


PROVIDERS = {"gather": Provider(reference, _gathers_too_much), "loop": Provider(_loop, _loops_too_long)}
