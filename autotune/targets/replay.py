"""``replay:FILE``: what was recorded answers in place of the device, at once; nothing else is ever asked.

FILE is a database, its export to JSON lines, or a table (:mod:`autotune.table`). Where a database has several
devices, ``replay:FILE#TEXT`` names one by a part of its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autotune import registry
from autotune.candidate import Measured
from autotune.data import Config, Problem, Timing, UsageError
from autotune.protocol import Objective
from autotune.registry import Entry, Loaded
from autotune.rung import Rung
from autotune.table import read_table, stem_of
from autotune.targets import recorded, tabled
from autotune.targets.narrowed import Narrowed


class Replay:
    """A target like the others, except that no kernel runs on it."""

    ahead = 0

    def __init__(self, where: str, objective: Objective = "throughput") -> None:
        """:param where: ``FILE`` or ``FILE#TEXT``
        :param objective: which rows answer, where the file has several protocols

        :raises UsageError: if the file is missing, not in order, or has several devices to choose from.
        """
        self.file, _, text = where.partition("#")
        table = None if stem_of(self.file) is None else read_table(self.file)
        self._recorded = (
            recorded.read(Path(self.file), text, objective) if table is None else tabled.recorded(table)
        )
        self._tabled = None if table is None else tabled.loaded(table)
        self.device, self.protocol = self._recorded.device, self._recorded.protocol
        if text not in self.device.key:
            raise UsageError(f"{self.file} is of {self.device.key}, which has no {text!r} in it; leave out #{text}")
        self.triton, self.torch = self._recorded.triton, self._recorded.torch
        # With the protocol, where the file has others that are left out.
        self.name = f"replay:{where}" + (f" ({self.protocol})" if self._recorded.other_protocols else "")
        self._kernels: dict[str, Narrowed] = {}

    @property
    def kernels(self) -> list[str]:
        """What it has trials of."""
        return sorted(self._recorded.trials)

    def load(self, name: str, problem: Problem | None = None) -> Loaded:
        """The kernel, with the recorded problems for its own and its space cut down to the recorded configs.

        ``source`` is that of the code which ``problem``'s trials were made with: the present code if it has any,
        else the code with most of them. Without a problem, that of most recorded problems.

        :raises UsageError: if nothing is recorded of the kernel that its present code takes.
        """
        return self._narrowed(name).loaded(problem)

    def evaluate(self, entry: Entry, problem: Problem, config: Config, best_ms: float | None = None) -> Measured:
        """What was recorded, whole: it took no time, so ``best_ms`` stops nothing early.

        :raises UsageError: if ``config`` was not recorded.
        """
        trial = self._narrowed(entry.name).trials(problem).get(config)
        if trial is None:
            raise UsageError(f"{entry.name} {problem} {config} was not recorded in {self.file}; take one that was")
        rung = Rung.TIMING if trial.rung is None else trial.rung
        return Measured(trial.outcome, rung, trial.seconds, trial.resources, trial.same_as, recorded=trial)

    def announce(self, entry: Entry, problem: Problem, config: Config) -> None:
        """Nothing to do ahead."""

    def evaluate_in_turns(self, entry: Entry, problem: Problem, configs: Sequence[Config]) -> dict[Config, Timing]:
        """None: what is recorded can't be timed again."""
        return {}

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _narrowed(self, name: str) -> Narrowed:
        if name not in self._kernels:
            kernels = self._recorded.trials
            if name not in kernels:
                have = ", ".join(sorted(kernels))
                raise UsageError(f"{self.file} has no trials of {name!r} on {self.device.key}; it has {have}")
            base = registry.load(name) if self._tabled is None else self._tabled
            self._kernels[name] = Narrowed(base, self.device, self.file, kernels[name])
        return self._kernels[name]
