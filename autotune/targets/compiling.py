"""A machine whose candidates are compiled, and looked at, before they reach it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from autotune.candidate import Measured
from autotune.compile import refused
from autotune.compile_pool import CompilePool
from autotune.data import Config, Failure, Outcome, Problem, Timing
from autotune.registry import Entry, Loaded
from autotune.rung import Rung
from autotune.targets.target import Machine, TargetError
from autotune.worker import WorkerDied, WorkerError, WorkerTimeout

T = TypeVar("T")

#: Candidates compiled ahead at most: what they are is decided before the last of them are measured.
MOST_AHEAD = 8


class Compiling:
    """Adds the rungs below verification: the compiler's verdict, resources, and code that was measured before."""

    def __init__(self, machine: Machine, pool: CompilePool | None = None) -> None:
        """:param pool: None for one of a process per core. Closed with this target."""
        self._machine = machine
        self.name, self.device, self.protocol = machine.name, machine.device, machine.protocol
        self.triton, self.torch = machine.triton, machine.torch
        cores = len(os.sched_getaffinity(0))
        self.ahead = min(MOST_AHEAD, cores)
        # Never more than are asked for at once.
        self._pool = CompilePool(self.protocol, min(MOST_AHEAD + 1, cores)) if pool is None else pool
        #: Digest of code -> the config first measured with it, and what came of it.
        self._measured: dict[tuple[Entry, Problem, str], tuple[Config, Measured]] = {}

    def load(self, name: str, problem: Problem | None = None) -> Loaded:
        return self._machine.load(name, problem)

    def announce(self, entry: Entry, problem: Problem, config: Config) -> None:
        if config.provider is None:
            self._pool.submit(entry, problem, config, self.device)

    def evaluate(self, entry: Entry, problem: Problem, config: Config, best_ms: float | None = None) -> Measured:
        if config.provider is not None:  # there is nothing to compile
            return self._machine.evaluate(entry, problem, config, best_ms)
        try:
            compiled, spent = self._pool.result(entry, problem, config, self.device)
        except (WorkerError, WorkerDied, WorkerTimeout) as error:
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise TargetError(f"{entry.name} {problem}: no compiler for {self.name}: {last[0]}") from error
        seconds = {Rung.COMPILE.value: spent}
        if isinstance(compiled, Failure):
            return Measured(compiled, Rung.COMPILE, seconds)
        needs = compiled.resources
        refusal = refused(compiled, self.device, self.protocol)
        if refusal is not None:
            return Measured(refusal, Rung.RESOURCES, seconds, needs)
        code = entry, problem, compiled.code
        if code in self._measured:
            twin, measured = self._measured[code]
            if twin != config:
                return Measured(measured.outcome, Rung.DUPLICATE, seconds, needs, same_as=twin)
        measured = self._machine.evaluate(entry, problem, config, best_ms)
        measured = replace(measured, seconds={**seconds, **measured.seconds}, resources=needs)
        self._measured[code] = config, measured
        return measured

    def evaluate_in_turns(self, entry: Entry, problem: Problem, configs: Sequence[Config]) -> dict[Config, Timing]:
        return self._machine.evaluate_in_turns(entry, problem, configs)

    def verify(self, entry: Entry, problem: Problem, config: Config) -> Failure | None:
        return self._machine.verify(entry, problem, config)

    def time_reference(self, entry: Entry, problem: Problem) -> Outcome:
        return self._machine.time_reference(entry, problem)

    def attempt(self, function: Callable[..., T], entry: Entry, problem: Problem, *args: Any) -> T | Failure:
        return self._machine.attempt(function, entry, problem, *args)

    def close(self) -> None:
        self._pool.close()
        self._machine.close()

    def __enter__(self) -> Compiling:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
