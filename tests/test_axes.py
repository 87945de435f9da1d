import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from autotune.search.axes import GRID, axis, axis_of


def apart(values, which=0):
    """Distances of all values from the first."""
    return axis("x", values).distances[which][0].tolist()


def test_values_that_span_a_factor_of_four_are_compared_by_their_ratio():
    assert apart((16, 32, 64, 128)) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert apart((1, 2, 4)) == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("values", [(1, 2, 3), (0, 4, 8), (-1, 0, 1), (0.5, 1.0, 1.5), (2, 1, 0)])
def test_all_other_numbers_are_compared_by_their_difference(values):
    assert apart(values) == pytest.approx([0, 0.5, 1])


def test_distances_are_symmetric_from_zero_to_one():
    for table in axis("x", (3, 48, 64, 80, 1000)).distances:
        assert (table == table.T).all() and not np.diag(table).any() and table.max() == 1 and table.min() == 0


def test_whole_numbers_are_also_near_in_the_power_of_two_that_divides_them():
    # 48 = 3 * 2**4, 50 = 25 * 2, 80 = 5 * 2**4
    assert len(axis("x", (48, 50, 80)).distances) == 2
    assert apart((48, 50, 80), which=1) == [0, 1, 0]


def test_multiples_of_32_and_more_are_equally_aligned():
    assert apart((33, 96, 128, 1024), which=1) == [0, 1, 1, 1]
    assert len(axis("x", (96, 160, 1024)).distances) == 1


@pytest.mark.parametrize("values", [(1, 2, 8), (0, 3, 6), (0.5, 3.0, 6.0)])
def test_powers_of_two_and_numbers_without_a_divisor_have_one_distance(values):
    assert len(axis("x", values).distances) == 1


def test_words_are_all_equally_far_apart():
    assert axis("x", ("row", "column", None)).distances[0].tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_a_flag_has_two_ends_and_a_lone_value_no_distance():
    assert apart((False, True)) == [0, 1]
    assert apart((8,)) == [0] and apart(("x",)) == [0]


def test_true_is_not_1_and_an_unknown_value_has_no_place():
    flags, numbers = axis("x", (False, True)), axis("x", (1, 2))
    assert flags.place(True) == 1 and flags.place(1) is None
    assert numbers.place(1) == 0 and numbers.place(True) is None and numbers.place(1.0) is None
    assert numbers.place(3) is None and numbers.place(None) is None


def test_a_categorical_distribution_keeps_its_choices():
    assert axis_of("x", CategoricalDistribution((64, 16, 32))).values == (64, 16, 32)


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (IntDistribution(3, 19, step=4), (3, 7, 11, 15, 19)),
        (IntDistribution(1, 4, log=True), (1, 2, 3, 4)),
        (IntDistribution(7, 7), (7,)),
        (FloatDistribution(0.0, 0.3, step=0.1), (0.0, 0.1, 0.2, 0.3)),
        (FloatDistribution(2.0, 2.0), (2.0,)),
    ],
)
def test_few_values_are_all_there(distribution, values):
    assert axis_of("x", distribution).values == pytest.approx(values)


@pytest.mark.parametrize(
    "distribution",
    [
        IntDistribution(1, 5000),
        IntDistribution(0, 5000, step=50),
        IntDistribution(1, 5000, log=True),
        FloatDistribution(-1.0, 1.0),
        FloatDistribution(1e-5, 0.3, log=True),
        FloatDistribution(0.0, 0.3, step=0.1),
        FloatDistribution(0.1, 77.7, step=0.1),
    ],
)
def test_a_grid_stays_in_its_distribution_and_has_both_ends(distribution):
    values = axis_of("x", distribution).values
    assert values[0] == distribution.low and values[-1] == distribution.high
    assert list(values) == sorted(set(values)) and 4 <= len(values) <= GRID
    assert {type(value) for value in values} == {type(distribution.low)}
    if distribution.step:
        steps = [(value - distribution.low) / distribution.step for value in values]
        assert steps == pytest.approx([round(step) for step in steps])


def test_a_continuous_grid_is_even_by_ratio_where_the_distribution_is():
    even = np.array(axis_of("x", FloatDistribution(0.0, 1.0)).values)
    by_ratio = np.array(axis_of("x", FloatDistribution(1e-3, 1.0, log=True)).values)
    assert len(even) == len(by_ratio) == GRID
    assert np.diff(even) == pytest.approx(1 / (GRID - 1)) and np.diff(np.log(by_ratio)).std() < 1e-12


def test_a_value_between_those_of_a_grid_has_the_place_of_the_nearest():
    share = axis_of("x", FloatDistribution(0.0, 1.0))
    assert share.place(0.5001 / (GRID - 1)) == 1 and share.place(0.4999 / (GRID - 1)) == 0
    assert share.place("half") is None and share.place(True) is None
    assert axis_of("x", IntDistribution(0, 6300)).place(149) == 1
    # What Optuna's own samplers call 0.3 is 0.30000000000000004 or 0.3.
    assert axis_of("x", FloatDistribution(0.0, 0.5, step=0.1)).place(0.1 * 3) == 3
    assert axis_of("x", IntDistribution(0, 9, step=3)).place(4) is None


def test_an_unknown_distribution_is_refused_by_name():
    class Odd(BaseDistribution):
        def to_external_repr(self, value):
            return value

        def to_internal_repr(self, value):
            return value

        def single(self):
            return False

        def _contains(self, value):
            return True

    with pytest.raises(ValueError, match="parameter x has a Odd; use an int, float or categorical one"):
        axis_of("x", Odd())
