"""What the trials of one problem say, and how problems are grouped. Plain functions of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, log

from autotune.data import Config, Failure, Problem, Reason, Timing, Trial, Value
from autotune.rung import Rung
from autotune.source import is_stale
from autotune.summary import place


@dataclass(frozen=True)
class Timed:
    """A trial that has a time."""

    #: Its place among the trials of its study, from 1.
    number: int
    trial: Trial
    timing: Timing


@dataclass(frozen=True)
class Failed:
    """The trials that ended for one reason."""

    reason: Reason
    count: int
    #: The most frequent message, and how many of them had it.
    detail: str
    detail_count: int


@dataclass(frozen=True)
class Step:
    """What one rung of the ladder cost, and what became of the candidates that ended on it."""

    rung: Rung
    seconds: float
    timed: int
    failed: int
    duplicates: int


@dataclass(frozen=True)
class Study:
    """All trials of one problem: one kernel's code, one device, one protocol, so that times compare."""

    kernel: str
    source: str
    problem: Problem
    device: str
    protocol: str
    #: At least one, in the order measured.
    trials: tuple[Trial, ...]
    #: Measured on other code than the kernel has now, or of a kernel that is not installed.
    stale: bool

    @cached_property
    def timed(self) -> tuple[Timed, ...]:
        return tuple(
            Timed(number, trial, trial.outcome)
            for number, trial in enumerate(self.trials, start=1)
            if isinstance(trial.outcome, Timing)
        )

    @property
    def of_the_space(self) -> tuple[Timed, ...]:
        """Those that have parameters: all but the kernel's providers."""
        return tuple(one for one in self.timed if one.trial.config.provider is None)

    @cached_property
    def best(self) -> Timed | None:
        """The winner by the rule of the database's view ``best``."""
        return min(self.timed, key=_rank, default=None)

    @cached_property
    def default(self) -> Trial | None:
        """The trial of the space's default config, if it was recorded as such."""
        return next((trial for trial in self.trials if trial.provenance.get("origin") == "default"), None)

    @property
    def default_ms(self) -> float | None:
        outcome = None if self.default is None else self.default.outcome
        return outcome.score if isinstance(outcome, Timing) else None

    @property
    def default_failure(self) -> Reason | None:
        outcome = None if self.default is None else self.default.outcome
        return outcome.reason if isinstance(outcome, Failure) else None

    @property
    def gain(self) -> float | None:
        """Default time over best time, 1 in a tie."""
        if self.best is None or self.default is None or not isinstance(self.default.outcome, Timing):
            return None
        return self.default.outcome.rank / self.best.timing.rank

    @property
    def tied(self) -> tuple[Timed, ...]:
        """The other configs, of other compiled code, that can't be told apart from the best."""
        if self.best is None:
            return ()
        seen, found = {_measured(self.best.trial)}, []
        for one in self.timed:
            if one.timing.rank_ms == self.best.timing.rank_ms is not None and _measured(one.trial) not in seen:
                seen.add(_measured(one.trial))
                found.append(one)
        return tuple(found)

    @property
    def default_tied(self) -> bool:
        """Whether the default is among those that can't be told apart from the best."""
        return self.default is not None and self.default in {one.trial for one in self.tied}

    @property
    def size(self) -> int:
        return len(self.trials)

    @property
    def failed_count(self) -> int:
        return len(self.trials) - len(self.timed)

    @property
    def duplicates(self) -> int:
        """Trials that compile to the code of another one, and share its outcome."""
        return sum(trial.same_as is not None for trial in self.trials)

    @property
    def seconds(self) -> float:
        """Time spent on all candidates, s; 0 in files older than this column."""
        return sum(sum(trial.seconds.values()) for trial in self.trials)

    def so_far(self) -> list[float]:
        """For each of :attr:`timed`, the least time up to there, ms."""
        least: list[float] = []
        for one in self.timed:
            least.append(min([one.timing.score, *least[-1:]]))
        return least

    def fastest(self, count: int) -> list[Timed]:
        """The winner and those behind it, without those that are another one's code."""
        ranked = sorted(self.timed, key=_rank)
        return [one for one in ranked if one is self.best or one.trial.same_as is None][:count]

    def failures(self) -> list[Failed]:
        """By reason, the most frequent first."""
        details: dict[Reason, Counter[str]] = {}
        for trial in self.trials:
            if isinstance(trial.outcome, Failure):
                details.setdefault(trial.outcome.reason, Counter())[trial.outcome.detail] += 1
        found = [Failed(reason, seen.total(), *seen.most_common(1)[0]) for reason, seen in details.items()]
        return sorted(found, key=lambda one: (-one.count, one.reason.value))

    def values(self) -> dict[str, list[Value]]:
        """The parameters that every config has and of which several values were tried, in order."""
        configs = [trial.config for trial in self.trials if trial.config.provider is None]
        named = [name for name in (configs[0] if configs else ()) if all(name in config for config in configs)]
        tried = {name: {(type(config[name]).__name__, config[name]) for config in configs} for name in named}
        return {name: [value for _, value in sorted(tried[name])] for name in named if len(tried[name]) > 1}


@dataclass(frozen=True)
class Section:
    """The studies of one kernel on one device under one protocol: present code first, then slowest first."""

    device: str
    protocol: str
    kernel: str
    studies: tuple[Study, ...]

    @property
    def trials(self) -> list[Trial]:
        return [trial for study in self.studies for trial in study.trials]

    @property
    def counted(self) -> tuple[Study, ...]:
        """The studies that the section's totals speak of: those of present code, or all if none is."""
        return tuple(study for study in self.studies if not study.stale) or self.studies

    @property
    def mean_gain(self) -> float | None:
        """Geometric mean of default time over best time."""
        gains = [study.gain for study in self.counted if study.gain is not None]
        return exp(sum(map(log, gains)) / len(gains)) if gains else None


def steps(trials: Iterable[Trial]) -> list[Step]:
    """The rungs that were climbed, in the ladder's order; empty for trials older than the ladder."""
    known = list(trials)
    found = []
    for rung in Rung:
        ended = [trial for trial in known if trial.rung is rung]
        copies = sum(trial.same_as is not None for trial in ended)
        failed = sum(trial.same_as is None and isinstance(trial.outcome, Failure) for trial in ended)
        spent = sum(trial.seconds.get(rung.value, 0.0) for trial in known)
        if ended or spent:
            found.append(Step(rung, spent, len(ended) - copies - failed, failed, copies))
    return found


def sections(trials: Sequence[Trial], sources: Mapping[str, str]) -> list[Section]:
    """Group trials so that only times that compare stand together.

    :param trials: in the order measured
    :param sources: the hash of each installed kernel's present code
    """
    grouped: dict[tuple[str, str, str], dict[tuple[Problem, str], list[Trial]]] = {}
    for trial in trials:
        section = grouped.setdefault((trial.device, trial.outcome.protocol, trial.kernel), {})
        section.setdefault((trial.problem, trial.source), []).append(trial)
    return [
        Section(
            *(device, protocol, kernel),
            tuple(
                sorted(
                    (
                        Study(
                            kernel,
                            code,
                            problem,
                            device,
                            protocol,
                            tuple(rows),
                            is_stale(code, sources.get(kernel)),
                        )
                        for (problem, code), rows in studies.items()
                    ),
                    key=lambda study: (study.stale, -(study.best.timing.score if study.best else 0.0)),
                )
            ),
        )
        for (device, protocol, kernel), studies in sorted(grouped.items())
    ]


def _rank(one: Timed) -> tuple[bool, float, float, str]:
    return place(one.trial.config, one.timing)


def _measured(trial: Trial) -> Config:
    return trial.config if trial.same_as is None else trial.same_as
