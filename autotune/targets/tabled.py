"""A table as a target sees it: a device, trials, and a kernel that has a space but no code."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from autotune.data import Config, Device, Failure, Outcome, Problem, Reason, Timing, Trial, UsageError
from autotune.kernel import Field, Kernel
from autotune.registry import Entry, Loaded
from autotune.rung import Rung
from autotune.source import TABLE
from autotune.space import SearchSpace
from autotune.table import Table
from autotune.targets.recorded import Recorded

#: Means, as the table's authors took them: not comparable with a time of ours.
PROTOCOL = "table-throughput-1"
#: Tables don't say when. One instant for all, so that recording a row twice is recording it once.
_CREATED_AT = "1970-01-01T00:00:00.000000+00:00"


@dataclass(frozen=True)
class TableDevice(Device):
    """A device of which a table gives the names alone; no device that is present has such a key."""

    @property
    def key(self) -> str:
        return f"{self.arch}/replay/{self.name}"


def recorded(table: Table) -> Recorded:
    device = TableDevice(
        name=table.device_name,
        arch=table.arch,
        # Not known. What did not fit is recorded as failed, so no limit on shared memory.
        sm_count=0,
        shared_bytes_per_block=2**31,
        memory_bytes=0,
        l2_bytes=0,
    )
    problem, source = _problem(table), _source(table)
    trials: dict[Config, Trial] = {}
    for row in range(len(table)):
        config = table.config(row)
        cost_ms = float(table.cost_ms[row])
        trials[config] = Trial(
            kernel=table.kernel,
            source=source,
            problem=problem,
            device=device.key,
            config=config,
            outcome=_outcome(float(table.time_ms[row])),
            target="replay",
            triton="",
            torch="",
            created_at=_CREATED_AT,
            provenance={"table": table.name},
            rung=Rung.TIMING,
            # Compiling and verifying are in it: a table has one sum.
            seconds={} if math.isnan(cost_ms) else {Rung.TIMING.value: cost_ms / 1e3},
        )
    return Recorded(device, PROTOCOL, triton="", torch="", trials={table.kernel: {problem: {source: trials}}})


def loaded(table: Table) -> Loaded:
    """The table's kernel. Its problem has fields P0, P1, ... for the sizes; what needs code raises UsageError."""

    def no_code(*args: Any, **kwargs: Any) -> NoReturn:
        raise UsageError(f"{table.name} is a table of recorded times, with no code of {table.kernel} to run")

    middle = table.config(table.middle)
    kernel = Kernel(
        fields=tuple(Field(f"P{number}", "size") for number in range(len(table.problem_size))),
        problem=no_code,
        key=no_code,
        inputs=no_code,
        run=no_code,
        reference=no_code,
        work=no_code,
        problems=(str(_problem(table)),),
        tolerances={},
        signature=no_code,
    )
    space = SearchSpace(params=lambda problem, device: table.params, default=lambda problem, device: middle)
    return Loaded(Entry(table.kernel, table.name, table.name), kernel, space, _source(table))


def _problem(table: Table) -> Problem:
    return Problem({f"P{number}": size for number, size in enumerate(table.problem_size)})


def _source(table: Table) -> str:
    """There is no code to hash: the recorded truth stands for itself."""
    return TABLE + hashlib.sha256(table.codes.tobytes() + table.time_ms.tobytes()).hexdigest()


def _outcome(time_ms: float) -> Outcome:
    if math.isnan(time_ms):
        return Failure(Reason.RUNTIME, "recorded as failed", PROTOCOL)
    return Timing(time_ms, time_ms, time_ms, 1, PROTOCOL)
