"""The searchers that benchmarks/search.py compares: each proposes rows of a recorded space, none twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from autotune.data import Config
from autotune.search import Experience, SurrogateSampler
from autotune.search.axes import Floats, axis_of
from autotune.search.candidates import Candidates
from autotune.table import Table

#: Trials of each source that ours-transfer-logged knows.
LOGGED = 300
#: Useless proposals of TPE in a row, before it is given a random config.
TRIES = 10


class Searcher(Protocol):
    """Proposes rows of a table, none twice."""

    def ask(self) -> int: ...

    def tell(self, time_ms: float | None) -> None: ...


@dataclass(frozen=True, eq=False)
class Space:
    """A table as searchers see it: what may be proposed, not how fast it is."""

    distributions: Mapping[str, CategoricalDistribution]
    row: Mapping[Config, int]

    def allowed(self, config: Mapping[str, Any]) -> bool:
        return Config(config) in self.row

    @cached_property
    def candidates(self) -> Candidates | None:
        """Listed once for all seeds; None where there are too many, and each seed samples its own."""
        axes = [axis_of(name, distribution) for name, distribution in self.distributions.items()]
        listed = Candidates(axes, self.allowed)
        return listed if listed.complete else None


@lru_cache(maxsize=1)
def space_of(table: Table) -> Space:
    row = {table.config(number): number for number in range(len(table))}
    distributions = {name: CategoricalDistribution(values) for name, values in table.params.items()}
    return Space(distributions, row)


class Ours:
    def __init__(self, table: Table, seed: int, sources: Sequence[Experience] = ()) -> None:
        self._space = space = space_of(table)
        sampler = SurrogateSampler(
            space.distributions,
            allowed=space.allowed,
            experience=sources,
            seed=seed,
            candidates=space.candidates,
        )
        self._study = optuna.create_study(sampler=sampler)

    def ask(self) -> int:
        self._trial = self._study.ask(dict(self._space.distributions))
        return self._space.row[Config(self._trial.params)]

    def tell(self, time_ms: float | None) -> None:
        self._study.tell(self._trial, time_ms, state=TrialState.PRUNED if time_ms is None else None)


class Tpe:
    def __init__(self, table: Table, seed: int) -> None:
        self._table, self._space = table, space_of(table)
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        self._spare = iter(np.random.default_rng(seed).permutation(len(table)).tolist())
        self._seen: set[int] = set()

    def ask(self) -> int:
        for _ in range(TRIES):
            row = self._proposed()
            if row is not None and row not in self._seen:
                break
            self._study.tell(self._trial, state=TrialState.FAIL)
        else:
            row = next(row for row in self._spare if row not in self._seen)
            self._study.enqueue_trial(dict(self._table.config(row)))
            self._proposed()
        self._seen.add(row)
        return row

    def _proposed(self) -> int | None:
        self._trial = self._study.ask(dict(self._space.distributions))
        return self._space.row.get(Config(self._trial.params))

    def tell(self, time_ms: float | None) -> None:
        self._study.tell(self._trial, time_ms, state=TrialState.FAIL if time_ms is None else None)


def sources_of(table: Table, tables: Sequence[Table], far: bool = False) -> list[Table]:
    """The same kernel's tables on other devices; with ``far`` on those of another group only."""
    others = [other for other in tables if other.kernel == table.kernel and other.device != table.device]
    return [other for other in others if not far or other.arch_group != table.arch_group]


@lru_cache(maxsize=4)
def whole(source: Table) -> Experience:
    return _known(source, np.arange(len(source)), source.time_ms)


def logged(source: Table, seed: int) -> Experience:
    rows = np.random.default_rng([seed, 1]).permutation(len(source))[:LOGGED]
    return _known(source, rows, source.time_ms[rows])


def shuffled(source: Table, seed: int) -> Experience:
    return _known(source, np.arange(len(source)), np.random.default_rng([seed, 2]).permutation(source.time_ms))


def _known(source: Table, rows: NDArray[np.int64], times_ms: Floats) -> Experience:
    return Experience({source.config(row): told(ms) for row, ms in zip(rows.tolist(), times_ms, strict=True)})


def told(time_ms: float) -> float | None:
    return None if math.isnan(time_ms) else float(time_ms)


def transferring(
    table: Table, tables: Sequence[Table], seed: int, learn: Callable[[Table, int], Experience], far: bool = False
) -> Ours:
    return Ours(table, seed, [learn(source, seed) for source in sources_of(table, tables, far)])


#: Makes a searcher of the table under test, from all tables and a seed.
Make = Callable[[Table, Sequence[Table], int], Searcher]
#: ``random`` is not run: what it is expected to do is computed.
SEARCHERS: Mapping[str, Make | None] = {
    "ours": lambda table, tables, seed: Ours(table, seed),
    "ours-transfer": partial(transferring, learn=lambda source, seed: whole(source)),
    "ours-transfer-far": partial(transferring, learn=lambda source, seed: whole(source), far=True),
    "ours-transfer-logged": partial(transferring, learn=logged),
    "ours-transfer-shuffled": partial(transferring, learn=shuffled),
    "random": None,
    "optuna-tpe": lambda table, tables, seed: Tpe(table, seed),
}
