"""Many problems, one budget: which problem gets the next trials, and when one has had enough. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Trials in a row for one problem: another one costs the worker new inputs and references. At its first turn a
#: problem gets two, its default and a good guess, so that every problem has something soon.
SLICE, FIRST_SLICE = 5, 2
#: A problem is done when each of its last 10 trials was expected to save less than 0.03 % of its best time. On the
#: ten open replay tables that is after 58 trials (median), 1.7 % above the optimum (geometric mean; 24 % at worst).
#: 5 trials under 0.2 % would end it after 28, 7 % above.
ENOUGH, PATIENCE = 0.0003, 10
#: Trials without a single time after which a problem is given up.
HOPELESS = 20
#: Until the search can tell what the next trial promises, it is taken for this share: more than any later one.
UNKNOWN = 0.2


@dataclass
class Prospect:
    """What going on with one problem promises."""

    calls: int
    #: Score of its best config; None before anything ran.
    best_ms: float | None = None
    #: Seconds spent on its trials, and how many those were.
    spent_s: float = 0.0
    trials: int = 0
    #: What each of the last trials was expected to save, as a share of the best time; None: unknown.
    promises: deque[float | None] = field(default_factory=lambda: deque(maxlen=PATIENCE))

    def took(self, seconds: float, best_ms: float | None, promise: float | None) -> None:
        """One more trial is done."""
        self.spent_s += seconds
        self.trials += 1
        self.best_ms = best_ms
        self.promises.append(promise)

    @property
    def cost_ms(self) -> float:
        """Of the model's time, what the problem takes now."""
        return self.calls * (self.best_ms or 0.0)

    @property
    def promise(self) -> float:
        known = [UNKNOWN if promise is None else promise for promise in self.promises]
        return known[-1] if known else UNKNOWN

    @property
    def enough(self) -> bool:
        """Whether what is left to gain is not worth more trials, or none of many ran at all."""
        if self.best_ms is None and self.trials >= HOPELESS:
            return True
        return len(self.promises) == PATIENCE and all(p is not None and p < ENOUGH for p in self.promises)

    @property
    def rate(self) -> float:
        """Milliseconds of the model's time that a second of tuning is expected to save: calls x time x chance."""
        if not self.trials:
            return float("inf")  # nothing was tried: it comes first
        seconds = self.spent_s / self.trials
        return self.cost_ms * self.promise / max(seconds, 1e-6)


def next_slice(prospects: Sequence[Prospect], open_: Sequence[bool]) -> int | None:
    """Which of the problems that are still open gets the next trials; the first of equals. None if none is."""
    rates = [prospect.rate if is_open else -1.0 for prospect, is_open in zip(prospects, open_, strict=True)]
    best = max(rates, default=-1.0)
    return None if best < 0 else rates.index(best)
