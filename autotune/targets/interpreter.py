"""``interpreter``: Triton's interpreter on the CPU. Real correctness; times are the interpreter's own."""

from __future__ import annotations

import os

import numpy
import triton

from autotune.data import UsageError
from autotune.protocol import Objective, protocol_at
from autotune.targets.process import ProcessTarget

#: A candidate of the allowed ones takes a few seconds at most (search_spaces/_rules.py).
TIMEOUT_SECONDS = 60.0
#: Of the machine's memory: a candidate that allocates for ever fails before it pushes out anybody else.
MEMORY_SHARE = 0.5


class Interpreter(ProcessTarget):
    def __init__(self, timeout_s: float | None = None, seed: int = 0, objective: Objective = "throughput") -> None:
        """:raises UsageError: if this numpy breaks this triton's interpreter."""
        if _version(triton.__version__) < (3, 7) and _version(numpy.__version__) >= (2, 4):
            raise UsageError(
                f"triton {triton.__version__}'s interpreter breaks on loops with numpy {numpy.__version__}; "
                "pip install 'numpy<2.4'"
            )
        super().__init__(
            "interpreter",
            where="cpu",
            protocol=protocol_at("cpu", objective),
            # One thread: a candidate's time must not depend on what the other cores do.
            environment={"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            timeout_s=TIMEOUT_SECONDS if timeout_s is None else timeout_s,
            seed=seed,
            memory_bytes=int(MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        )


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
