import itertools
import random
import statistics

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from autotune.data import Config
from autotune.search import Experience, SurrogateSampler
from autotune.search.axes import axis, axis_of
from autotune.search.candidates import Candidates
from autotune.search.experience import FEWEST
from tests.test_sampler import TILES, tiled

CONFIGS = [
    Config(M=m, N=n, WARPS=w, STAGES=s)
    for m, n, w, s in itertools.product(
        *((16, 32, 64, 128, 256), (16, 32, 64, 128, 256), (1, 2, 4, 8), range(1, 6))
    )
]
SEEDS = range(5)


@pytest.fixture
def candidates():
    return Candidates([axis_of(name, distribution) for name, distribution in TILES.items()])


def known(configs, evaluate=tiled):
    return Experience({config: evaluate(config) for config in configs})


def logged(seed, count=60):
    """Some trials of the same problem on a device three times as slow, none of them near the best."""
    slower = [config for config in random.Random(seed).sample(CONFIGS, count) if tiled(config) > 1.5]
    return known(slower, lambda config: 3 * tiled(config))


def shuffled(seed):
    values = [tiled(config) for config in CONFIGS]
    random.Random(seed).shuffle(values)
    return Experience(dict(zip(CONFIGS, values, strict=True)))


def needed(seed, *sources):
    """Evaluations up to the best config of TILES, 1 ms."""
    study = optuna.create_study(sampler=SurrogateSampler(TILES, experience=sources, seed=seed))
    values = []
    while 1 not in values:
        trial = study.ask(TILES)
        values.append(tiled(trial.params))
        study.tell(trial, values[-1])
    return len(values)


def test_a_source_equal_to_the_truth_leads_to_the_optimum_at_once():
    source = known(CONFIGS, lambda config: 3 * tiled(config))
    assert [needed(seed, source) for seed in SEEDS] == [1] * 5


def test_a_log_without_the_optimum_leads_close_to_it():
    """4.1 evaluations, mean of 8 seeds; 27.1 without a source."""
    assert statistics.mean(needed(seed, logged(seed)) for seed in SEEDS) < 10


def test_a_source_that_misleads_costs_little():
    """22.5 evaluations, mean of 8 seeds; 27.1 without a source."""
    assert statistics.mean(needed(seed, shuffled(seed)) for seed in SEEDS) < 50


def test_one_good_source_among_misleading_ones_is_found_out():
    """11.5 evaluations, mean of 8 seeds; 27.1 without a source."""
    assert statistics.mean(needed(seed, shuffled(seed), logged(seed), shuffled(-1)) for seed in SEEDS) < 25


def test_what_was_measured_is_expected_as_a_share_of_the_best_speed_there(candidates):
    source = known(CONFIGS[::3])
    expected = source.expected(candidates)
    best = min(source.trials.values())
    assert expected.shape == (500,)
    for config, value in source.trials.items():
        assert expected[candidates.row(config)] == pytest.approx(best / value)


def test_a_failure_there_is_expected_to_be_one_here(candidates):
    source = Experience({config: None if config["M"] == 256 else tiled(config) for config in CONFIGS})
    expected = source.expected(candidates)
    assert [expected[candidates.row(config)] for config in CONFIGS if config["M"] == 256] == [0] * 100


def predicted_well(source, candidates):
    """Rank correlation with the truth of what was not measured there."""
    expected = source.expected(candidates)
    assert np.isfinite(expected).all() and expected.min() >= 0 and expected.max() <= 1.05
    truth = np.array([1 / tiled(candidates.config(row)) for row in range(len(candidates))])
    ranks = [values.argsort().argsort() for values in (expected, truth)]
    return np.corrcoef(*ranks)[0, 1]


def test_a_few_hundred_trials_predict_the_rest(candidates):
    assert predicted_well(known(random.Random(0).sample(CONFIGS, 100)), candidates) > 0.9


def test_a_large_source_is_learnt_from_in_part(candidates):
    values = (*TILES["M"].choices, 48, 96, 192)
    many = [Config({**config, "M": m, "N": n}) for config in CONFIGS[::25] for m in values for n in values]
    assert len(many) == 1280
    assert predicted_well(known(many), candidates) > 0.7


def test_a_source_that_lacks_a_parameter_says_what_it_knows(candidates):
    without = {Config({name: config[name] for name in ("M", "N", "WARPS")}): tiled(config) for config in CONFIGS}
    assert predicted_well(Experience(without), candidates) > 0.5


def test_a_parameter_that_only_the_source_has_is_passed_over(candidates):
    more = known([Config(**config, GROUP=8) for config in CONFIGS[::3]])
    assert (more.expected(candidates) == known(CONFIGS[::3]).expected(candidates)).all()


def test_other_values_of_a_parameter_are_neighbours_of_ours(candidates):
    others = [
        Config({**config, "M": 3 * config["M"] // 2, "WARPS": 4}) for config in CONFIGS if config["WARPS"] == 1
    ]
    assert predicted_well(known(others), candidates) > 0.5


def test_words_of_the_source_that_are_unknown_here_do_no_harm():
    candidates = Candidates([axis("ORDER", ("row", "column")), axis("M", (16, 32, 64))])
    trials = {Config(ORDER=order, M=m): m for order in ("row", "tile") for m in (16, 32, 64)}
    expected = Experience(trials).expected(candidates)
    assert [expected[candidates.row({"ORDER": "row", "M": m})] for m in (16, 32, 64)] == [1, 0.5, 0.25]
    assert (
        expected[candidates.row({"ORDER": "column", "M": 16})]
        > expected[candidates.row({"ORDER": "column", "M": 64})]
    )


def test_a_flag_there_is_no_number_here():
    candidates = Candidates([axis("SPLIT", (1, 2)), axis("M", (16, 32, 64))])
    trials = {Config(SPLIT=split, M=m): m * (2 - split) for split in (False, True) for m in (16, 32, 64)}
    expected = Experience(trials).expected(candidates)
    assert expected[candidates.row({"SPLIT": 1, "M": 16})] != 1


@pytest.mark.parametrize(
    "trials",
    [
        {},
        dict.fromkeys(CONFIGS[:50]),
        {**dict.fromkeys(CONFIGS[:50]), **{config: tiled(config) for config in CONFIGS[: FEWEST - 1]}},
        {Config(OTHER=number): 1.0 + number for number in range(50)},
    ],
    ids=["none", "failures alone", "too few times", "no parameter in common"],
)
def test_a_source_that_says_too_little_is_none(trials, candidates):
    source = Experience(trials)
    assert source.expected(candidates) is None
    assert needed(0, source) == needed(0)


def test_just_enough_trials_say_something(candidates):
    assert known(CONFIGS[:FEWEST]).expected(candidates) is not None


def test_expectations_are_those_of_the_seed(candidates):
    values = range(1, 9)
    many = known(
        [
            Config(M=m, N=n, WARPS=w, STAGES=s)
            for m, n, w, s in itertools.product((16, 64), (16, 64, 256), values, values)
        ]
    )
    first, same, other = (many.expected(candidates, seed) for seed in (1, 1, 2))
    assert (first == same).all()
    assert len(many.trials) <= 400 or (first != other).any()


def test_a_space_with_ranges_learns_from_configs_too():
    space = {"M": IntDistribution(16, 256, log=True), "ORDER": CategoricalDistribution(("row", "column"))}
    source = Experience(
        {Config(M=m, ORDER=order): abs(m - 64) + 1.0 for m in (16, 32, 64, 128) for order in ("row", "column")}
    )
    study = optuna.create_study(sampler=SurrogateSampler(space, experience=[source], seed=0))
    assert 45 < study.ask(space).params["M"] < 91
