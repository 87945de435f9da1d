"""Tune: many problems on one target, in one budget of trials and time."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autotune import dispatch, locate, registry
from autotune.data import Problem, UsageError
from autotune.schedule import FIRST_SLICE, SLICE, next_slice
from autotune.search import Step
from autotune.store import Store
from autotune.summary import Job, Summary
from autotune.targets import open_target, replays
from autotune.targets.target import Target
from autotune.timing import FINAL_SECONDS
from autotune.tuner import Tuner

if TYPE_CHECKING:
    from autotune.protocol import Objective

#: Configs per problem, if neither trials nor a budget are asked for.
TRIALS = 50
#: Of a budget, what is kept for timing the finalists in turns at most.
FINAL_SHARE = 0.2

#: Called after each candidate: the problem's number from 0, its summary so far, the step.
OnStep = Callable[[int, Summary, Step], None]


def tune(
    kernel: str,
    *problems: str | Problem,
    target: str = "auto",
    trials: int | None = None,
    budget_s: float | None = None,
    seed: int = 0,
    db: str | Path | None = None,
    again: bool = False,
    objective: Objective = "throughput",
    eager: bool = False,
) -> list[Summary]:
    """Tune ``kernel`` for each problem and record every trial; the dispatcher uses the winners at once.

    :param problems: for a replay, none means all that were recorded
    :param target: ``auto``, ``cuda:N``, ``interpreter`` or ``replay:FILE``
    :param trials: configs wanted per problem, those already in the database included; 50, or with a budget
        as many as promise a gain
    :param budget_s: seconds for the whole call; stops early, loses nothing
    :param db: file to record in, default ``AUTOTUNE_DB`` or ``./tuning.db``
    :param again: measure anew what is already known
    :param objective: ``throughput`` ranks by the median, ``latency`` by the 95 % quantile, launch included
    :param eager: on a GPU, time single launches and no graphs
    :raises UsageError: on an unknown kernel, problem or target, or a budget that is not positive.
    """
    # What a file has recorded is the file's to tell; else all is known before a worker starts.
    replay = open_target(target, seed, objective) if replays(target) else None
    loaded = registry.load(kernel) if replay is None else replay.load(kernel)
    if replay is not None and not problems:
        problems = loaded.kernel.problems
    jobs = [Job(kernel, loaded.kernel.parse(str(problem))) for problem in problems]
    if not jobs:
        raise UsageError(f"no problem given for {kernel}; for example {loaded.kernel.problems[0]}")
    with replay or open_target(target, seed, objective, eager) as opened, Store(locate.for_writing(db)) as store:
        return sweep(jobs, opened, store, trials=trials, budget_s=budget_s, seed=seed, again=again)


def sweep(
    jobs: Sequence[Job],
    target: Target,
    store: Store,
    *,
    trials: int | None = None,
    budget_s: float | None = None,
    seed: int = 0,
    again: bool = False,
    on_step: OnStep = lambda number, summary, step: None,
    summaries: list[Summary] | None = None,
) -> list[Summary]:
    """Tune the jobs. ``summaries`` fills as it goes, for a caller that may be interrupted.

    Without a budget one after the other, ``trials`` each. With one, trials go where a second of them is expected
    to save the most of the model's time (:mod:`autotune.schedule`), and a problem ends when little is left to gain.
    """
    if trials is not None and trials < 1:
        raise UsageError(f"trials is {trials}; it must be at least 1")
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed is {seed}; it must be from 0 to 2**32 - 1")
    if budget_s is not None and not budget_s > 0:
        raise UsageError(f"budget is {budget_s:g} s; it must be more than 0")
    summaries = [] if summaries is None else summaries
    wanted = TRIALS if trials is None and budget_s is None else trials
    tuners = [Tuner(job, target, store, trials=wanted, seed=seed, again=again) for job in merged(jobs)]

    def advance(number: int, count: int | None = None, end: float = math.inf, patient: bool = True) -> None:
        """The next ``count`` trials of one problem."""
        tuner = tuners[number]
        if not tuner.started:
            summaries.append(tuner.start())
        for step in itertools.islice(tuner.steps(patient, end), count):
            on_step(number, tuner.summary, step)
            if time.monotonic() >= end:
                break

    try:
        if budget_s is None:
            for number, tuner in enumerate(tuners):
                advance(number)
                tuner.finish()
        else:
            _share(tuners, advance, time.monotonic() + budget_s, FINAL_SHARE * budget_s)
    finally:
        dispatch.forget()
    return summaries


def _share(tuners: Sequence[Tuner], advance: Callable[..., None], end: float, most_reserve_s: float) -> None:
    """Trials where they are expected to save most, then the finals of the problems that were under way."""
    while True:
        under_way = [tuner for tuner in tuners if tuner.started and not tuner.finished]
        reserve_s = min(most_reserve_s, FINAL_SECONDS * (1 + len(under_way)))
        number = next_slice([tuner.prospect for tuner in tuners], [not tuner.ended for tuner in tuners])
        if number is None or time.monotonic() >= end - reserve_s:
            break
        advance(number, SLICE if tuners[number].started else FIRST_SLICE, end - reserve_s, patient=False)
        if tuners[number].ended:
            tuners[number].finish(end)
    for tuner in sorted(under_way, key=lambda tuner: tuner.prospect.cost_ms, reverse=True):
        if not tuner.ended:
            tuner.summary.ended = "the time is up"
        tuner.finish(end)


def merged(jobs: Iterable[Job]) -> list[Job]:
    """Each problem once, with the calls of all its jobs, where it came first."""
    calls: Counter[tuple[str, Problem]] = Counter()
    for job in jobs:
        calls[job.kernel, job.problem] += job.calls
    return [Job(kernel, problem, count) for (kernel, problem), count in calls.items()]


def most_work_first(jobs: Iterable[Job]) -> list[Job]:
    """Jobs by calls times floating-point work, bytes deciding between equals."""

    def total(job: Job) -> tuple[int, int]:
        work = registry.load(job.kernel).kernel.work(job.problem)
        return job.calls * work.flops, job.calls * work.bytes

    return sorted(jobs, key=total, reverse=True)
