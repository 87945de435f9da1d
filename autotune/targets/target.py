"""What a sweep asks of a target, and what of one that runs kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from autotune.candidate import Measured
from autotune.data import AutotuneError, Config, Device, Failure, Outcome, Problem, Timing
from autotune.registry import Entry, Loaded

T = TypeVar("T")


class TargetError(AutotuneError):
    """The target can't start, or can't go on with a problem."""


class Target(Protocol):
    """Turns configs into outcomes. Methods raise TargetError where it can't go on with a problem."""

    name: str
    device: Device
    protocol: str
    #: Versions that its candidates run with.
    triton: str
    torch: str
    #: How many candidates it wants to be told of before their turn.
    ahead: int

    def load(self, name: str, problem: Problem | None = None) -> Loaded:
        """The kernel called ``name``, and the space to search for ``problem``."""
        ...

    def announce(self, entry: Entry, problem: Problem, config: Config) -> None:
        """``config`` will be evaluated soon."""
        ...

    def evaluate(self, entry: Entry, problem: Problem, config: Config, best_ms: float | None = None) -> Measured:
        """:param best_ms: score of the problem's best config so far; a much slower one may be timed briefly"""
        ...

    def evaluate_in_turns(self, entry: Entry, problem: Problem, configs: Sequence[Config]) -> dict[Config, Timing]:
        """Time configs against each other that were evaluated before; nothing where that can't be done."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Target: ...

    def __exit__(self, *exc: object) -> None: ...


class Machine(Target, Protocol):
    """A target on which kernels run."""

    def verify(self, entry: Entry, problem: Problem, config: Config) -> Failure | None: ...

    def time_reference(self, entry: Entry, problem: Problem) -> Outcome: ...

    def attempt(self, function: Callable[..., T], entry: Entry, problem: Problem, *args: Any) -> T | Failure:
        """What ``function(entry, problem, *args, setting)`` gives where the kernels run, or what ended it there."""
        ...

    def __enter__(self) -> Machine: ...
