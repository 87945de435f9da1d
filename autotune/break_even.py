"""Where a kernel stops to be worth it: its times beside those of its providers, as recorded, and where they cross.

For ``explain``, which has the time to read a database; dispatch itself only ever looks at winners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from autotune import locate
from autotune.data import Config, Device, Problem, UsageError
from autotune.protocol import Objective, objective_of, preference
from autotune.registry import Loaded
from autotune.winners import BUSY_SECONDS


@dataclass(frozen=True)
class Point:
    """One problem: the least time of the kernel and of a provider, by one protocol."""

    problem: Problem
    kernel_ms: float
    provider: str
    provider_ms: float

    @property
    def provided(self) -> bool:
        return self.provider_ms < self.kernel_ms

    def __str__(self) -> str:
        fast, slow = sorted((self.kernel_ms, self.provider_ms))
        return (
            f"the kernel takes {self.kernel_ms:.4g} ms and {self.provider} {self.provider_ms:.4g} ms: "
            f"{self.provider if self.provided else 'the kernel'} is {slow / fast:.2f}x as fast"
        )


def break_even(loaded: Loaded, problem: Problem, device: Device, path: Path, objective: Objective) -> str | None:
    """What is recorded of the choice between the kernel and its providers, in words; None if it has no provider.

    :raises sqlite3.Error, OSError: if the database can't be read.
    """
    if not loaded.kernel.providers:
        return None
    times = _times(loaded, device, path, objective)
    points = sorted(filter(None, map(_point, times.values())), key=lambda point: str(point.problem))
    own = [str(point) for point in points if point.problem == problem]
    said = own or [_apart(list(times.get(str(problem), {}).values())) or f"not measured here: {_named(loaded)}"]
    along = loaded.kernel.flips
    if along is not None:
        alike = [point for point in points if _without(point.problem, along) == _without(problem, along)]
        said.append(_flip(sorted(alike, key=lambda point: point.problem.integer(along)), problem, along))
    return "; ".join(said)


def _named(loaded: Loaded) -> str:
    return f"its provider{'s' if len(loaded.kernel.providers) > 1 else ''} {', '.join(loaded.kernel.providers)}"


def _flip(points: list[Point], problem: Problem, along: str) -> str:
    """Between which two values of ``along`` the faster one changes."""
    for low, high in pairwise(points):
        if not low.provided and high.provided:
            return (
                f"the choice flips between {along}={low.problem[along]} and {along}={high.problem[along]} "
                f"(measured), where {high.provider} takes over"
            )
    if not points:
        return f"where along {along} the choice flips is not known: tune it at several"
    known = ", ".join(str(point.problem[along]) for point in points)
    winner = points[0].provider if points[0].provided else "the kernel"
    said = f"the faster one is {winner} at every measured {along}: {known}"
    point = next((point for point in points if point.problem == problem), points[-1])
    # The kernel's time by proportion: it has a launch and ends of loops too, so this is a guess.
    crossing = point.problem.integer(along) * point.provider_ms / point.kernel_ms
    return f"{said}; by proportion the choice flips near {along}={crossing:.3g} (predicted)"


def _without(problem: Problem, name: str) -> dict[str, Any]:
    return {key: value for key, value in problem.items() if key != name}


@dataclass
class _Times:
    """The least times of one problem by one protocol, those that were taken in turns first."""

    problem: str
    protocol: str
    kernel: tuple[bool, float] | None = None
    provider: tuple[bool, float, str] | None = None


#: Problem -> protocol -> times.
_Table: TypeAlias = dict[str, dict[str, _Times]]


def _times(loaded: Loaded, device: Device, path: Path, objective: Objective) -> _Table:
    found: _Table = {}
    for problem, text, protocol, rank_ms, score_ms in _rows(loaded, device, path):
        try:
            config, wanted = Config.parse(text), objective_of(protocol) == objective
        except UsageError:  # not a row that this version writes
            continue
        if not wanted:
            continue
        times = found.setdefault(problem, {}).setdefault(protocol, _Times(problem, protocol))
        time = rank_ms is None, score_ms if rank_ms is None else rank_ms
        if config.provider is None:
            times.kernel = min(time, times.kernel or time)
        else:
            named = *time, config.provider
            times.provider = min(named, times.provider or named)
    return found


def _rows(loaded: Loaded, device: Device, path: Path) -> list[tuple[Any, ...]]:
    with closing(locate.open_readonly(path, BUSY_SECONDS)) as connection:
        # A file that is only read may be older than the column, and has no provider's times then.
        if "rank_ms" not in {row[1] for row in connection.execute("pragma table_info(trials)")}:
            return []
        return connection.execute(
            "select problem, config, protocol, rank_ms, coalesce(score_ms, median_ms) from trials "
            "where kernel = ? and source = ? and device = ? and median_ms is not null",
            (loaded.name, loaded.source, device.key),
        ).fetchall()


def _point(by_protocol: Mapping[str, _Times]) -> Point | None:
    """Of one problem, by the newest protocol that both were timed by."""
    for protocol in sorted(by_protocol, key=preference):
        times = by_protocol[protocol]
        if times.kernel is not None and times.provider is not None:
            return Point(Problem.parse(times.problem), times.kernel[1], times.provider[2], times.provider[1])
    return None


def _apart(timed: Sequence[_Times]) -> str | None:
    """What a provider took where the kernel's time does not compare."""
    for times in timed:
        if times.provider is not None:
            _, time_ms, name = times.provider
            return (
                f"{name} takes {time_ms:.4g} ms ({times.protocol}), which says nothing beside an interpreted kernel"
            )
    return None
