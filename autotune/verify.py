"""Is a candidate's result right? The two-reference rule, on guarded memory that is NaN before it is written.

Three results of the same inputs: ours, torch's in the same dtype, and the reference in float64. Ours may be
off by a small multiple of what torch is off, plus the rounding of the output (:class:`~autotune.kernel.Tolerance`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from autotune.data import Config
from autotune.guard import Arena, breach, fresh_memory
from autotune.kernel import Kernel, Tensors, Tolerance

#: Of the slack for the largest error, what the mean error gets: one element may be unlucky in its rounding,
#: all of them may not.
RMS_SLACK = 0.1

#: Elements compared at a time.
PIECE = 2**24


def widened(args: Any) -> Any:
    """The arguments with every floating-point tensor in float64."""
    return tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf, args
    )


@contextmanager
def _full_accumulation() -> Iterator[None]:
    """cuBLAS may add up float16 and bfloat16 in their own precision; that would loosen the bound."""
    flags = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = {name: getattr(torch.backends.cuda.matmul, name) for name in flags}
    for name in flags:
        setattr(torch.backends.cuda.matmul, name, False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cuda.matmul, name, value)


@dataclass(frozen=True)
class Truth:
    """One set of arguments and its two references, computed once for all candidates."""

    args: tuple[Any, ...]
    #: The results of the reference in float64.
    exact: Tensors
    #: torch's results in the arguments' own dtype.
    peer: Tensors

    @classmethod
    def of(cls, kernel: Kernel, args: tuple[Any, ...]) -> Truth:
        exact = as_tuple(kernel.reference(*widened(args)))
        with _full_accumulation():
            return cls(args, exact, as_tuple((kernel.peer or kernel.reference)(*args)))


def as_tuple(results: torch.Tensor | Tensors) -> Tensors:
    return results if isinstance(results, tuple) else (results,)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a candidate."""

    text: str
    #: It wrote to memory that is not its own: what this process computes from here on may be wrong.
    corrupting: bool = False


class Oracle:
    """Judges candidates on one or more sets of arguments, which they only ever see as copies."""

    def __init__(self, kernel: Kernel, args: tuple[Any, ...], *others: tuple[Any, ...]) -> None:
        """:param others: more arguments of the same problem, with other data."""
        self.kernel = kernel
        self._truths = [Truth.of(kernel, each) for each in (args, *others)]
        self._arena = Arena(args, *others)
        self.exact = self._truths[0].exact

    def inputs(self) -> tuple[Any, ...]:
        """A copy of the first set, to time a candidate on. The next candidate gets a new copy in its place."""
        return self._arena.load(self._truths[0].args)

    def fault(self, config: Config) -> Fault | None:
        """Run the kernel on each set, then on the first again; None if all is right, else what is wrong.

        All runs find their arguments at the same addresses, so a result remembered by address is a wrong one.
        Both results of the first set must be equal to the last bit. Exceptions of the kernel pass through.
        """
        results = []
        for truth in (*self._truths, self._truths[0]):
            args = self._arena.load(truth.args)
            with fresh_memory() as blocks:
                result = as_tuple(self.kernel.compute(config, *args))
            outside = breach(blocks) or self._arena.fault()
            if outside is not None:
                return Fault(outside, corrupting=True)
            why = self._compare(result, truth)
            if why is not None:
                return Fault(why)
            results.append(result)
        for first, again in zip(results[0], results[-1], strict=True):
            if not torch.equal(_bits(first), _bits(again)):
                worst = (first.double() - again.double()).abs().max().item()
                return Fault(f"two runs on the same inputs differ by up to {worst:.3g}: a race")
            if first.numel() and first.data_ptr() == again.data_ptr():
                return Fault("it returned the same memory twice: its second result overwrites its first")
        return None

    def _compare(self, results: Tensors, truth: Truth) -> str | None:
        if len(results) != len(truth.peer):
            return f"it has {len(results)} results, expected {len(truth.peer)}"
        for number, (result, peer, exact) in enumerate(zip(results, truth.peer, truth.exact, strict=True)):
            which = "result" if len(results) == 1 else f"result {number}"
            if result.shape != peer.shape or result.dtype != peer.dtype:
                return f"{which} is {tuple(result.shape)} {result.dtype}, expected {tuple(peer.shape)} {peer.dtype}"
            if result.is_floating_point():
                tolerance = self.kernel.tolerances[str(result.dtype).removeprefix("torch.")]
                why = compare(result, peer, exact, tolerance)
            else:
                why = unequal(result, exact)
            if why is not None:
                return why if len(results) == 1 else f"{which}: {why}"
        return None


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def compare(result: torch.Tensor, peer: torch.Tensor, exact: torch.Tensor, tolerance: Tolerance) -> str | None:
    """None if ``result`` is as close to ``exact`` as ``tolerance`` allows, else how far off it is.

    :param peer: torch's result in the dtype of ``result``; ``exact``: the float64 one. All of one shape.
    """
    if result.numel() == 0:
        return None
    error, peers, truth = _Norms(), _Norms(), _Norms()
    where = 0
    # In pieces: float64 copies of a large result would not fit beside it.
    pieces = (tensor.reshape(-1).split(PIECE) for tensor in (result, peer, exact))
    for number, (ours, theirs, right) in enumerate(zip(*pieces, strict=True)):
        ours, theirs = ours.double(), theirs.double()
        # A value that overflows the dtype does so in torch too: it must be the same infinity.
        unequal = (~ours.isfinite() | ~theirs.isfinite()) & (ours != theirs) & ~(ours.isnan() & theirs.isnan())
        if unequal.any():
            first = number * PIECE + int(unequal.nonzero()[0])
            return f"values are not finite where torch's are, or the reverse; first at {_place(first, result)}"
        finite = ours.isfinite()
        off = (ours - right).where(finite, 0.0)
        if error.add(off):
            where = number * PIECE + int(off.abs().argmax())
        peers.add((theirs - right).where(finite, 0.0))
        truth.add(right.where(finite, 0.0))
    epsilon = torch.finfo(result.dtype).eps
    for name, ours_off, torch_off, size, slack in (
        ("max", error.largest, peers.largest, truth.largest, 1.0),
        ("rms", error.rms, peers.rms, truth.rms, RMS_SLACK),
    ):
        bound = tolerance.ratio * torch_off + slack * tolerance.ulps * epsilon * size
        if ours_off > bound:
            return (
                f"{name} error {ours_off:.3g} is over {bound:.3g} (torch's is {torch_off:.3g}), "
                f"largest at {_place(where, result)}"
            )
    return None


def unequal(result: torch.Tensor, exact: torch.Tensor) -> str | None:
    """None if integers are what they should be, else where they are not."""
    wrong = (result != exact).reshape(-1).nonzero()
    if not wrong.numel():
        return None
    first = int(wrong[0])
    got, right = int(result.reshape(-1)[first]), int(exact.reshape(-1)[first])
    return f"{wrong.numel()} values differ; the first is {got}, not {right}, at {_place(first, result)}"


class _Norms:
    """Largest magnitude and root mean square of numbers that come in pieces."""

    def __init__(self) -> None:
        self.largest, self._squares, self._count = 0.0, 0.0, 0

    def add(self, values: torch.Tensor) -> bool:
        """Whether the piece holds a new largest."""
        largest = values.abs().max().item()
        grown = largest > self.largest
        self.largest = max(self.largest, largest)
        self._squares += values.square().sum().item()
        self._count += values.numel()
        return grown

    @property
    def rms(self) -> float:
        return math.sqrt(self._squares / self._count)


def _place(flat: int, tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(index) for index in torch.unravel_index(torch.tensor(flat), tensor.shape))
