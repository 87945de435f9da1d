"""Search one space by ask and tell: the default first, then seeds, then what the sampler proposes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from autotune.data import Config, Device, Outcome, Problem, Timing, UsageError
from autotune.search.experience import Experience
from autotune.search.sampler import SurrogateSampler
from autotune.space import SearchSpace

#: ``provider``: it stands beside the space.
Origin = Literal["default", "seed", "search", "provider"]


@dataclass(frozen=True)
class Step:
    """One measured candidate, and what proposed it."""

    config: Config
    outcome: Outcome
    origin: Origin
    #: Share of the best time that the next trial is expected to save; None while too little is known.
    promise: float | None = None


def search(
    space: SearchSpace,
    problem: Problem,
    device: Device,
    evaluate: Callable[[Config], Outcome],
    *,
    trials: int,
    seed: int = 0,
    known: Mapping[Config, Outcome] | None = None,
    seeds: Sequence[Config] = (),
    experience: Sequence[Experience] = (),
    announce: Callable[[Config], None] = lambda config: None,
    ahead: int = 0,
) -> Iterator[Step]:
    """Measure the default, ``seeds``, the space's own (or the best of ``experience``), then what is proposed.

    Ends when ``trials`` configs are known, those in ``known`` included, or the space is exhausted. No config
    is evaluated twice. The same seed and the same outcomes give the same steps. Stop it at any time.

    :param experience: outcomes on other problems and devices, for the sampler to learn from
    :param announce: told of each config as soon as it is proposed, ``ahead`` evaluations before its turn
    """
    outcomes = dict(known or {})
    proposals = _Proposals(space, problem, device, seed, outcomes, seeds, experience)
    waiting: deque[tuple[optuna.Trial, Config, Origin]] = deque()
    while True:
        while len(waiting) <= ahead and _wanted(len(outcomes) + len(waiting), trials, outcomes, proposals.default):
            proposal = proposals.next()
            if proposal is None:
                break
            waiting.append(proposal)
            announce(proposal[1])
        if not waiting:
            return
        trial, config, origin = waiting.popleft()
        outcomes[config] = evaluate(config)
        proposals.tell(trial, outcomes[config])
        yield Step(config, outcomes[config], origin, proposals.promise)


def _wanted(count: int, trials: int, outcomes: Mapping[Config, Outcome], default: Config) -> bool:
    # The default is always measured: gains are told against it.
    return count < trials or (count == len(outcomes) and default not in outcomes)


class _Proposals:
    """An Optuna study over one space."""

    def __init__(
        self,
        space: SearchSpace,
        problem: Problem,
        device: Device,
        seed: int,
        known: Mapping[Config, Outcome],
        seeds: Sequence[Config],
        experience: Sequence[Experience],
    ) -> None:
        self.default = space.default(problem, device)
        why_not = space.why_not(self.default, problem, device)
        if why_not is not None:
            raise UsageError(
                f"the space's own default {self.default} is not allowed for {problem}: {why_not}; mend it"
            )
        # What was measured elsewhere knows better than a published list which configs to try first.
        self._seeds = [*seeds, *(() if experience else space.seeds(problem, device))]
        self._asked = set(known)
        ranges = space.params(problem, device)
        self._distributions: dict[str, Any] = {
            name: CategoricalDistribution(values) for name, values in ranges.items()
        }
        self._sampler = SurrogateSampler(
            self._distributions,
            allowed=lambda config: space.broken_rule(Config(config), problem, device) is None,
            settle=(lambda config: space.settle(config, problem, device, ranges)) if space.matters else None,
            first=[self.default, *self._seeds],
            experience=experience,
            seed=seed,
        )
        with _quiet():
            self._study = optuna.create_study(sampler=self._sampler)
        for config, outcome in known.items():
            # What is known may be of an older, wider space.
            if space.why_not(config, problem, device) is None:
                value = outcome.score if isinstance(outcome, Timing) else None
                state = TrialState.PRUNED if value is None else TrialState.COMPLETE
                self._study.add_trial(
                    create_trial(state=state, value=value, params=dict(config), distributions=self._distributions)
                )

    @property
    def promise(self) -> float | None:
        return self._sampler.promise

    def next(self) -> tuple[optuna.Trial, Config, Origin] | None:
        """None if every allowed config has been proposed."""
        trial = self._study.ask(self._distributions)
        config = Config(trial.params)
        if config in self._asked:
            return None
        self._asked.add(config)
        return trial, config, "default" if config == self.default else "seed" if config in self._seeds else "search"

    def tell(self, trial: optuna.Trial, outcome: Outcome) -> None:
        if isinstance(outcome, Timing):
            self._study.tell(trial, outcome.score)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces each new study on standard error; the user's own setting is put back."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
