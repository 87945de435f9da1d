"""The search as an Optuna sampler, for any study with one objective."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autotune.search.axes import axis_of
from autotune.search.candidates import Allowed, Candidates, Settle
from autotune.search.experience import Experience
from autotune.search.proposer import Proposer


class SurrogateSampler(BaseSampler):
    """Proposes what a Gaussian process over ordinal parameters expects to be fastest, in few trials.

    Only allowed configs are proposed, none twice, failed ones (PRUNED or FAIL without a value) are learnt from,
    running ones are counted as proposed. The same seed and the same values give the same proposals. Made for
    grids of tile sizes and the like; a continuous parameter is looked at in 64 steps.

    ::

        space = {"BLOCK": CategoricalDistribution((16, 32, 64)), "warps": IntDistribution(1, 8)}
        sampler = SurrogateSampler(space, allowed=lambda c: c["BLOCK"] * c["warps"] <= 256, seed=0)
        study = optuna.create_study(sampler=sampler)
        trial = study.ask(space)
        study.tell(trial, milliseconds(trial.params))

    Without a space of its own, as in ``study.optimize``, it takes the parameters that all finished trials have,
    and the first trial is random.
    """

    def __init__(
        self,
        search_space: Mapping[str, BaseDistribution] | None = None,
        *,
        allowed: Allowed | None = None,
        settle: Settle | None = None,
        first: Sequence[Mapping[str, Any]] = (),
        experience: Sequence[Experience] = (),
        seed: int | None = None,
        candidates: Candidates | None = None,
    ) -> None:
        """
        :param allowed: whether a config, a mapping of names to values, may be proposed
        :param settle: gives a config with the parameters that change nothing in it at their rest
        :param first: configs to propose before all others; those not allowed are skipped
        :param experience: what was measured of the same kernel elsewhere; checked against what is measured here
        :param candidates: made from the space and ``allowed`` before, to be shared by several studies
        """
        self._space = None if search_space is None else dict(search_space)
        self._allowed, self._settle = allowed, settle
        self._first, self._experience = [dict(config) for config in first], experience
        self._seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        self._given = candidates
        self._intersection = IntersectionSearchSpace()
        self._random = RandomSampler(seed=self._seed)
        self._work: _Work | None = None
        #: study.optimize with n_jobs asks from several threads.
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_work")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _work=None)

    @property
    def promise(self) -> float | None:
        """By what share of the best time the last proposal's best rival was expected to gain; None if unknown."""
        return None if self._work is None else self._work.proposer.promise

    def reseed_rng(self) -> None:
        # Called before every trial of study.optimize with n_jobs. What runs is not proposed again in any case.
        self._random.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self._space is not None:
            return self._space
        with self._lock:
            return self._intersection.calculate(study)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """:raises ValueError: if the study has several objectives, or no config is allowed."""
        if len(study.directions) != 1:
            raise ValueError(f"SurrogateSampler takes one objective, the study has {len(study.directions)}")
        if not search_space:
            return {}
        with self._lock:
            if self._work is None or (self._work.study, self._work.space) != (study.study_name, search_space):
                self._work = self._started(study, search_space)
            work = self._work
            work.take_in(study, trial)
            row = self._proposed(work)
            if row is None:  # everything has been proposed; what is left is to end, or to repeat
                with suppress(RuntimeError):  # not in study.optimize
                    study.stop()
                row = work.measured[0][0] if work.measured else 0
            work.proposed[trial.number] = row
            return work.candidates.config(row)

    def _proposed(self, work: _Work) -> int | None:
        for config in self._first:
            row = work.candidates.row(config)
            if row is not None and row not in work.taken:
                return row
        return work.proposer.propose(work.measured, list(work.pending.values()))

    def _started(self, study: Study, space: dict[str, BaseDistribution]) -> _Work:
        candidates = self._given
        if candidates is None:
            axes = [axis_of(name, distribution) for name, distribution in space.items()]
            candidates = Candidates(axes, self._allowed, self._seed, self._settle)
        if not len(candidates):
            raise ValueError(f"no allowed config of {', '.join(space)} was found; loosen `allowed`")
        expected = [source.expected(candidates, self._seed) for source in self._experience]
        sources = [one for one in expected if one is not None]
        return _Work(study.study_name, space, candidates, Proposer(candidates, sources, self._seed))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)


class _Work:
    """What a sampler knows of one study over one space."""

    def __init__(
        self, study: str, space: dict[str, BaseDistribution], candidates: Candidates, proposer: Proposer
    ) -> None:
        self.study = study
        self.space, self.candidates, self.proposer = space, candidates, proposer
        #: Rows and values in the order in which they became known.
        self.measured: list[tuple[int, float | None]] = []
        #: Trial number -> row, of trials that run.
        self.pending: dict[int, int] = {}
        #: The same of all trials proposed here: a study learns a trial's parameters only as they are suggested.
        self.proposed: dict[int, int] = {}
        self._known: set[int] = set()

    @property
    def taken(self) -> set[int]:
        return {row for row, _ in self.measured} | set(self.pending.values())

    def take_in(self, study: Study, asking: FrozenTrial) -> None:
        maximize = study.direction == StudyDirection.MAXIMIZE
        self.pending.clear()
        for trial in study.get_trials(deepcopy=False):
            if trial.number in self._known or trial.number == asking.number:
                continue
            row = self.candidates.row(trial.params)
            if row is None:
                row = self.proposed.get(trial.number)
            if row is None:
                continue
            if trial.state.is_finished():
                value = trial.value if trial.state == TrialState.COMPLETE else None
                if value is not None and not math.isfinite(value):
                    value = None
                self.measured.append((row, -value if value is not None and maximize else value))
                self._known.add(trial.number)
            elif trial.state == TrialState.RUNNING:
                self.pending[trial.number] = row
