"""Is a candidate's result right? The two-reference rule, on outputs poisoned with NaN.

Three results of the same inputs: ours, torch's in the same dtype, and the reference in float64. Ours may be
off by a small multiple of what torch is off, plus the rounding of the output (:class:`~autotune.kernel.Tolerance`).
"""

from __future__ import annotations

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


class _Poison(TorchDispatchMode):
    """Fills what torch.empty and its relatives return: memory that a kernel forgot to write shows."""

    _EMPTY = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in self._EMPTY:
            result.fill_(float("nan") if result.is_floating_point() else torch.iinfo(result.dtype).max // 2)
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


class Oracle:
    """The truth about one set of arguments, computed once and used for many candidates."""

    def __init__(self, kernel: Kernel, args: tuple[Any, ...]) -> None:
        self.kernel = kernel
        self.args = args
        self.exact: torch.Tensor = kernel.reference(*widened(args))
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
    ours = result.double()
    # A value that overflows the dtype does so in torch too: it must be the same infinity.
    unequal = (~ours.isfinite() | ~peer.isfinite()) & (ours != peer.double()) & ~(ours.isnan() & peer.isnan())
    if unequal.any():
        where = tuple(unequal.nonzero()[0].tolist())
        return f"{int(unequal.sum())} of {ours.numel()} values are not finite where torch's are, first at {where}"
    finite = ours.isfinite()
    errors, peers, truth = ((t.where(finite, 0.0)) for t in (ours - exact, peer.double() - exact, exact))
    epsilon = torch.finfo(result.dtype).eps
    for name, norm, slack in (("max", _largest, 1.0), ("rms", _root_mean_square, RMS_SLACK)):
        bound = tolerance.ratio * norm(peers) + slack * tolerance.ulps * epsilon * norm(truth)
        if norm(errors) > bound:
            where = tuple(int(i) for i in torch.unravel_index(errors.abs().argmax(), errors.shape))
            return (
                f"{name} error {norm(errors):.3g} is over {bound:.3g} "
                f"(torch's is {norm(peers):.3g}), largest at {where}"
            )
    return None


def _largest(values: torch.Tensor) -> float:
    return values.abs().max().item()


def _root_mean_square(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()
