import itertools
import math
import os
import pickle
import statistics
import subprocess
import sys
import threading
import time
from functools import partial

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from autotune.search import SurrogateSampler
from autotune.search.axes import axis_of
from autotune.search.candidates import Candidates

SPACE = {
    "BLOCK": CategoricalDistribution((16, 32, 64, 128)),
    "STAGES": IntDistribution(1, 5),
    "SPLIT": CategoricalDistribution((False, True)),
}
#: 33 of 40.
ALLOWED = [
    dict(zip(SPACE, values, strict=True))
    for values in itertools.product((16, 32, 64, 128), range(1, 6), (False, True))
    if values[0] * values[1] <= 320 and values != (16, 1, True)
]


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


def allowed(config):
    return config["BLOCK"] * config["STAGES"] <= 320 and tuple(config.values()) != (16, 1, True)


def planted(config):
    """Milliseconds, least at BLOCK=64, STAGES=3, SPLIT=True."""
    return 1 + abs(math.log2(config["BLOCK"] / 64)) + 0.3 * abs(config["STAGES"] - 3) + 0.5 * (not config["SPLIT"])


def study_of(**options):
    sampler = SurrogateSampler(SPACE, **{"allowed": allowed, "seed": 1, **options})
    return optuna.create_study(sampler=sampler)


def asked(study, count, evaluate=planted, space=SPACE):
    """Configs asked one after the other; a failure is told as what ``evaluate`` gives for it."""
    configs = []
    for _ in range(count):
        trial = study.ask(space)
        outcome = evaluate(trial.params)
        state = outcome if isinstance(outcome, TrialState) else None
        study.tell(trial, None if state else outcome, state=state)
        configs.append(trial.params)
    return configs


def distinct(configs):
    return len({tuple(sorted(config.items())) for config in configs}) == len(configs)


def test_all_allowed_configs_are_proposed_and_none_twice():
    configs = asked(study_of(), len(ALLOWED))
    assert len(ALLOWED) == 33 and distinct(configs)
    assert all(config in ALLOWED for config in configs)


#: 500 configs.
TILES = {
    "M": CategoricalDistribution((16, 32, 64, 128, 256)),
    "N": CategoricalDistribution((16, 32, 64, 128, 256)),
    "WARPS": CategoricalDistribution((1, 2, 4, 8)),
    "STAGES": IntDistribution(1, 5),
}


def tiled(config):
    """Milliseconds, least at M=64, N=128, WARPS=4, STAGES=3, with an interaction of three."""
    m, n, warps = (math.log2(config[name]) for name in ("M", "N", "WARPS"))
    return (
        1
        + 0.3 * (m - 6) ** 2
        + 0.3 * (n - 7) ** 2
        + 0.2 * abs(m + n - warps - 11)
        + 0.3 * abs(config["STAGES"] - 3)
    )


def test_it_finds_a_planted_optimum_in_a_fifth_of_what_chance_needs():
    """26 of 500, mean of 10 seeds; chance needs 250.5."""
    needed = []
    for seed in range(5):
        study = optuna.create_study(sampler=SurrogateSampler(TILES, seed=seed))
        values = map(tiled, (asked(study, 1, tiled, TILES)[0] for _ in range(500)))
        needed.append(next(number for number, value in enumerate(values, start=1) if value == 1))
    assert statistics.mean(needed) < 50


def test_a_define_by_run_objective_needs_no_space():
    def objective(trial):
        block = trial.suggest_int("block", 16, 256, log=True)
        order = trial.suggest_categorical("order", ["row", "column", "tile"])
        share = trial.suggest_float("share", 0.0, 1.0)
        return abs(math.log2(block / 64)) + (order != "tile") + 4 * (share - 0.3) ** 2

    study = optuna.create_study(sampler=SurrogateSampler(seed=1))
    study.optimize(objective, n_trials=40)
    assert distinct([trial.params for trial in study.trials])
    # Medians of 10 seeds: 0.02 here, at most 0.09; Optuna's TPE 0.05, random search 0.43.
    assert study.best_value < 0.2


def test_maximize_finds_the_largest():
    study = optuna.create_study(direction="maximize", sampler=SurrogateSampler(SPACE, allowed=allowed, seed=1))
    configs = asked(study, 20, lambda config: -planted(config))
    assert {"BLOCK": 64, "STAGES": 3, "SPLIT": True} in configs
    assert study.best_value == -1


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
def test_failures_are_not_repeated_and_their_neighbourhood_is_left(state):
    """Of 30 proposals 9.5 fail, mean of 10 seeds; by chance 18 would."""

    def evaluate(config):
        return state if config["M"] > 32 else tiled(config)

    failed = []
    for seed in range(3):
        study = optuna.create_study(sampler=SurrogateSampler(TILES, seed=seed))
        configs = asked(study, 30, evaluate, TILES)
        assert distinct(configs)
        failed.append(sum(config["M"] > 32 for config in configs))
    assert statistics.mean(failed) < 14


def test_it_goes_on_where_everything_fails_or_is_infinite():
    assert distinct(asked(study_of(), 33, lambda config: TrialState.PRUNED))
    assert distinct(asked(study_of(), 33, lambda config: math.inf))
    assert distinct(asked(study_of(), 33, lambda config: 1.0))


def test_running_trials_are_not_proposed_again():
    study = study_of()
    asked(study, 8)
    running = [study.ask(SPACE) for _ in range(25)]
    assert distinct([trial.params for trial in study.trials])
    for trial in running:
        study.tell(trial, planted(trial.params))
    assert len(study.trials) == len(ALLOWED)


def test_a_trial_that_died_before_it_took_its_parameters_is_not_repeated():
    study, proposed = study_of(), []

    def objective(trial):
        proposed.append(trial.relative_params)
        raise RuntimeError

    study.optimize(objective, n_trials=10, catch=RuntimeError)
    assert distinct(proposed) and not any(trial.params for trial in study.trials)


def test_the_same_seed_gives_the_same_proposals():
    assert asked(study_of(), 20) == asked(study_of(), 20) != asked(study_of(seed=2), 20)


def test_a_restart_goes_on_from_what_is_known_and_always_alike():
    first = study_of()
    known = asked(first, 12)
    restarts = []
    for _ in range(2):
        study = study_of()
        for trial in first.trials:
            study.add_trial(trial)
        restarts.append(asked(study, 8))
    assert restarts[0] == restarts[1] and distinct(known + restarts[0])


def test_trials_of_another_sampler_count_as_known():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    known = asked(study, 15)
    study.sampler = SurrogateSampler(SPACE, allowed=allowed, seed=1)
    assert all(config not in known for config in asked(study, 10))


def test_values_between_those_of_a_grid_are_learnt_from():
    space = {"share": FloatDistribution(0.0, 1.0)}
    study = optuna.create_study(sampler=SurrogateSampler(space, seed=1))
    for share in (0.101, 0.3003, 0.507, 0.7001, 0.9):
        value = (share - 0.62) ** 2
        study.add_trial(create_trial(params={"share": share}, distributions=space, value=1 + value))
    trial = study.ask(space)
    assert 0.507 < trial.params["share"] < 0.7001


def test_first_ones_come_first_without_those_that_may_not():
    first = [
        {"BLOCK": 128, "STAGES": 2, "SPLIT": False},
        {"BLOCK": 128, "STAGES": 5, "SPLIT": False},  # breaks the rule
        {"BLOCK": 48, "STAGES": 1, "SPLIT": False},  # no value of BLOCK
        {"BLOCK": 64},
        {"BLOCK": 128, "STAGES": 2, "SPLIT": False},  # once is enough
        {"BLOCK": 16, "STAGES": 5, "SPLIT": True},
    ]
    configs = asked(study_of(first=first), 5)
    assert configs[:2] == [first[0], first[-1]] and distinct(configs)


def test_several_objectives_are_refused():
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=SurrogateSampler(SPACE, seed=1))
    with pytest.raises(ValueError, match="takes one objective, the study has 2"):
        study.ask(SPACE)


def test_a_space_without_an_allowed_config_is_refused():
    with pytest.raises(ValueError, match="no allowed config of BLOCK, STAGES, SPLIT was found; loosen `allowed`"):
        study_of(allowed=lambda config: False).ask(SPACE)


def objective(trial):
    return planted({name: trial._suggest(name, distribution) for name, distribution in SPACE.items()})


def test_optimize_ends_with_the_space():
    study = study_of()
    study.optimize(objective, n_trials=1000)
    configs = [trial.params for trial in study.trials]
    # Optuna runs the trial in which it is told to stop.
    assert len(configs) == len(ALLOWED) + 1 and distinct(configs[:-1]) and configs[-1] == configs[0]


def test_promise_is_unknown_at_first_and_small_in_the_end():
    study = study_of()
    assert study.sampler.promise is None
    asked(study, 3)
    assert study.sampler.promise is None
    asked(study, 5)
    early = study.sampler.promise
    asked(study, 22)
    assert 0 <= study.sampler.promise < 0.2 * early


def test_threads_propose_distinct_configs_that_are_allowed():
    study = study_of()
    both = threading.Barrier(2, timeout=20)

    def slow(trial):
        both.wait()  # two run at any time
        return objective(trial)

    study.optimize(slow, n_trials=30, n_jobs=2)
    configs = [trial.params for trial in study.trials]
    assert len(configs) == 30 and distinct(configs) and all(config in ALLOWED for config in configs)


def test_n_jobs_keeps_what_was_worked_out():
    listed = []
    study = study_of(allowed=lambda config: listed.append(config) or allowed(config))
    study.optimize(objective, n_trials=10, n_jobs=2)
    assert len(listed) == 40


def test_two_studies_on_one_storage_share_what_they_know(tmp_path):
    storage = partial(JournalStorage, JournalFileBackend(str(tmp_path / "journal.log")))
    names = {"study_name": "shared", "load_if_exists": True}
    studies = [
        optuna.create_study(storage=storage(), sampler=SurrogateSampler(SPACE, allowed=allowed, seed=seed), **names)
        for seed in (1, 2)
    ]
    configs = []
    for _ in range(5):
        trials = [study.ask(SPACE) for study in studies]
        for study, trial in zip(studies, trials, strict=True):
            study.tell(trial, planted(trial.params))
            configs.append(trial.params)
    assert distinct(configs)
    resumed = optuna.load_study(
        storage=storage(), study_name="shared", sampler=SurrogateSampler(SPACE, allowed=allowed, seed=1)
    )
    assert all(config not in configs for config in asked(resumed, 5))


def test_a_pickled_sampler_goes_on():
    study = optuna.create_study(sampler=SurrogateSampler(SPACE, seed=1))
    known = asked(study, 8)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    assert all(config not in known for config in asked(study, 8))


def ask_s():
    """Seconds of each of 11 proposals, after 200 trials of 19,240 configs."""
    sizes = {"A": 8, "B": 8, "C": 8, "D": 5, "E": 4, "F": 4}
    space = {name: CategoricalDistribution([2**power for power in range(size)]) for name, size in sizes.items()}

    def few(config):
        return (config["A"] > config["B"] or config["C"] < config["D"]) and config["E"] * config["F"] < 32

    def far(config):
        return 1 + sum(abs(math.log2(number) - 2) for number in config.values())

    candidates = Candidates([axis_of(name, distribution) for name, distribution in space.items()], few)
    study = optuna.create_study(sampler=SurrogateSampler(space, candidates=candidates, seed=1))
    for row in range(0, 200 * 90, 90):
        config = candidates.config(row)
        study.add_trial(create_trial(params=config, distributions=space, value=far(config)))
    taken = []
    for _ in range(11):
        start = time.process_time()  # what else runs on this machine does not count
        trial = study.ask(space)
        taken.append(time.process_time() - start)
        study.tell(trial, far(trial.params))
    return taken


def test_a_proposal_at_200_trials_of_20_000_configs_takes_50_ms_at_most(root):
    """On one core of a busy server 31 ms: the first, which takes in 200 trials, took 261, the ten others 6 to 22.

    The bound is twice what is promised: other cores are slower.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = "from tests.test_sampler import ask_s; print(*ask_s())"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    taken = [float(word) for word in run.stdout.split()]
    assert len(taken) == 11 and statistics.mean(taken) < 0.1


def test_a_second_study_starts_afresh():
    sampler = SurrogateSampler(SPACE, seed=0)
    found = []
    for _ in range(2):
        study = optuna.create_study(sampler=sampler)
        configs = []
        for _ in range(12):
            trial = study.ask(SPACE)
            configs.append(tuple(sorted(trial.params.items())))
            study.tell(trial, planted(trial.params))
        found.append(configs)
    assert found[0] == found[1] and len(set(found[1])) == 12
