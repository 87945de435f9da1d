"""Tune one problem on one target, trial by trial; each trial is recorded before the next begins."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone

from autotune.candidate import Measured
from autotune.data import Config, Outcome, Timing, Trial
from autotune.registry import Loaded
from autotune.rung import Rung
from autotune.schedule import Prospect
from autotune.search import Step, search
from autotune.sources import experience
from autotune.store import Store
from autotune.summary import Job, Summary, timings
from autotune.targets.target import Target, TargetError
from autotune.timing import FINAL_SECONDS, finalists

#: Finals again, while a config that was not in them looks faster than their winner.
MOST_FINALS = 3


class Tuner:
    """One job: its search, its prospects, its summary."""

    summary: Summary
    _loaded: Loaded
    _steps: Iterator[Step]

    def __init__(
        self, job: Job, target: Target, store: Store, *, trials: int | None, seed: int, again: bool
    ) -> None:
        """:param trials: configs wanted, known ones included; None for as many as promise a gain"""
        self._job, self._target, self._store = job, target, store
        self._trials, self._seed, self._again = trials, seed, again
        self.prospect = Prospect(job.calls)
        self.started = self.finished = False
        self._took: dict[Config, Measured] = {}

    @property
    def ended(self) -> bool:
        return self.started and self.summary.ended is not None

    def start(self) -> Summary:
        """Look up what is known, and begin to search."""
        job, target = self._job, self._target
        self.started = True
        self._loaded = target.load(job.kernel, job.problem)
        self.summary = Summary(job, target.name, self._loaded.space.default(job.problem, target.device))
        name, source, device = self._loaded.name, self._loaded.source, target.device
        if not self._again:
            self.summary.outcomes = self._store.outcomes(name, source, job.problem, device.key, target.protocol)
        self._steps = search(
            self._loaded.space,
            job.problem,
            device,
            self._evaluate,
            trials=sys.maxsize if self._trials is None else self._trials,
            seed=self._seed,
            known=self.summary.outcomes,
            # What won on other code of this kernel is a good guess for this one.
            seeds=self._store.stale_winners(name, source, job.problem, device.key),
            experience=experience(self._store, self._loaded, job.problem, device, target.protocol),
            announce=lambda config: target.announce(self._loaded.entry, job.problem, config),
            ahead=target.ahead,
        )
        return self.summary

    def steps(self, patient: bool = True) -> Iterator[Step]:
        """The trials that are left, each measured when it is asked for. Break off and take them up at any time.

        :param patient: go on when little is left to gain
        """
        while not self.ended:
            if not patient and self.prospect.enough:
                self.summary.ended = "little is left to gain"
                return
            begun = time.monotonic()
            try:
                step = next(self._steps, None)
            except TargetError as error:
                # One problem too large for this machine must not cost the others.
                self.summary.trouble, self.summary.ended = str(error), "the target could not go on"
                return
            if step is None:
                done = self._trials is not None and len(self.summary.outcomes) >= self._trials
                self.summary.ended = f"{self._trials} trials are done" if done else "nothing is left to try"
                return
            self._store.record(
                self._recorded(step) or self._trial(step.config, self._took[step.config], step.origin)
            )
            self.prospect.took(time.monotonic() - begun, self._best_ms, step.promise)
            yield step

    @property
    def _best_ms(self) -> float | None:
        best = self.summary.best
        return None if best is None else best[1].score

    def _evaluate(self, config: Config) -> Outcome:
        measured = self._target.evaluate(self._loaded.entry, self._job.problem, config, self._best_ms)
        self.summary.take(config, measured)
        self._took[config] = measured
        return measured.outcome

    def finish(self) -> None:
        """Time the fastest in turns, if this sweep measured any."""
        self.finished = True
        again: set[Config] = set()
        for _ in range(MOST_FINALS if self.summary.measured and self.summary.trouble is None else 0):
            # A twin shares the outcome of the config that ran in its place.
            twins = {config for config, measured in self._took.items() if measured.same_as is not None}
            timed = {config: one for config, one in timings(self.summary.outcomes).items() if config not in twins}
            chosen = finalists(timed, FINAL_SECONDS)
            if len(chosen) < 2 or again.issuperset(chosen):
                return
            again |= set(chosen)
            begun = time.monotonic()
            try:
                found = self._target.evaluate_in_turns(self._loaded.entry, self._job.problem, chosen)
            except TargetError as error:
                self.summary.trouble = str(error)
                return
            self.summary.spend(Rung.FINAL.value, time.monotonic() - begun)
            for config, timing in found.items():
                self._final(config, timing)

    def _final(self, config: Config, timing: Timing) -> None:
        before = self._took.get(config)
        if before is None:  # of an earlier sweep
            after = Measured(timing, Rung.FINAL)
        else:
            after = replace(before, outcome=timing, rung=Rung.FINAL)
            self.summary.settled[before.rung] -= 1
            self.summary.settled[Rung.FINAL] += 1
        self._took[config] = after
        for one, measured in [(config, after), *self._twins_of(config, timing)]:
            self._took[one] = measured
            self.summary.outcomes[one] = timing
            self._store.record(self._trial(one, measured, "final"))

    def _twins_of(self, config: Config, timing: Timing) -> list[tuple[Config, Measured]]:
        """Those that share the outcome of ``config``, which has a new one."""
        twins = [(one, measured) for one, measured in self._took.items() if measured.same_as == config]
        return [(one, replace(measured, outcome=timing)) for one, measured in twins]

    def _recorded(self, step: Step) -> Trial | None:
        """Recorded truth is copied, not measured again: its own source, versions and date."""
        trial = self._took[step.config].recorded
        if trial is None or "origin" in trial.provenance:
            return trial
        return replace(trial, provenance={**trial.provenance, "origin": step.origin})

    def _trial(self, config: Config, measured: Measured, origin: str) -> Trial:
        return Trial(
            kernel=self._loaded.name,
            source=self._loaded.source,
            problem=self._job.problem,
            device=self._target.device.key,
            config=config,
            outcome=measured.outcome,
            target=self._target.name,
            triton=self._target.triton,
            torch=self._target.torch,
            driver=self._target.device.driver,
            created_at=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            provenance={"origin": origin, "seed": self._seed, "machine": platform.machine()},
            rung=measured.rung,
            seconds=measured.seconds,
            resources=measured.resources,
            same_as=measured.same_as,
        )
