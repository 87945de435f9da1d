"""Targets whose candidates run in a killable worker: the interpreter, and GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from autotune import measure, registry
from autotune.candidate import Measured
from autotune.data import Config, Device, Failure, Outcome, Problem, Reason, Timing
from autotune.measure import Setting
from autotune.protocol import Protocol
from autotune.registry import Entry, Loaded
from autotune.rung import Rung
from autotune.targets.target import TargetError
from autotune.worker import Worker, WorkerDied, WorkerError, WorkerTimeout

#: Enough for a worker to import torch and Triton on a cold disk.
START_SECONDS = 180.0
#: Candidates in a row that may kill the worker before their problem is given up.
MOST_DEATHS = 5

T = TypeVar("T")


class ProcessTarget:
    """Measures in a worker process; what the candidate does to that process is a row, not our end.

    All methods raise TargetError if the worker does not start, a problem's inputs or references can't be had, or
    the last five candidates on a problem killed the worker.
    """

    #: Candidates to announce before their turn.
    ahead = 0

    def __init__(
        self,
        name: str,
        where: str,
        protocol: Protocol,
        environment: Mapping[str, str | None],
        timeout_s: float,
        seed: int = 0,
        memory_bytes: int | None = None,
    ) -> None:
        """:param memory_bytes: the worker's limit of private memory; None for CUDA, which reserves far more."""
        self.name = name
        self.protocol = str(protocol)
        self.timeout_s = timeout_s
        self._setting = Setting(where, protocol, seed)
        self._worker = Worker(environment, memory_bytes)
        #: What each of the last candidates on a problem did to the worker.
        self._deaths_on: dict[tuple[Entry, Problem], list[str]] = {}
        self._deaths: list[str] = []
        self.device, self.triton, self.torch = self._start()

    def load(self, name: str, problem: Problem | None = None) -> Loaded:
        """The kernel called ``name``, whatever the problem.

        :raises UsageError: if no kernel has this name.
        """
        return registry.load(name)

    def evaluate(self, entry: Entry, problem: Problem, config: Config, best_ms: float | None = None) -> Measured:
        """:param best_ms: score of the problem's best config so far; a much slower one may be timed briefly"""
        self._prepare(entry, problem)
        # When each rung began, as told by the worker: what is known where it does not answer.
        begun = {Rung.VERIFY: time.perf_counter()}

        def on_note(text: str) -> None:
            begun[Rung(text)] = time.perf_counter()

        arguments = entry, problem, config, self._setting, best_ms
        measured = self._survived(measure.evaluate, *arguments, on_note=on_note)
        if not isinstance(measured, Failure):
            return measured
        ends = [*list(begun.values())[1:], time.perf_counter()]
        seconds = {rung.value: end - start for (rung, start), end in zip(begun.items(), ends, strict=True)}
        failure = replace(measured, protocol=str(self._setting.of(config).protocol))
        return Measured(failure, list(begun)[-1], seconds)

    def evaluate_in_turns(self, entry: Entry, problem: Problem, configs: Sequence[Config]) -> dict[Config, Timing]:
        """Time configs, each verified and timed before, against each other.

        :raises TargetError: if one of them does not run any more.
        """
        timings = self.attempt(measure.evaluate_in_turns, entry, problem, configs)
        if isinstance(timings, Failure):
            raise TargetError(f"{entry.name} {problem}: timing the fastest in turns ended in {timings.detail}")
        return timings

    def announce(self, entry: Entry, problem: Problem, config: Config) -> None:
        """Nothing to do ahead."""

    def verify(self, entry: Entry, problem: Problem, config: Config) -> Failure | None:
        return self.attempt(measure.verify, entry, problem, config)

    def time_reference(self, entry: Entry, problem: Problem) -> Outcome:
        return self.attempt(measure.time_reference, entry, problem)

    def attempt(self, function: Callable[..., T], entry: Entry, problem: Problem, *args: Any) -> T | Failure:
        """What ``function(entry, problem, *args, setting)`` gives in the worker, or what ended it there."""
        self._prepare(entry, problem)
        return self._survived(function, entry, problem, *args, self._setting)

    def _start(self) -> tuple[Device, str, str]:
        try:
            return self._worker.call(measure.versions, self._setting.where, timeout_s=START_SECONDS)
        except (WorkerDied, WorkerTimeout, WorkerError) as error:
            self._worker.close()
            raise TargetError(f"target {self.name} does not start: {_last_line(error)}") from error

    def _prepare(self, entry: Entry, problem: Problem) -> None:
        """Inputs and references first and on their own clock: their trouble is no fault of the candidate."""
        self._deaths = self._deaths_on.setdefault((entry, problem), [])
        if len(self._deaths) >= MOST_DEATHS:
            raise TargetError(
                f"{entry.name} {problem}: the last {len(self._deaths)} candidates each killed the worker: "
                f"{self._deaths[-1]}; stopped with what it has"
            )
        used = self._worker.running
        if not used:
            self._start()
        try:
            self._worker.call(_ready, entry, problem, self._setting, timeout_s=START_SECONDS)
        except (WorkerDied, WorkerTimeout, WorkerError) as error:
            if used:
                # A candidate before may have left a thread that ended the process since.
                self._worker.close()
                return self._prepare(entry, problem)
            raise TargetError(
                f"{entry.name} {problem}: no inputs or reference on {self.name}: {_last_line(error)}"
            ) from error

    def _survived(
        self, function: Callable[..., T], *args: Any, on_note: Callable[[str], None] = lambda text: None
    ) -> T | Failure:
        """What the worker answers, or how it came that it does not."""
        try:
            answer = self._worker.call(function, *args, timeout_s=self.timeout_s, on_note=on_note)
        except WorkerTimeout:
            return self._death(Reason.TIMEOUT, f"not done in {self.timeout_s:.0f} s")
        except WorkerDied as error:
            if error.out_of_memory:
                return self._death(Reason.RESOURCES, f"{error}, as where memory runs out")
            return self._death(Reason.RUNTIME, str(error))
        self._deaths.clear()
        return answer

    def _death(self, reason: Reason, detail: str) -> Failure:
        self._deaths.append(detail)
        return Failure(reason, detail, self.protocol)

    def close(self) -> None:
        self._worker.close()

    def __enter__(self) -> ProcessTarget:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _ready(entry: Entry, problem: Problem, setting: Setting) -> None:
    measure.prepare(entry, problem, setting.seed, setting.where)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
