import itertools

import pytest

from autotune.search.axes import axis
from autotune.search.candidates import KEPT, Candidates

POWERS = (16, 32, 64, 128)


def small(config):
    return config["A"] * config["B"] <= 2048 and (config["SPLIT"] or config["A"] > 16)


AXES = [axis("A", POWERS), axis("B", POWERS), axis("SPLIT", (False, True))]
#: 16.8 million configs.
LARGE = [axis(name, tuple(range(16))) for name in "ABCDEF"]


def even(config):
    return sum(config.values()) % 2 == 0


def configs_of(candidates):
    return [candidates.config(row) for row in range(len(candidates))]


def test_a_listing_is_what_brute_force_finds():
    candidates = Candidates(AXES, small)
    product = (dict(zip("AB", values, strict=True)) for values in itertools.product(POWERS, POWERS))
    expected = [{**config, "SPLIT": split} for config in product for split in (False, True)]
    assert candidates.complete
    assert configs_of(candidates) == [config for config in expected if small(config)]
    assert all(candidates.row(config) == row for row, config in enumerate(configs_of(candidates)))


def test_without_a_rule_the_whole_product_is_listed():
    assert len(Candidates(AXES)) == 32


def test_a_config_that_may_not_be_proposed_has_no_row():
    candidates = Candidates(AXES, small)
    assert candidates.row({"A": 128, "B": 128, "SPLIT": True}) is None
    assert candidates.row({"A": 16, "B": 16, "SPLIT": False}) is None
    assert candidates.row({"A": 48, "B": 16, "SPLIT": True}) is None
    assert candidates.row({"A": 32, "B": 16}) is None
    assert candidates.row({}) is None


def test_true_is_not_1():
    candidates = Candidates([axis("A", (1, 2)), axis("SPLIT", (False, True))])
    assert candidates.row({"A": 1, "SPLIT": True}) is not None
    assert candidates.row({"A": True, "SPLIT": True}) is None
    assert candidates.row({"A": 1, "SPLIT": 1}) is None


def test_no_allowed_config_is_an_empty_listing():
    for axes in (AXES, LARGE):
        candidates = Candidates(axes, lambda config: False)
        assert len(candidates) == 0 and candidates.codes.shape == (0, len(axes))


def test_of_too_many_allowed_ones_a_sample_is_kept():
    few = Candidates([axis(name, tuple(range(32))) for name in "ABC"], even, seed=1)
    assert few.complete and len(few) == 32**3 // 2
    candidates = Candidates([axis(name, tuple(range(40))) for name in "ABC"], even, seed=1)
    assert not candidates.complete and len(candidates) == KEPT < 40**3 // 2
    assert all(map(even, configs_of(candidates)))
    assert len(set(map(tuple, candidates.codes.tolist()))) == KEPT


def test_of_a_large_product_a_sample_of_allowed_configs_is_drawn():
    candidates = Candidates(LARGE, even, seed=1)
    assert not candidates.complete and len(candidates) == KEPT // 4
    assert all(map(even, configs_of(candidates)))
    assert len(set(map(tuple, candidates.codes.tolist()))) == len(candidates)


def test_rare_allowed_configs_are_drawn_until_the_draws_are_spent():
    found = Candidates(LARGE, lambda config: config["A"] + config["B"] + config["C"] == 0, seed=1)
    # One in 4096 of 100,000 draws: 24 expected.
    assert 5 < len(found) < 60


def test_a_sample_is_that_of_its_seed():
    first, same, other = (Candidates(LARGE, even, seed).codes.tolist() for seed in (1, 1, 2))
    assert first == same != other


@pytest.fixture
def unseen():
    """A large space, and an allowed config of it that is out of sight."""
    candidates = Candidates(LARGE, even, seed=1)
    seen = set(map(tuple, candidates.codes.tolist()))
    code = next(code for code in itertools.product(range(16), repeat=6) if sum(code) % 2 == 0 and code not in seen)
    return candidates, dict(zip("ABCDEF", code, strict=True))


def test_an_allowed_config_out_of_sight_is_added_at_the_end(unseen):
    candidates, config = unseen
    before = candidates.codes.tolist()
    assert candidates.row(config) == len(before) == len(candidates) - 1
    assert candidates.config(len(before)) == config
    assert candidates.codes[:-1].tolist() == before
    assert candidates.row(config) == len(before) == len(candidates) - 1


def test_one_out_of_sight_that_is_not_allowed_is_not_added(unseen):
    candidates, config = unseen
    count = len(candidates)
    assert candidates.row({**config, "F": (config["F"] + 1) % 16}) is None
    assert candidates.row({**config, "F": 16}) is None
    assert len(candidates) == count


def test_looking_around_brings_all_allowed_neighbours_into_sight(unseen):
    candidates, config = unseen
    row = candidates.row(config)
    before = candidates.codes.tolist()
    candidates.look_around(row)
    assert candidates.codes[: len(before)].tolist() == before
    assert len(candidates) > len(before)
    assert all(map(even, configs_of(candidates)))
    seen = set(map(tuple, candidates.codes.tolist()))
    code = tuple(config.values())
    neighbours = {(*code[:place], value, *code[place + 1 :]) for place in range(6) for value in range(16)}
    assert {neighbour for neighbour in neighbours if sum(neighbour) % 2 == 0} <= seen
    count = len(candidates)
    candidates.look_around(row)
    assert len(candidates) == count


def test_where_all_are_listed_looking_around_finds_nothing():
    candidates = Candidates(AXES, small)
    count = len(candidates)
    candidates.look_around(0)
    assert len(candidates) == count


def settle(config):
    """B means nothing where A is small; in the large space the other letters too."""
    return {name: value if name == "A" or config["A"] > 2 else 0 for name, value in config.items()}


def test_what_comes_to_the_same_thing_is_one_candidate():
    axes = [axis("A", (0, 3)), axis("B", (0, 1, 2))]
    candidates = Candidates(axes, settle=settle)
    assert [tuple(config.values()) for config in configs_of(candidates)] == [(0, 0), (3, 0), (3, 1), (3, 2)]
    assert candidates.row({"A": 0, "B": 2}) == candidates.row({"A": 0, "B": 0}) == 0


def test_a_drawn_sample_is_settled_too():
    candidates = Candidates(LARGE, even, seed=1, settle=settle)
    candidates.look_around(0)
    assert all(config == settle(config) and even(config) for config in configs_of(candidates))
    assert len(set(map(tuple, candidates.codes.tolist()))) == len(candidates)
    # 3 of 16 values of A leave one config each, of which two are even.
    assert sum(config["A"] <= 2 for config in configs_of(candidates)) == 2
