from typing import ClassVar

import pytest
import torch

from autotune.kernel import Tolerance
from autotune.verify import Fault, Oracle, compare

TIGHT = Tolerance(ratio=2, ulps=1)


def random_result(dtype=torch.float16):
    exact = torch.randn(32, 32, dtype=torch.float64)
    return exact.to(dtype), exact


def test_torchs_own_result_passes():
    peer, exact = random_result()
    assert compare(peer, peer, exact, TIGHT) is None


def test_one_wrong_element_is_found():
    peer, exact = random_result()
    wrong = peer.clone()
    wrong[5, 7] += 0.1
    assert "largest at (5, 7)" in compare(wrong, peer, exact, TIGHT)


def test_low_precision_everywhere_is_found_by_its_mean():
    """Each error is under the bound on the largest; together they are not."""
    exact = torch.ones(64, 64, dtype=torch.float64)
    exact[0, 0] = 1000.0  # makes the bound on the largest error loose
    peer = exact.half()
    wrong = peer + 0.9
    wrong[0, 0] = 1000.0
    assert compare(wrong, peer, exact, TIGHT).startswith("rms")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_found(value):
    peer, exact = random_result()
    wrong = peer.clone()
    wrong[3, 4] = value
    assert "first at (3, 4)" in compare(wrong, peer, exact, TIGHT)


def test_the_same_overflow_as_torchs_passes():
    exact = torch.tensor([[1e6, 1.0], [-1e6, float("nan")]], dtype=torch.float64)
    assert compare(exact.half(), exact.half(), exact, TIGHT) is None
    finite = exact.half().nan_to_num(posinf=65504.0)
    assert "not finite" in compare(finite, exact.half(), exact, TIGHT)


class Doubling:
    """A kernel of one tensor that doubles it, by ``compute``."""

    tolerances: ClassVar = {"float32": TIGHT}
    peer = None

    def __init__(self, run):
        self.compute = lambda config, x: run(x)

    def reference(self, x):
        return x * 2


def fault(run, *sets):
    return Oracle(Doubling(run), *((torch.tensor(data),) for data in sets)).fault(None)


def test_each_set_is_run_once_and_the_first_again():
    seen = []

    def run(x):
        seen.append(x.tolist())
        return x * 2

    assert fault(run, [1.0, 2.0], [3.0, 4.0]) is None
    assert seen == [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]
    seen.clear()
    assert fault(run, [1.0, 2.0]) is None
    assert seen == [[1.0, 2.0]] * 2


def test_each_set_is_held_to_its_own_reference():
    assert "error" in fault(lambda x: x + 1, [1.0, 1.0], [1.0, 2.0]).text
    assert fault(lambda x: x + 1, [1.0, 1.0]) is None


def test_equal_to_the_last_bit_means_the_sign_of_zero_too():
    signs = iter([1.0, 1.0, -1.0])
    assert "a race" in fault(lambda x: x * 2 * next(signs), [0.0], [0.0]).text
    assert fault(lambda x: x * 2, [float("nan")], [1.0]) is None


def test_writing_to_memory_of_others_is_told_apart():
    def in_place(x):
        return x.mul_(2).clone()

    assert fault(in_place, [1.0]) == Fault("it changed its input tensor number 0", corrupting=True)
    assert not fault(lambda x: x, [1.0]).corrupting


def test_what_a_candidate_did_after_its_verdict_harms_no_other():
    oracle = Oracle(Doubling(lambda x: x * 2), (torch.ones(2),))
    assert oracle.fault(None) is None
    oracle.inputs()[0].zero_()
    assert oracle.fault(None) is None
    assert oracle.inputs()[0].tolist() == [1.0, 1.0]


class Halving(Doubling):
    """Two results: x / 2 in its dtype, and how often 2 goes into it, an integer."""

    def reference(self, x):
        return x / 2, (x // 2).int()


def halves(run, *data):
    return Oracle(Halving(run), (torch.tensor(data),)).fault(None)


def test_each_of_several_results_is_held_to_its_reference():
    assert halves(lambda x: (x / 2, (x // 2).int()), 3.0, 5.0) is None
    assert halves(lambda x: (x / 2 + 1, (x // 2).int()), 3.0, 5.0).text.startswith("result 0: max error 1 is over")
    assert halves(lambda x: (x / 2, (x // 2).float()), 3.0).text.startswith("result 1 is (1,) torch.float32")
    assert halves(lambda x: x / 2, 3.0).text == "it has 1 results, expected 2"


def test_integers_must_be_equal():
    fault = halves(lambda x: (x / 2, (x // 2).int() + (x > 4).int()), 3.0, 5.0)
    assert fault.text == "result 1: 1 values differ; the first is 3, not 2, at (1,)"
