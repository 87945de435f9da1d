"""Search a space with Optuna, by ask and tell. Knows no GPU and no database: it is given ``evaluate``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from autotune.data import Config, Device, Outcome, Problem, Timing
from autotune.space import SearchSpace

Origin = Literal["default", "seed", "search"]

#: Proposals in a row that are forbidden or known already before a config is drawn from the allowed ones. The
#: sampler tires of a nearly exhausted space; a look through the space costs microseconds a config.
USELESS_ASKS = 30


@dataclass(frozen=True)
class Step:
    """One measured candidate, and what proposed it."""

    config: Config
    outcome: Outcome
    origin: Origin


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
) -> Iterator[Step]:
    """Measure the default, then ``seeds`` and the space's own, then what Optuna proposes.

    Ends when ``trials`` configs are known, those in ``known`` included, or the space is exhausted. No config
    is evaluated twice. The same seed and the same outcomes give the same steps. Stop it at any time.
    """
    outcomes = dict(known or {})
    proposer = _Proposer(space, problem, device, seed)
    for config, outcome in outcomes.items():
        proposer.learn(config, outcome)

    first: list[tuple[Config, Origin]] = [(space.default(problem, device), "default")]
    first += [(config, "seed") for config in (*seeds, *space.seeds(problem, device))]
    for config, origin in first:
        if len(outcomes) >= trials and origin != "default":
            return
        if config not in outcomes and space.why_not(config, problem, device) is None:
            outcomes[config] = evaluate(config)
            proposer.learn(config, outcomes[config])
            yield Step(config, outcomes[config], origin)

    while len(outcomes) < trials:
        proposal = proposer.propose(outcomes)
        if proposal is None:
            return
        trial, config = proposal
        outcomes[config] = evaluate(config)
        proposer.tell(trial, outcomes[config])
        yield Step(config, outcomes[config], "search")


class _Proposer:
    """An Optuna study over one space."""

    def __init__(self, space: SearchSpace, problem: Problem, device: Device, seed: int) -> None:
        self._space, self._problem, self._device = space, problem, device
        self._random = random.Random(seed)
        self._distributions: dict[str, Any] = {
            name: CategoricalDistribution(values) for name, values in space.params(problem, device).items()
        }
        with _quiet():
            self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))

    def learn(self, config: Config, outcome: Outcome) -> None:
        """Take in an outcome that the study did not ask for."""
        if self._space.why_not(config, self._problem, self._device) is None:
            value = outcome.median_ms if isinstance(outcome, Timing) else None
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            self._study.add_trial(
                create_trial(state=state, value=value, params=dict(config), distributions=self._distributions)
            )

    def tell(self, trial: optuna.Trial | None, outcome: Outcome) -> None:
        if trial is None:
            return
        if isinstance(outcome, Timing):
            self._study.tell(trial, outcome.median_ms)
        else:
            # PRUNED, not FAIL: Optuna's samplers look away from failed trials and propose them for ever.
            self._study.tell(trial, state=TrialState.PRUNED)

    def propose(self, outcomes: Mapping[Config, Outcome]) -> tuple[optuna.Trial | None, Config] | None:
        """An allowed config not in ``outcomes``, with the Optuna trial that waits for it; None if none is left."""
        for _ in range(USELESS_ASKS):
            trial = self._study.ask(self._distributions)
            config = Config(trial.params)
            if config in outcomes:
                self.tell(trial, outcomes[config])
            elif self._space.broken_rule(config, self._problem, self._device) is not None:
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                return trial, config
        left = [config for config in self._space.allowed(self._problem, self._device) if config not in outcomes]
        return (None, self._random.choice(left)) if left else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces each new study on standard error; the user's own setting is put back."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
