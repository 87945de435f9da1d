"""Which parameters decide: Optuna's importances, on a study rebuilt from the rows."""

from __future__ import annotations

import warnings

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from autotune.report.study import Study

#: PED-ANOVA compares the fastest tenth with all; with fewer timed trials that tenth is a single one.
FEWEST = 20


def importances(study: Study) -> dict[str, float]:
    """Parameter -> share of what sets the fastest tenth apart, summing to 1, the largest first.

    Empty if fewer than FEWEST trials have a time, or nothing was varied.
    """
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(values) for name, values in study.values().items()
    }
    if len(study.of_the_space) < FEWEST or not distributions:
        return {}
    rebuilt = _study()
    for one in study.of_the_space:
        params = {name: one.trial.config[name] for name in distributions}
        rebuilt.add_trial(create_trial(value=one.timing.score, params=params, distributions=distributions))
    with warnings.catch_warnings():
        # Up to Optuna 4 the evaluator says that it is experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = PedAnovaImportanceEvaluator()
    found = get_param_importances(rebuilt, evaluator=evaluator)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _study() -> optuna.Study:
    """An empty study, without the line that Optuna prints of each new one."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study()
    finally:
        optuna.logging.set_verbosity(level)
