"""Tune: join a search, a target and the database."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from autotune import dispatch, locate, registry
from autotune.candidate import Measured
from autotune.data import Config, Failure, Outcome, Problem, Reason, Timing, Trial, UsageError
from autotune.registry import Loaded
from autotune.search import Step, search
from autotune.store import Store
from autotune.targets import Target, open_target, replays
from autotune.targets.process import TargetError

#: Configs per problem, if nothing else is asked for.
TRIALS = 50


@dataclass(frozen=True)
class Job:
    """One problem to tune."""

    kernel: str
    problem: Problem


@dataclass
class Summary:
    """What is known of one problem after a sweep."""

    kernel: str
    problem: Problem
    target: str
    default: Config
    outcomes: dict[Config, Outcome] = field(default_factory=dict)
    #: How many of the outcomes this sweep measured; the others were in the database.
    measured: int = 0
    #: Why the target could not go on with this problem, if so.
    trouble: str | None = None

    @property
    def best(self) -> tuple[Config, Timing] | None:
        """The fastest config; ties go to the smaller text, as in the view ``best``."""
        timed = [(config, outcome) for config, outcome in self.outcomes.items() if isinstance(outcome, Timing)]
        return min(timed, key=lambda pair: (pair[1].median_ms, str(pair[0])), default=None)

    @property
    def default_outcome(self) -> Outcome | None:
        return self.outcomes.get(self.default)

    @property
    def failures(self) -> Counter[Reason]:
        return Counter(outcome.reason for outcome in self.outcomes.values() if isinstance(outcome, Failure))


#: Called after each candidate: the problem's number from 0, its summary so far, the step.
OnStep = Callable[[int, Summary, Step], None]


def tune(
    kernel: str,
    *problems: str | Problem,
    target: str = "auto",
    trials: int = TRIALS,
    budget_s: float | None = None,
    seed: int = 0,
    db: str | Path | None = None,
    again: bool = False,
) -> list[Summary]:
    """Tune ``kernel`` for each problem and record every trial; the dispatcher uses the winners at once.

    :param problems: for a replay, none means all that were recorded
    :param target: ``auto``, ``cuda:N``, ``interpreter`` or ``replay:FILE``
    :param trials: configs wanted per problem, those already in the database included
    :param budget_s: seconds for the whole call; stops early, loses nothing
    :param db: file to record in, default ``AUTOTUNE_DB`` or ``./tuning.db``
    :param again: measure anew what is already known
    :raises UsageError: on an unknown kernel, problem or target, or a budget that is not positive.
    """
    # What a file has recorded is the file's to tell; else all is known before a worker starts.
    replay = open_target(target) if replays(target) else None
    loaded = registry.load(kernel) if replay is None else replay.load(kernel)
    if replay is not None and not problems:
        problems = loaded.kernel.problems
    jobs = [Job(kernel, loaded.kernel.parse(str(problem))) for problem in problems]
    if not jobs:
        raise UsageError(f"no problem given for {kernel}; for example {loaded.kernel.problems[0]}")
    with replay or open_target(target, seed) as opened, Store(locate.for_writing(db)) as store:
        return sweep(jobs, opened, store, trials=trials, budget_s=budget_s, seed=seed, again=again)


def sweep(
    jobs: Sequence[Job],
    target: Target,
    store: Store,
    *,
    trials: int = TRIALS,
    budget_s: float | None = None,
    seed: int = 0,
    again: bool = False,
    on_step: OnStep = lambda number, summary, step: None,
    summaries: list[Summary] | None = None,
) -> list[Summary]:
    """Tune the jobs in order. ``summaries`` fills as it goes, for a caller that may be interrupted.

    Time left is shared equally by the problems left, so that what one saves the next may use.
    """
    if trials < 1:
        raise UsageError(f"trials is {trials}; it must be at least 1")
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed is {seed}; it must be from 0 to 2**32 - 1")
    if budget_s is not None and not budget_s > 0:
        raise UsageError(f"budget is {budget_s:g} s; it must be more than 0")
    summaries = [] if summaries is None else summaries
    end = None if budget_s is None else time.monotonic() + budget_s
    try:
        for number, job in enumerate(jobs):
            now = time.monotonic()
            if end is not None and now >= end:
                break
            deadline = None if end is None else now + (end - now) / (len(jobs) - number)
            space = target.load(job.kernel, job.problem).space
            summary = Summary(job.kernel, job.problem, target.name, space.default(job.problem, target.device))
            summaries.append(summary)
            try:
                for step in _tuned(summary, target, store, trials=trials, seed=seed, again=again):
                    on_step(number, summary, step)
                    if deadline is not None and time.monotonic() >= deadline:
                        break
            except TargetError as error:
                # One problem too large for this machine must not cost the others.
                summary.trouble = str(error)
    finally:
        dispatch.forget()
    return summaries


def _tuned(
    summary: Summary, target: Target, store: Store, *, trials: int, seed: int, again: bool
) -> Iterator[Step]:
    """Search for one problem's best config; each step is recorded before it is given out."""
    problem, where = summary.problem, target.device
    loaded = target.load(summary.kernel, problem)
    known = store.outcomes(loaded.name, loaded.source, problem, where.key, target.protocol)
    summary.outcomes = {} if again else known
    measured: dict[Config, Measured] = {}

    def evaluate(config: Config) -> Outcome:
        measured[config] = target.evaluate(loaded.entry, problem, config)
        return measured[config].outcome

    steps = search(
        loaded.space,
        problem,
        where,
        evaluate,
        trials=trials,
        seed=seed,
        known=summary.outcomes,
        # What won on other code of this kernel is a good guess for this one.
        seeds=store.stale_winners(loaded.name, loaded.source, problem, where.key),
    )
    for step in steps:
        summary.outcomes[step.config] = step.outcome
        summary.measured += 1
        # Recorded truth is copied, not measured again: its own source, versions and date.
        store.record(measured[step.config].recorded or _trial(loaded, problem, target, step, seed))
        yield step


def _trial(loaded: Loaded, problem: Problem, target: Target, step: Step, seed: int) -> Trial:
    return Trial(
        kernel=loaded.name,
        source=loaded.source,
        problem=problem,
        device=target.device.key,
        config=step.config,
        outcome=step.outcome,
        target=target.name,
        triton=target.triton,
        torch=target.torch,
        driver=target.device.driver,
        created_at=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        provenance={"origin": step.origin, "seed": seed, "machine": platform.machine()},
    )


def most_work_first(jobs: Iterable[tuple[Job, int]]) -> list[Job]:
    """Jobs with their call counts, by total floating-point work, bytes deciding between equals."""

    def total(counted: tuple[Job, int]) -> tuple[int, int]:
        job, calls = counted
        work = registry.load(job.kernel).kernel.work(job.problem)
        return calls * work.flops, calls * work.bytes

    return [job for job, _ in sorted(jobs, key=total, reverse=True)]
