"""What was measured elsewhere, on another problem or device, as an expectation of what is not measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autotune.search.axes import Axis, Codes, Floats, axis
from autotune.search.candidates import Candidates
from autotune.search.surrogate import Surrogate
from autotune.search.values import merit

#: Trials of one source that the surrogate learns from: the fastest half of these, and as many drawn from the rest.
MOST = 400
#: Of those, the ones that hyperparameters are fitted on, and the steps of it.
FITTED, STEPS = 150, 20
#: Fewer timed trials than this say too little.
FEWEST = 5


@dataclass(frozen=True)
class Experience:
    """Trials of one other problem or device: config to milliseconds, None for one that failed."""

    trials: Mapping[Any, float | None] = field(hash=False)

    def expected(self, candidates: Candidates, seed: int = 0) -> Floats | None:
        """(N,) what share of the best speed there each candidate is expected to have: 1 the best, 0 failed.

        Measured where the same config was measured there, predicted elsewhere. None if the source says too
        little: too few trials, or no parameter in common.
        """
        shared = [one for one in candidates.axes if all(one.name in config for config in self.trials)]
        if not shared or sum(value is not None for value in self.trials.values()) < FEWEST:
            return None
        configs = list(self.trials)
        share = merit([self.trials[config] for config in configs])
        wide = [axis(one.name, _union(one, configs)) for one in shared]
        theirs = _codes(wide, configs)
        ours = _translated(wide, shared, candidates)
        rows = _chosen(share, np.random.default_rng([seed, 2]))
        expected = _predicted(wide, theirs[rows], share[rows], ours)
        if len(shared) == len(candidates.axes):
            known = {tuple(code): number for number, code in enumerate(theirs.tolist())}
            for row, code in enumerate(map(tuple, ours.tolist())):
                if code in known:
                    expected[row] = share[known[code]]
        return expected


def _union(one: Axis, configs: Sequence[Mapping[str, Any]]) -> list[Any]:
    values = {(type(value), value): value for value in (*one.values, *(config[one.name] for config in configs))}
    ordered = list(values.values())
    return sorted(ordered) if all(isinstance(value, bool | int | float) for value in ordered) else ordered


def _codes(axes: Sequence[Axis], configs: Sequence[Mapping[str, Any]]) -> Codes:
    return np.array([[one.place(config[one.name]) for one in axes] for config in configs], dtype=np.int64)


def _translated(wide: Sequence[Axis], shared: Sequence[Axis], candidates: Candidates) -> Codes:
    """The candidates' codes on the wider axes."""
    columns = []
    for one, mine in zip(wide, shared, strict=True):
        table = np.array([one.place(value) for value in mine.values], dtype=np.int64)
        columns.append(table[candidates.codes[:, candidates.axes.index(mine)]])
    return np.stack(columns, axis=1)


def _chosen(share: Floats, rng: np.random.Generator) -> Codes:
    if len(share) <= MOST:
        return np.arange(len(share))
    order = np.argsort(-share, kind="stable")
    best, rest = order[: MOST // 2], order[MOST // 2 :]
    return np.concatenate([best, rng.choice(rest, MOST // 2, replace=False)])


def _predicted(axes: Sequence[Axis], codes: Codes, share: Floats, wanted: Codes) -> Floats:
    mean, scale = float(share.mean()), max(float(share.var()), 1e-6)
    surrogate = Surrogate(axes)
    some = np.linspace(0, len(share) - 1, min(FITTED, len(share))).astype(int)
    none = np.zeros((len(some), 0))
    surrogate.fit(codes[some], share[some] - mean, none, scale, STEPS)
    together = np.concatenate([codes, wanted])
    posterior = surrogate.posterior(together, np.zeros((len(together), 0)))
    posterior.take(range(len(codes)))
    return np.clip(posterior.mean(share - mean)[len(codes) :].astype(float) + mean, 0.0, 1.05)
