import pytest
import torch

from autotune.kernel import Tolerance
from autotune.verify import compare, poisoned

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


def test_fresh_memory_is_poisoned_only_within():
    with poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.ones(2, 2).half()).isnan().all()
        assert (torch.empty(3, dtype=torch.int32) != 0).all()
    assert torch.zeros(3).sum() == 0
