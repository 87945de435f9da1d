"""Is a candidate's result right? The two-reference rule, on outputs poisoned with NaN.

Three results of the same inputs: ours, torch's in the same dtype, and the reference in float64. Ours may be
off by a small multiple of what torch is off, plus the rounding of the output (:class:`~autotune.kernel.Tolerance`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from autotune.data import Config
from autotune.kernel import Kernel, Tolerance

aten = torch.ops.aten

#: Of the slack for the largest error, what the mean error gets: one element may be unlucky in its rounding,
#: all of them may not.
RMS_SLACK = 0.1

#: Elements compared at a time.
PIECE = 2**24


class _Poison(TorchDispatchMode):
    """Fills what torch.empty and its relatives return: memory that a kernel forgot to write shows."""

    _EMPTY = (
        *(aten.empty, aten.empty_like, aten.empty_strided, aten.empty_permuted),
        *(aten.new_empty, aten.new_empty_strided),
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in self._EMPTY:
            if result.is_floating_point() or result.is_complex():
                result.fill_(float("nan"))
            elif result.dtype != torch.bool:
                result.fill_(torch.iinfo(result.dtype).max // 2)
        return result


@contextmanager
def poisoned() -> Iterator[None]:
    """Within, fresh uninitialised memory is NaN."""
    with _Poison():  # type: ignore[no-untyped-call]
        yield


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


class Oracle:
    """The truth about one set of arguments, computed once and used for many candidates."""

    def __init__(self, kernel: Kernel, args: tuple[Any, ...]) -> None:
        self.kernel = kernel
        self.args = args
        self.exact: torch.Tensor = kernel.reference(*widened(args))
        with _full_accumulation():
            self.peer: torch.Tensor = kernel.reference(*args)
        self.tolerance = kernel.tolerances[str(self.peer.dtype).removeprefix("torch.")]
        self._untouched = [leaf.clone() for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]

    def fault(self, config: Config) -> str | None:
        """Run the kernel twice; None if both results are right and equal, else what is wrong.

        Exceptions of the kernel pass through.
        """
        results = []
        for _ in range(2):
            with poisoned():
                result = self.kernel.run(config, *self.args)
            why = self._compare(result) or self._inputs_changed()
            if why is not None:
                return why
            results.append(result)
        if not torch.equal(results[0].nan_to_num(), results[1].nan_to_num()):
            worst = (results[0].double() - results[1].double()).abs().max().item()
            return f"two runs on the same inputs differ by up to {worst:.3g}: a race"
        return None

    def _inputs_changed(self) -> str | None:
        leaves = [leaf for leaf in tree_leaves(self.args) if isinstance(leaf, torch.Tensor)]
        for number, (now, before) in enumerate(zip(leaves, self._untouched, strict=True)):
            if not torch.equal(now, before):
                for leaf, original in zip(leaves, self._untouched, strict=True):
                    leaf.copy_(original)
                return f"it changed its input tensor number {number}"
        return None

    def _compare(self, result: torch.Tensor) -> str | None:
        if result.shape != self.peer.shape or result.dtype != self.peer.dtype:
            return (
                f"result is {tuple(result.shape)} {result.dtype}, "
                f"expected {tuple(self.peer.shape)} {self.peer.dtype}"
            )
        return compare(result, self.peer, self.exact, self.tolerance)


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
