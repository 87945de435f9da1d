"""What a sweep is asked to do, and what it knows of each problem so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.candidate import Measured
from autotune.data import Config, Failure, Outcome, Problem, Reason, Timing
from autotune.rung import Rung


@dataclass(frozen=True)
class Job:
    """One problem to tune, and how often the model calls it."""

    kernel: str
    problem: Problem
    calls: int = 1


@dataclass
class Summary:
    """What is known of one problem."""

    job: Job
    target: str
    default: Config
    #: How the target takes times; outcomes by another protocol are told, and never compared with.
    protocol: str
    outcomes: dict[Config, Outcome] = field(default_factory=dict)
    #: What the kernel's providers took. They are no configs of the space, and don't count as trials.
    providers: dict[Config, Outcome] = field(default_factory=dict)
    #: How many of the outcomes this sweep measured; the others were in the database.
    measured: int = 0
    #: Of those: how many each rung of the ladder settled, and the seconds spent on it.
    settled: Counter[Rung] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    #: Why it ended: the trials asked for are done, nothing is left to try or to gain, the time is up.
    ended: str | None = None
    #: Why the target could not go on with this problem, if so.
    trouble: str | None = None

    @property
    def kernel(self) -> str:
        return self.job.kernel

    @property
    def problem(self) -> Problem:
        return self.job.problem

    def know(self, config: Config, outcome: Outcome) -> None:
        (self.outcomes if config.provider is None else self.providers)[config] = outcome

    def take(self, config: Config, measured: Measured) -> None:
        self.know(config, measured.outcome)
        self.measured += config.provider is None
        self.settled[measured.rung] += 1
        for rung, spent in measured.seconds.items():
            self.spend(rung, spent)

    def spend(self, rung: str, seconds: float) -> None:
        self.seconds[rung] = self.seconds.get(rung, 0.0) + seconds

    @property
    def timed(self) -> dict[Config, Timing]:
        """What may win: configs and providers that have a time, by the target's protocol."""
        everything = timings({**self.outcomes, **self.providers})
        return {config: timing for config, timing in everything.items() if timing.protocol == self.protocol}

    @property
    def best(self) -> tuple[Config, Timing] | None:
        """The winner, as in the view ``best``."""
        return min(self.timed.items(), key=lambda pair: place(*pair), default=None)

    @property
    def default_outcome(self) -> Outcome | None:
        return self.outcomes.get(self.default)

    @property
    def gain(self) -> float | None:
        """How many times as fast as the default the winner is, 1 in a tie; None if one of them has no time."""
        if self.best is None or not isinstance(self.default_outcome, Timing):
            return None
        return self.default_outcome.rank / self.best[1].rank

    @property
    def ties(self) -> int:
        """How many configs can't be told apart from the winner."""
        if self.best is None or self.best[1].rank_ms is None:
            return 0
        rank_ms = self.best[1].rank_ms
        return sum(timing.rank_ms == rank_ms for timing in self.timed.values()) - 1

    @property
    def failures(self) -> Counter[Reason]:
        return Counter(outcome.reason for outcome in self.outcomes.values() if isinstance(outcome, Failure))


def timings(outcomes: Mapping[Config, Outcome]) -> dict[Config, Timing]:
    return {config: outcome for config, outcome in outcomes.items() if isinstance(outcome, Timing)}


def place(config: Config, timing: Timing) -> tuple[bool, float, float, str]:
    """Sorts configs, the winner first: what was timed in turns before what was not; ties by score, then by text."""
    return timing.rank_ms is None, timing.rank, timing.score, str(config)
