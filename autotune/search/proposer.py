"""Which candidate next: expected improvement over a surrogate, every other time next to the best so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from autotune.search.axes import Floats
from autotune.search.candidates import Candidates
from autotune.search.surrogate import Posterior, Singles, Surrogate
from autotune.search.values import merit

Flags: TypeAlias = NDArray[np.bool_]

#: Random candidates before the surrogate is asked, where nothing else is known.
FIRST = 5
#: Merits below this quantile of what was measured are raised to it: the slow half must not shape the rest.
CLIP = 0.5
#: Measurements from which the clip is sure enough to apply to sources' expectations.
CLIP_FROM = 8
#: Hyperparameters are fitted anew when measurements have grown by this factor, in so many steps.
GROWTH, STEPS = 1.08, 6
#: Expected variance of what a source gets wrong: a sixth of the best speed.
SOURCE_VARIANCE = 0.025
#: How far a source's weight may turn out from one, in standard deviations of what it gets wrong.
SOURCE_SWING = 3.0


class Proposer:
    """Told all that was measured at every proposal; keeps the candidates and what the last fit came to."""

    def __init__(self, candidates: Candidates, sources: Sequence[Floats] = (), seed: int = 0) -> None:
        """:param sources: (N,) merits that other problems or devices let expect, one array each."""
        self._candidates = candidates
        self._seed = seed
        self._surrogate = Surrogate(candidates.axes)
        self._sources = np.stack(sources, axis=1) if sources else np.zeros((len(candidates), 0))
        self._fitted_at = 0
        self._posterior: Posterior | None = None
        #: Of the last proposal: the share of the best speed that the most promising candidate is expected to add.
        self.promise: float | None = None

    def propose(self, measured: Sequence[tuple[int, float | None]], pending: Sequence[int] = ()) -> int | None:
        """The row to measure next; None if every candidate in sight is measured or pending.

        :param measured: rows with their values, less is better, None for a failure; in order of measurement
        :param pending: rows under measurement, whose values will come
        """
        taken = {row for row, _ in measured} | set(pending)
        rng = np.random.default_rng([self._seed, 3, len(taken)])
        if measured:
            values = [math.inf if value is None else value for _, value in measured]
            self._candidates.look_around(measured[int(np.argmin(values))][0])
        free = np.ones(len(self._candidates), dtype=bool)
        free[list(taken)] = False
        if not free.any():
            return None
        timed = sum(value is not None for _, value in measured)
        sources = self._visible_sources()
        if sources.shape[1] and not timed:
            return _argmax(sources.mean(1), free)
        if not sources.shape[1] and (len(taken) < FIRST or timed < 2):
            return int(rng.choice(np.flatnonzero(free)))
        return self._improve(measured, pending, sources, free)

    def _improve(
        self,
        measured: Sequence[tuple[int, float | None]],
        pending: Sequence[int],
        sources: Floats,
        free: Flags,
    ) -> int:
        rows = [row for row, _ in measured]
        shares = merit([value for _, value in measured])
        floor = float(np.quantile(shares[[value is not None for _, value in measured]], CLIP))
        shares = np.maximum(shares, floor)
        if sources.shape[1]:
            # Off from the mean of the sources, whose own weights are learnt through their columns.
            believed = np.maximum(sources.mean(1), floor if len(rows) >= CLIP_FROM else 0.0)
            scale = SOURCE_VARIANCE
        else:
            believed, scale = np.full(len(free), shares.mean()), max(float(shares.var()), 1e-12)
        y = believed[rows] - shares
        if len(rows) >= max(3, self._fitted_at * GROWTH):
            # Taken up again in the middle, the fit has some way to catch up.
            steps = STEPS if self._fitted_at else STEPS * (1 + len(rows) // 20)
            self._surrogate.fit(self._candidates.codes[rows], y, SOURCE_SWING * sources[rows], scale, steps)
            self._fitted_at, self._posterior = len(rows), None
        posterior = self._taken(rows, pending, sources)
        gain = _expected_improvement(posterior.mean(y) - believed, posterior.deviation(y, scale), -shares.max())
        self.promise = float(gain[free].max())
        if len(rows) % 2 == 0:
            free = self._nearest(rows[int(np.argmax(shares))], free)
        return _argmax(gain, free)

    def _taken(self, rows: Sequence[int], pending: Sequence[int], sources: Floats) -> Posterior:
        """The posterior with these rows taken in: the last one grown, where it has the same beginning."""
        wanted = [*rows, *pending]
        known = self._posterior
        if known is None or wanted[: len(known.rows)] != known.rows or len(known) != len(self._candidates):
            known = self._surrogate.posterior(self._candidates.codes, SOURCE_SWING * sources)
        known.take(wanted[len(known.rows) :])
        self._posterior = known
        return known

    def _nearest(self, row: int, free: Flags) -> Flags:
        """Of the free candidates those that differ from ``row`` in the fewest parameters."""
        apart = (self._candidates.codes != self._candidates.codes[row]).sum(1)
        near: Flags = free & (apart == apart[free].min())
        return near

    def _visible_sources(self) -> Floats:
        """Rows added since are expected to be average."""
        missing = len(self._candidates) - len(self._sources)
        if missing:
            average = np.broadcast_to(self._sources.mean(0), (missing, self._sources.shape[1]))
            self._sources = np.concatenate([self._sources, average])
        return self._sources


def _argmax(score: Floats | Singles, free: Flags) -> int:
    return int(np.argmax(np.where(free, score, -np.inf)))


def _expected_improvement(mean: Singles, deviation: Singles, best: float) -> Floats:
    """How much below ``best`` a normal variable is expected to come."""
    z = np.clip((best - mean.astype(float)) / deviation, -8.0, 8.0)
    # The normal distribution function by its logistic approximation, off by at most 1.4e-4.
    below = 1.0 / (1.0 + np.exp(-1.5976 * z - 0.07056 * z**3))
    gain: Floats = deviation * (z * below + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
    return gain
