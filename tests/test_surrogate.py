import numpy as np
import pytest

from autotune.search import surrogate
from autotune.search.axes import axis
from autotune.search.surrogate import JITTER, JOINT, Surrogate

AXES = [
    axis("BLOCK_M", (16, 32, 64, 128, 256)),
    axis("BLOCK_N", (16, 48, 64, 100, 128, 256)),  # one axis, two distances
    axis("STAGES", (1, 2, 3, 4, 5)),
    axis("WARPS", (1, 2, 4, 8)),
    axis("ORDER", ("row", "column", "tile")),
    axis("SPLIT", (False, True)),
]
SIZES = [len(one.values) for one in AXES]
SCALE = 0.3


@pytest.fixture
def problem():
    """300 candidates of which some are measured, and two sources' expectations."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, SIZES, size=(300, len(SIZES)))
    rows = rng.permutation(300)[:25].tolist()
    y = np.sin(codes[rows, 0]) + 0.3 * codes[rows, 3] + 0.1 * rng.standard_normal(25)
    return codes, rows, y - y.mean(), 0.2 * rng.standard_normal((300, 2))


def fitted(problem, sources=True):
    codes, rows, y, prior = problem
    prior = prior if sources else prior[:, :0]
    model = Surrogate(AXES)
    model.fit(codes[rows], y, prior[rows], SCALE, 5)
    return model, prior


def covariance(model, codes, prior):
    """(N, N), written out: a product over distance tables of (1 + c k) / (1 + c), and H @ H.T."""
    tables = [(place, table) for place, one in enumerate(AXES) for table in one.distances]
    lengths, weights = np.exp(model._theta[: len(tables)]), np.exp(model._theta[len(tables) : -1])
    result = np.ones((len(codes), len(codes)))
    for (place, table), length, weight in zip(tables, lengths, weights, strict=True):
        r = np.sqrt(5) * table[codes[:, place][:, None], codes[:, place][None, :]] / length
        result *= (1 + weight * (1 + r + r**2 / 3) * np.exp(-r)) / (1 + weight)
    return result + prior @ prior.T


@pytest.mark.parametrize("sources", [False, True])
def test_the_gradient_is_that_of_finite_differences(problem, sources):
    codes, rows, y, prior = problem
    prior = prior[rows] if sources else prior[rows, :0]
    model = Surrogate(AXES)
    theta = model._theta + 0.3 * np.random.default_rng(1).standard_normal(len(model._theta))
    _, slope = model._loss(theta, codes[rows], y, prior, SCALE)
    for place in range(len(theta)):
        off = 1e-5 * np.eye(len(theta))[place]
        above, below = (model._loss(theta + sign * off, codes[rows], y, prior, SCALE)[0] for sign in (1, -1))
        assert slope[place] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-5)


def test_fitting_lowers_the_loss_and_more_steps_lower_it_further(problem):
    codes, rows, y, prior = problem
    losses = []
    for steps in (0, 3, 20):
        model = Surrogate(AXES)
        model.fit(codes[rows], y, prior[rows], SCALE, steps)
        losses.append(model._loss(model._theta, codes[rows], y, prior[rows], SCALE)[0])
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("sources", [False, True])
def test_mean_and_deviation_are_those_of_a_dense_gaussian_process(problem, sources):
    assert np.prod(SIZES) > JOINT  # more than one joint table
    codes, rows, y, _ = problem
    model, prior = fitted(problem, sources)
    posterior = model.posterior(codes, prior)
    posterior.take(rows)
    k = covariance(model, codes, prior)
    inside = k[np.ix_(rows, rows)] + (np.exp(model._theta[-1]) + JITTER) * np.eye(len(rows))
    solved = np.linalg.solve(inside, k[rows])
    mean, left = y @ solved, np.diag(k) - (k[rows] * solved).sum(0)
    variance = (y @ np.linalg.solve(inside, y) + surrogate._PRIOR_COUNT * SCALE) / (len(y) + surrogate._PRIOR_COUNT)
    assert posterior.mean(y) == pytest.approx(mean, abs=2e-4 * np.ptp(y))
    assert posterior.deviation(y, SCALE) ** 2 == pytest.approx(variance * left, abs=2e-4 * variance)


def test_before_anything_is_measured_all_is_open(problem):
    codes, _, _, prior = problem
    posterior = Surrogate(AXES).posterior(codes, prior)
    assert len(posterior) == 300 and not posterior.mean(np.zeros(0)).any()
    assert posterior.deviation(np.zeros(0), SCALE) ** 2 == pytest.approx(SCALE * (1 + (prior**2).sum(1)), rel=1e-5)


def test_rows_taken_one_by_one_equal_all_at_once(problem):
    codes, rows, y, _ = problem
    model, prior = fitted(problem)
    at_once, one_by_one = model.posterior(codes, prior), model.posterior(codes, prior)
    at_once.take(rows)
    for row in rows:
        one_by_one.take([row])
    assert at_once.rows == one_by_one.rows == rows
    assert one_by_one.mean(y) == pytest.approx(at_once.mean(y), abs=2e-4)
    assert one_by_one.deviation(y, SCALE) == pytest.approx(at_once.deviation(y, SCALE), abs=2e-3)


def test_pending_rows_shrink_deviations_and_leave_means(problem):
    codes, rows, y, _ = problem
    model, prior = fitted(problem)
    posterior = model.posterior(codes, prior)
    posterior.take(rows)
    mean, deviation = posterior.mean(y), posterior.deviation(y, SCALE)
    pending = int(np.argmax(deviation))
    posterior.take([pending])
    assert (posterior.mean(y) == mean).all()
    after = posterior.deviation(y, SCALE)
    assert (after <= deviation * (1 + 1e-6)).all() and after[pending] < 0.3 * deviation[pending]


def test_a_row_measured_twice_is_no_contradiction(problem):
    codes, rows, y, _ = problem
    model, prior = fitted(problem)
    posterior = model.posterior(codes, prior)
    posterior.take([*rows, rows[0]])
    again = posterior.mean(np.append(y, y[0]))
    assert np.isfinite(again).all() and np.isfinite(posterior.deviation(np.append(y, y[0]), SCALE)).all()
    assert again[rows[0]] == pytest.approx(y[0], abs=0.1)


def test_a_parameter_of_no_importance_gets_less_weight_than_one_that_decides():
    rng = np.random.default_rng(0)
    axes = [axis("BLOCK", (16, 32, 64, 128)), axis("ORDER", tuple("abcd"))]
    codes = rng.integers(0, 4, size=(40, 2))
    model = Surrogate(axes)
    model.fit(codes, np.array([0.0, 1.0, -1.0, 0.5])[codes[:, 0]], np.zeros((40, 0)), 1.0, 40)
    block, order = np.exp(model._theta[2:4])
    assert block > 3 * order
