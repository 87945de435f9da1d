"""A machine with a fake clock: runs take their true time, times the noise that real ones have."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy

_RECORDED = json.loads((Path(__file__).parent / "recorded_noise.json").read_text(encoding="utf-8"))
TABLES = tuple(_RECORDED["tables"])


def recorded_std(table: str, share: float) -> float:
    """The relative standard deviation that ``share`` of the configs of a recorded table do not exceed."""
    quantiles = _RECORDED["quantiles"], _RECORDED["tables"][table]["relative_std"]
    return float(numpy.interp(share, *quantiles))


@dataclass(frozen=True)
class Noise:
    """What stands between a true time and a sample; each part multiplies it."""

    #: Relative standard deviation of single runs.
    std: float = 0.0
    #: Instead, each config draws its own from one of these recorded tables.
    recorded: tuple[str, ...] = ()
    #: Slower by this share once warm; two thirds of it come in the first ``warm_ms``.
    drift: float = 0.0
    warm_ms: float = 1000.0
    #: Slower by this share now and then, and as long again at full speed; ``dwell_ms`` is the mean.
    slow: float = 0.0
    dwell_ms: float = 1.0
    #: Share of the runs that take 2 to 5 times as long.
    outliers: float = 0.0


class Machine:
    """Time passes by its runs alone, so that all of a seed's times are the same again."""

    def __init__(self, noise: Noise, seed: int) -> None:
        self.noise = noise
        self.random = random.Random(seed)
        self.now_ms = 0.0
        self.runs = 0
        self._table = self.random.choice(noise.recorded) if noise.recorded else None
        self._slow = False
        self._switch_ms = 0.0

    def clock(self) -> float:
        """Seconds since it was switched on."""
        return self.now_ms / 1e3

    def stopwatch(self, true_ms: float) -> FakeStopwatch:
        """Of a config that takes ``true_ms`` where nothing disturbs it."""
        if self._table is None:
            return FakeStopwatch(self, true_ms, self.noise.std)
        return FakeStopwatch(self, true_ms, recorded_std(self._table, self.random.random()))

    def run(self, true_ms: float, std: float) -> float:
        """Milliseconds of one run; they pass."""
        noise = self.noise
        while noise.slow and self.now_ms >= self._switch_ms:
            self._slow = not self._slow
            self._switch_ms += self.random.expovariate(1 / noise.dwell_ms)
        factor = math.exp(self.random.gauss(0.0, std)) * (1 + noise.slow * self._slow)
        factor *= 1 + noise.drift * (1 - math.exp(-self.now_ms / noise.warm_ms))
        if self.random.random() < noise.outliers:
            factor *= self.random.uniform(2.0, 5.0)
        self.now_ms += true_ms * factor
        self.runs += 1
        return true_ms * factor


@dataclass(frozen=True)
class FakeStopwatch:
    """One config on a :class:`Machine`."""

    machine: Machine
    true_ms: float
    std: float

    def sample(self, repeats: int) -> list[float]:
        return [self.machine.run(self.true_ms, self.std) for _ in range(repeats)]
