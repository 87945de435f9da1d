"""Where a kernel stops to be worth it: its times beside those of its providers, as recorded, and where they cross.

For ``explain``, which has the time to read a database; dispatch itself only ever looks at winners.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from autotune.data import Config, Device, Failure, Outcome, Problem, Timing, UsageError
from autotune.protocol import Objective, is_native, objective_of, preference
from autotune.registry import Loaded
from autotune.row import COLUMNS, to_outcome
from autotune.summary import place, timings
from autotune.winners import reading


@dataclass(frozen=True)
class Race:
    """What was measured of one problem by one protocol, as far as it may be served."""

    problem: Problem
    protocol: str
    outcomes: dict[Config, Outcome] = field(default_factory=dict)

    def fastest(self, provided: bool) -> tuple[Config, Timing] | None:
        """Of the providers, or of the kernel's own configs."""
        timed = timings(self.outcomes).items()
        mine = [pair for pair in timed if (pair[0].provider is not None) == provided]
        return min(mine, key=lambda pair: place(*pair), default=None)

    @property
    def duel(self) -> Duel | None:
        kernel, provider = self.fastest(False), self.fastest(True)
        return None if kernel is None or provider is None else Duel(self.problem, kernel, provider)


@dataclass(frozen=True)
class Duel:
    """One problem: the kernel's best config and the best provider, by one protocol."""

    problem: Problem
    kernel: tuple[Config, Timing]
    provider: tuple[Config, Timing]

    @property
    def provided(self) -> bool:
        """Whether the provider is served."""
        return place(*self.provider) < place(*self.kernel)

    @property
    def winner(self) -> str:
        return str(self.provider[0].provider) if self.provided else "the kernel"

    @property
    def ratio(self) -> float:
        """The provider's time over the kernel's; on the side of what is served."""
        ratio = self.provider[1].score / self.kernel[1].score
        return min(1.0, ratio) if self.provided else max(1.0, ratio)

    def __str__(self) -> str:
        kernel, provider = self.kernel[1], self.provider[1]
        times = f"the kernel takes {kernel.score:.4g} ms and {self.provider[0].provider} {provider.score:.4g} ms"
        if kernel.rank_ms is not None and kernel.rank_ms == provider.rank_ms:
            return f"{times}: they can't be told apart"
        if self.provided != (provider.score < kernel.score):
            return f"{times}, not in turns with each other: tune again"
        return f"{times}: {self.winner} is {max(self.ratio, 1 / self.ratio):.2f}x as fast"


#: Problem -> its races, the newest protocol first.
Races: TypeAlias = dict[Problem, list[Race]]


def break_even(loaded: Loaded, problem: Problem, device: Device, path: Path, objective: Objective) -> str | None:
    """What is recorded of the choice between the kernel and its providers, in words; None if it has no provider.

    :raises sqlite3.Error, OSError, ValueError: if the database can't be read.
    """
    if not loaded.kernel.providers:
        return None
    races = _races(loaded, problem, device, path, objective)
    said = _here(loaded, problem, device, races.get(problem, []))
    along = loaded.kernel.flips
    if along is not None and device.arch == "interpreter":
        said.append(f"where along {along} the choice flips only a GPU can tell")
    elif along is not None:
        duels = filter(None, map(_duel, races.values()))
        said.append(_flip(sorted(duels, key=lambda duel: duel.problem.integer(along)), loaded, along))
    return "; ".join(said)


def _duel(races: Sequence[Race]) -> Duel | None:
    return next(filter(None, (race.duel for race in races)), None)


def _alike(one: Problem, other: Problem, along: str | None) -> bool:
    """Whether two problems differ in ``along`` at most."""
    return one == other if along is None else {**one, along: 0} == {**other, along: 0}


def _here(loaded: Loaded, problem: Problem, device: Device, races: Sequence[Race]) -> list[str]:
    """Of this very problem: who is faster, and of each provider that is out of the race, why."""
    duel = _duel(races)
    said = [] if duel is None else [str(duel)]
    unmeasured = []
    for name in loaded.kernel.providers:
        config = Config(provider=name)
        why_not = loaded.why_not(config, problem, device)
        outcome = next((race.outcomes[config] for race in races if config in race.outcomes), None)
        if why_not is not None:
            said.append(f"{name} can't serve it: {why_not}")
        elif outcome is None:
            unmeasured.append(name)
        elif isinstance(outcome, Failure):
            said.append(f"{name} failed: {outcome.reason.value} {outcome.detail}")
        elif is_native(outcome.protocol):
            time = f"{name} takes {outcome.score:.4g} ms ({outcome.protocol})"
            said.append(f"{time}, which says nothing beside an interpreted kernel")
        elif duel is None:
            said.append(f"{name} takes {outcome.score:.4g} ms, and no config of the kernel has a time")
    if unmeasured:
        said.append(f"not measured here: its provider{'s' * (len(unmeasured) > 1)} {', '.join(unmeasured)}")
    return said


def _flip(duels: Sequence[Duel], loaded: Loaded, along: str) -> str:
    """Between which two values of ``along`` the faster one changes; ``duels`` are in its order."""
    if not duels:
        return f"where along {along} the choice flips is not known: tune it at several"
    sides = [list(each) for _, each in groupby(duels, key=lambda duel: duel.provided)]
    if len(sides) == 2 and sides[1][0].provided:
        low, high = sides[0][-1].problem[along], sides[1][0].problem[along]
        return (
            f"the choice flips between {along}={low} and {along}={high} (measured), "
            f"where {sides[1][0].winner} takes over"
        )
    named = [
        (name, ", ".join(str(duel.problem[along]) for duel in each))
        for name, each in groupby(duels, key=lambda duel: duel.winner)
    ]
    who = ", then ".join(f"{name} at {where}" for name, where in named)
    if len(sides) > 1:
        return f"the choice has no one flip along {along} (measured): {who}"
    if len(named) == 1:
        who = f"the faster one is {named[0][0]} at every measured {along}: {named[0][1]}"
    return "; ".join([who, *_predicted(duels[0] if duels[0].provided else duels[-1], loaded, along)])


def _predicted(duel: Duel, loaded: Loaded, along: str) -> list[str]:
    """Where the choice flips by proportion, seen from the measured end that is nearest to it."""
    at = duel.problem.integer(along)
    # The kernel has a launch and ends of loops too, so this is a guess.
    crossing = at * duel.ratio
    choices = next(known.choices for known in loaded.kernel.fields if known.name == along)
    end = (min if duel.provided else max)((at, *(choice for choice in choices if isinstance(choice, int))))
    if at == end:
        return []
    if (crossing < end) if duel.provided else (crossing > end):
        return [f"by proportion it stays so to {along}={end} (predicted)"]
    return [f"by proportion the choice flips near {along}={crossing:.3g} (predicted)"]


def _races(loaded: Loaded, wanted: Problem, device: Device, path: Path, objective: Objective) -> Races:
    """Of the problem wanted, and of those that differ from it along ``flips`` alone."""
    found: dict[Problem, dict[str, Race]] = {}
    for row in _rows(loaded, device, path):
        # Not rows that this version writes.
        with suppress(UsageError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
            problem = loaded.kernel.parse(row["problem"])
            if not _alike(problem, wanted, loaded.kernel.flips):
                continue
            config, outcome = Config.parse(row["config"]), to_outcome(row)
            if objective_of(outcome.protocol) == objective and loaded.why_not(config, problem, device) is None:
                race = Race(problem, outcome.protocol)
                found.setdefault(problem, {}).setdefault(outcome.protocol, race).outcomes[config] = outcome
    return {
        problem: sorted(races.values(), key=lambda race: preference(race.protocol))
        for problem, races in found.items()
    }


def _rows(loaded: Loaded, device: Device, path: Path) -> Iterator[dict[str, Any]]:
    with reading(path) as connection:
        # A file that is only read may be older than the column, and has no provider's times then.
        if "rank_ms" in {row[1] for row in connection.execute("pragma table_info(trials)")}:
            rows = connection.execute(
                f"select {', '.join(COLUMNS)} from trials where kernel = ? and source = ? and device = ?",
                (loaded.name, loaded.source, device.key),
            )
            for row in rows:
                yield dict(zip(COLUMNS, row, strict=True))
