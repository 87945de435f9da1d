import math

import pytest

from autotune import device
from autotune.data import Config, Failure, Problem, Reason, Timing
from autotune.search import Experience, search
from autotune.space import SearchSpace

PROBLEM, DEVICE = Problem(M=64), device.INTERPRETER
POWERS = (1, 2, 4, 8, 16, 32, 64, 128)


def odd_sum(config, problem, device):
    """Half of the product is not allowed."""
    total = sum(int(math.log2(config.integer(name))) for name in "ABC")
    return None if total % 2 == 0 else "odd"


SPACE = SearchSpace(
    params=lambda problem, device: dict.fromkeys("ABC", POWERS),
    default=lambda problem, device: Config(A=1, B=1, C=1),
    constraints=(odd_sum,),
    seeds=lambda problem, device: [Config(A=4, B=4, C=1), Config(A=2, B=1, C=1), Config(A=1, B=1, C=4)],
)


def planted(config):
    """Milliseconds, least at A=16, B=8, C=2."""
    apart = [abs(math.log2(config.integer(name) / best)) for name, best in (("A", 16), ("B", 8), ("C", 2))]
    return 1.0 + sum(distance**2 for distance in apart)


def timed(config):
    ms = planted(config)
    return Timing(ms, ms, ms, 3, "wall-1")


def run(evaluate=timed, **options):
    return list(search(SPACE, PROBLEM, DEVICE, evaluate, **{"trials": 60, "seed": 1, **options}))


def test_default_then_allowed_seeds_then_search():
    origins = [(step.origin, step.config) for step in run(trials=5)]
    assert origins[0] == ("default", Config(A=1, B=1, C=1))
    # The seed (2, 1, 1) is not allowed.
    assert origins[1:3] == [("seed", Config(A=4, B=4, C=1)), ("seed", Config(A=1, B=1, C=4))]
    assert [origin for origin, _ in origins[3:]] == ["search", "search"]


def test_the_default_is_first_even_with_one_trial():
    assert [step.origin for step in run(trials=1)] == ["default"]


def test_no_config_twice_and_none_that_is_not_allowed():
    configs = [step.config for step in run(trials=150)]
    assert len(set(configs)) == len(configs) == 150
    assert all(odd_sum(config, PROBLEM, DEVICE) is None for config in configs)


def test_a_small_space_is_exhausted_and_then_it_ends():
    configs = {step.config for step in run(trials=10_000)}
    assert configs == set(SPACE.allowed(PROBLEM, DEVICE)) and len(configs) == 256


def test_the_same_seed_gives_the_same_steps():
    assert run(trials=30) == run(trials=30) != run(trials=30, seed=2)


def test_search_beats_chance_at_a_planted_optimum():
    """Best of 60 of 256: the optimum, 1.0, with each of 12 seeds; 400 random draws of 60 have a mean of 2.58."""
    found = [min(planted(step.config) for step in run(seed=seed)) for seed in range(6)]
    assert sum(found) / len(found) < 1.2


def test_experience_takes_the_place_of_the_spaces_seeds_and_leads_to_the_optimum_at_once():
    experience = Experience({config: 5 * planted(config) for config in SPACE.allowed(PROBLEM, DEVICE)})
    steps = run(trials=2, experience=[experience])
    # Its best, (16, 8, 2), is allowed.
    assert [step.origin for step in steps] == ["default", "search"]
    assert steps[1].config == Config(A=16, B=8, C=2)
    # What the caller asks for stays first.
    own = run(trials=2, experience=[experience], seeds=[Config(A=8, B=8, C=1)])
    assert (own[1].origin, own[1].config) == ("seed", Config(A=8, B=8, C=1))


def test_promise_is_unknown_at_first_and_vanishes_as_the_optimum_is_found():
    promises = [step.promise for step in run(trials=100)]
    assert promises[:4] == [None] * 4
    assert max(promises[5:15]) > 0.05 and 0 <= max(promises[-50:]) < 0.005


def events(ahead, **options):
    """Announcements and evaluations, as they come."""
    seen = []

    def evaluate(config):
        seen.append(("evaluated", config))
        return timed(config)

    steps = run(evaluate, ahead=ahead, announce=lambda config: seen.append(("announced", config)), **options)
    assert [config for what, config in seen if what == "evaluated"] == [step.config for step in steps]
    return seen


@pytest.mark.parametrize("ahead", [0, 3])
def test_configs_are_announced_in_order_and_so_many_ahead(ahead):
    seen = events(ahead, trials=20)
    announced, evaluated = (
        [config for what, config in seen if what == kind] for kind in ("announced", "evaluated")
    )
    assert announced == evaluated and len(set(announced)) == 20
    for place, (what, _) in enumerate(seen):
        if what == "evaluated":
            before = [kind for kind, _ in seen[:place]]
            count = before.count("evaluated")
            assert before.count("announced") == min(count + 1 + ahead, 20)


def test_ahead_the_default_and_the_seeds_still_come_first():
    ahead = run(trials=8, ahead=3)
    assert [step.origin for step in ahead] == ["default", "seed", "seed"] + ["search"] * 5
    assert [step.config for step in ahead[:3]] == [step.config for step in run(trials=3)]


def test_ahead_the_same_seed_gives_the_same_steps():
    assert run(trials=20, ahead=3) == run(trials=20, ahead=3) != run(trials=20, ahead=3, seed=2)


def test_ahead_a_small_space_is_exhausted_and_then_it_ends():
    configs = [step.config for step in run(trials=10_000, ahead=3)]
    assert len(configs) == 256 and set(configs) == set(SPACE.allowed(PROBLEM, DEVICE))


def test_known_failures_are_not_repeated():
    known = {
        config: Failure(Reason.RESOURCES, "too much", "wall-1") if config["A"] > 16 else timed(config)
        for config in list(SPACE.allowed(PROBLEM, DEVICE))[::5]
    }
    steps = run(trials=len(known) + 20, known=known)
    assert len(steps) == 20 and not {step.config for step in steps} & known.keys()


def test_the_default_is_measured_though_all_trials_are_spent():
    seed = Config(A=4, B=4, C=1)
    steps = run(trials=1, known={seed: timed(seed)})
    assert [step.origin for step in steps] == ["default"]


def test_known_outcomes_count_and_are_not_repeated():
    first = run(trials=20)
    known = {step.config: step.outcome for step in first}
    more = run(trials=30, known=known)
    assert len(more) == 10
    assert not {step.config for step in more} & known.keys()
    assert run(trials=20, known=known) == []


def test_a_known_config_that_left_the_space_does_no_harm():
    known = {Config(A=3): timed(Config(A=1, B=1, C=1)), Config(A=2, B=1, C=1): Failure(Reason.WRONG, "", "wall-1")}
    assert len(run(trials=5, known=known)) == 3


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_failures_are_outcomes_and_the_search_goes_on(share):
    calls = []

    def evaluate(config):
        calls.append(config)
        failed = len(calls) % 2 == 0 if share == 0.5 else True
        return Failure(Reason.RESOURCES, "too much", "wall-1") if failed else timed(config)

    steps = run(evaluate, trials=80)
    assert len(steps) == 80
    assert sum(isinstance(step.outcome, Failure) for step in steps) == 80 * share


def test_an_unexpected_exception_passes_through():
    def evaluate(config):
        raise RuntimeError("the cable fell out")

    with pytest.raises(RuntimeError, match="cable"):
        run(evaluate)


def test_it_stops_when_the_caller_stops():
    calls = []
    steps = search(SPACE, PROBLEM, DEVICE, lambda config: calls.append(config) or timed(config), trials=60)
    next(steps)
    next(steps)
    steps.close()
    assert len(calls) == 2
