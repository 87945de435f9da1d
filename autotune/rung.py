"""The ladder that a candidate climbs on its way to a time, and what its compiled code needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Rung(str, Enum):
    """The steps a candidate climbs, cheapest first; it ends on the one that settled its outcome."""

    #: Built for the device, ahead of the measurements.
    COMPILE = "compile"
    #: Dropped for what the compiled code needs: shared memory, spilled registers.
    RESOURCES = "resources"
    #: Compiled to the code of a config already measured, whose outcome it shares.
    DUPLICATE = "duplicate"
    #: Run and compared with the reference.
    VERIFY = "verify"
    #: A few repeats, enough to see that it is far from the best.
    SCREEN = "screen"
    #: Timed in full.
    TIMING = "timing"
    #: Timed again in turns with the other fastest.
    FINAL = "final"


@dataclass(frozen=True)
class Resources:
    """What the compiled code needs. Registers and spills (a thread's) are None where no tool reads them."""

    shared_bytes: int
    registers: int | None = None
    spill_bytes: int | None = None
