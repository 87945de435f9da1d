"""Tune one problem on one target, trial by trial; each trial is recorded before the next begins."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from autotune.candidate import Measured
from autotune.data import Config, Outcome, Timing, Trial
from autotune.protocol import of_provider
from autotune.registry import Loaded
from autotune.rung import Rung
from autotune.schedule import Prospect
from autotune.search import Step, search
from autotune.sources import experience
from autotune.store import Store
from autotune.summary import Job, Summary, place, timings
from autotune.targets.target import Target, TargetError
from autotune.timing import FINAL_SECONDS, finalists

#: Finals again, while a config that was not in them looks faster than their winner.
MOST_FINALS = 3


class Tuner:
    """One job: its search, its prospects, its summary."""

    summary: Summary
    _loaded: Loaded
    _steps: Iterator[Step]
    #: Those that can serve the problem here.
    _providers: list[Config]

    def __init__(
        self, job: Job, target: Target, store: Store, *, trials: int | None, seed: int, again: bool
    ) -> None:
        """:param trials: configs wanted, known ones included; None for as many as promise a gain"""
        self._job, self._target, self._store = job, target, store
        self._trials, self._seed, self._again = trials, seed, again
        self.prospect = Prospect(job.calls)
        self.started = self.finished = False
        self._took: dict[Config, Measured] = {}
        #: Its rows in the database, by config.
        self._known: dict[Config, Trial] = {}

    @property
    def ended(self) -> bool:
        return self.started and self.summary.ended is not None

    def start(self) -> Summary:
        """Look up what is known, and begin to search."""
        job, target = self._job, self._target
        self.started = True
        self._loaded = target.load(job.kernel, job.problem)
        default = self._loaded.space.default(job.problem, target.device)
        self.summary = Summary(job, target.name, default, target.protocol)
        why = self._loaded.space.unsupported(job.problem, target.device)
        if why is not None:
            self.summary.trouble = f"{job.kernel} {job.problem}: {why}"
            self.summary.ended = "the device can't run it"
            return self.summary
        name, source, device = self._loaded.name, self._loaded.source, target.device
        self._providers = self._loaded.providers(job.problem, device)
        for protocol in (target.protocol, of_provider(target.protocol)):
            self._known |= self._store.trials(name, source, job.problem, device.key, protocol)
        if not self._again:
            for config, trial in self._known.items():
                # A provider may be another machine's: one with another build of torch.
                if config.provider is None or config in self._providers:
                    self.summary.know(config, trial.outcome)
            self.prospect.best_ms = self._cost_ms
        self._steps = search(
            self._loaded.space,
            job.problem,
            device,
            self._evaluate,
            trials=sys.maxsize if self._trials is None else self._trials,
            seed=self._seed,
            known=self.summary.outcomes,
            # What won on other code of this kernel is a good guess for this one.
            seeds=[config for config in self._seeds() if config.provider is None],
            experience=experience(self._store, self._loaded, job.problem, device, target.protocol),
            announce=lambda config: target.announce(self._loaded.entry, job.problem, config),
            ahead=target.ahead,
        )
        return self.summary

    def steps(self, patient: bool = True, end: float = math.inf) -> Iterator[Step]:
        """The trials that are left, each measured when it is asked for. Break off and take them up at any time.

        :param patient: go on when little is left to gain
        :param end: on the monotonic clock: no provider is begun from then on
        """
        self._measure_providers(end)
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
            self._record(self._copied(step) or self._trial(step))
            self.prospect.took(time.monotonic() - begun, self._cost_ms, step.promise)
            yield step

    def _measure_providers(self, end: float) -> None:
        """Those that have no outcome yet; the search goes on whatever comes of them."""
        if self.ended:
            return
        for config in self._providers:
            if config in self.summary.providers:
                continue
            if time.monotonic() >= end:
                return
            try:
                outcome = self._evaluate(config)
            except TargetError as error:
                self.summary.trouble, self.summary.ended = str(error), "the target could not go on"
                return
            step = Step(config, outcome, "provider")
            self._record(self._copied(step) or self._trial(step))

    def _seeds(self) -> list[Config]:
        name, source, where = self._loaded.name, self._loaded.source, self._target.device.key
        return [*self._known_finalists(), *self._store.stale_winners(name, source, self._job.problem, where)]

    def _known_finalists(self) -> list[Config]:
        """To be measured first when all is measured anew: what the database serves must not outlive it."""
        if not self._again:
            return []
        timed = timings({config: trial.outcome for config, trial in self._known.items()})
        return sorted((config for config in timed if timed[config].rank_ms is not None), key=str)

    @property
    def _own_ms(self) -> float | None:
        """The least time of a config of the space so far, be it of a finalist or not yet."""
        return min((timing.score for timing in timings(self.summary.outcomes).values()), default=None)

    @property
    def _cost_ms(self) -> float | None:
        """What the model pays as things stand; None while no config of the space has a time."""
        if self._own_ms is None:
            return None
        return min(timing.score for timing in self.summary.timed.values())

    def _evaluate(self, config: Config) -> Outcome:
        # explain() tells what a provider takes, however slow it is, and beside it what the kernel takes at best.
        best_ms = self._own_ms if config.provider is None else None
        measured = self._target.evaluate(self._loaded.entry, self._job.problem, config, best_ms)
        self.summary.take(config, measured)
        self._took[config] = measured
        return measured.outcome

    def finish(self, end: float = math.inf) -> None:
        """Time the fastest in turns, those that were before included, until ``end`` on the monotonic clock."""
        self.finished = True
        raced: set[Config] = set()
        for _ in range(MOST_FINALS):
            chosen = self._finalists()
            if len(chosen) < 2 or raced.issuperset(chosen) or self.summary.trouble is not None:
                return
            if time.monotonic() > end or not (self.summary.measured or self._unranked(chosen)):
                return
            raced |= set(chosen)
            self._race(chosen)

    def _unranked(self, chosen: list[Config]) -> bool:
        """Whether an earlier sweep was stopped before their finals."""
        timed = self.summary.timed
        return any(timed[config].rank_ms is None for config in chosen)

    def _finalists(self) -> list[Config]:
        """The fastest, and who has won so far."""
        # A twin shares the outcome of the config that ran in its place.
        alone = {
            config: timing for config, timing in self.summary.timed.items() if self._known[config].same_as is None
        }
        chosen = finalists(alone, FINAL_SECONDS)
        winner = min(alone, key=lambda config: place(config, alone[config]), default=None)
        return chosen if winner is None or winner in chosen or not chosen else [*chosen, winner]

    def _race(self, chosen: list[Config]) -> None:
        begun = time.monotonic()
        try:
            found = self._target.evaluate_in_turns(self._loaded.entry, self._job.problem, chosen)
        except TargetError as error:
            if len(chosen) < 4:
                self.summary.trouble = str(error)
                return
            self._race(chosen[: len(chosen) // 2])  # one of them does not run any more
            return
        spent = time.monotonic() - begun
        for config, timing in found.items():
            self._final(config, timing, spent / len(found))
        if found:
            self.summary.spend(Rung.FINAL.value, spent)

    def _final(self, config: Config, timing: Timing, seconds: float) -> None:
        """A new outcome, for the config and for those that share its code."""
        before = self._known[config]
        if config in self._took and before.rung is not None and before.rung is not Rung.FINAL:
            self.summary.settled[before.rung] -= 1
            self.summary.settled[Rung.FINAL] += 1
        now = self._now()
        spent = {**before.seconds, Rung.FINAL.value: before.seconds.get(Rung.FINAL.value, 0.0) + seconds}
        self._record(replace(before, outcome=timing, rung=Rung.FINAL, seconds=spent, **now))
        for twin in [trial for trial in self._known.values() if trial.same_as == config]:
            self._record(replace(twin, outcome=timing, **now))

    def _record(self, trial: Trial) -> None:
        self._store.record(trial)
        self._known[trial.config] = trial
        self.summary.know(trial.config, trial.outcome)

    def _copied(self, step: Step) -> Trial | None:
        """Recorded truth is copied, not measured again: its own source, versions and date."""
        trial = self._took[step.config].recorded
        if trial is None or "origin" in trial.provenance:
            return trial
        return replace(trial, provenance={**trial.provenance, "origin": step.origin})

    def _trial(self, step: Step) -> Trial:
        measured = self._took[step.config]
        return Trial(
            kernel=self._loaded.name,
            source=self._loaded.source,
            problem=self._job.problem,
            device=self._target.device.key,
            config=step.config,
            outcome=measured.outcome,
            target=self._target.name,
            # Its number: finalists get a new date.
            provenance={
                "trial": len(self.summary.outcomes),
                "origin": step.origin,
                "seed": self._seed,
                "machine": platform.machine(),
            },
            rung=measured.rung,
            seconds=measured.seconds,
            resources=measured.resources,
            same_as=measured.same_as,
            **self._now(),
        )

    def _now(self) -> dict[str, Any]:
        """What a trial says of when and by what it was measured."""
        target = self._target
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        return {"triton": target.triton, "torch": target.torch, "driver": target.device.driver, "created_at": now}
