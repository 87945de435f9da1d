"""Targets whose candidates run in a killable worker: the interpreter, and GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autotune import measure
from autotune.data import AutotuneError, Config, Failure, Outcome, Problem, Reason
from autotune.registry import Entry
from autotune.worker import Worker, WorkerDied, WorkerError, WorkerTimeout

#: Enough for a worker to import torch and Triton on a cold disk.
START_SECONDS = 180.0


class TargetError(AutotuneError):
    """The target can't start, or can't prepare a problem; no fault of any candidate."""


class ProcessTarget:
    """Measures in a worker process; what the candidate does to that process is a row, not our end."""

    def __init__(
        self,
        name: str,
        where: str,
        protocol: str,
        environment: Mapping[str, str | None],
        timeout_s: float,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.protocol = protocol
        self.timeout_s = timeout_s
        self._where = where
        self._seed = seed
        self._worker = Worker(environment)
        try:
            self.device, self.triton, self.torch = self._worker.call(
                measure.versions, where, timeout_s=START_SECONDS
            )
        except (WorkerDied, WorkerTimeout, WorkerError) as error:
            self._worker.close()
            raise TargetError(f"target {name} does not start: {_last_line(error)}") from error

    def evaluate(self, entry: Entry, problem: Problem, config: Config) -> Outcome:
        outcome = self._guarded(measure.evaluate, entry, problem, config)
        assert outcome is not None
        return outcome

    def verify(self, entry: Entry, problem: Problem, config: Config) -> Outcome | None:
        return self._guarded(measure.verify, entry, problem, config)

    def time_reference(self, entry: Entry, problem: Problem) -> Outcome:
        outcome = self._guarded(measure.time_reference, entry, problem)
        assert outcome is not None
        return outcome

    def _guarded(
        self, function: Callable[..., Outcome | None], entry: Entry, problem: Problem, *args: Any
    ) -> Outcome | None:
        # Inputs and references first and on their own clock: their trouble is no fault of the candidate.
        try:
            self._worker.call(_ready, entry, problem, self._seed, self._where, timeout_s=START_SECONDS)
        except (WorkerDied, WorkerTimeout, WorkerError) as error:
            raise TargetError(
                f"{entry.name} {problem}: no inputs or reference on {self.name}: {_last_line(error)}"
            ) from error
        try:
            outcome = self._worker.call(
                function, entry, problem, *args, self._seed, self._where, timeout_s=self.timeout_s
            )
        except WorkerTimeout:
            return Failure(Reason.TIMEOUT, f"not done in {self.timeout_s:.0f} s", self.protocol)
        except WorkerDied as error:
            return Failure(Reason.RUNTIME, f"the process was {error}", self.protocol)
        if isinstance(outcome, Failure) and outcome.reason is Reason.RUNTIME and self._where != "cpu":
            # An illegal access poisons the CUDA context for good: the next candidate gets a new process.
            self._worker.close()
        return outcome

    def close(self) -> None:
        self._worker.close()

    def __enter__(self) -> ProcessTarget:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _ready(entry: Entry, problem: Problem, seed: int, where: str) -> None:
    measure.prepare(entry, problem, seed, where)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
