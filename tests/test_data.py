import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config, Device, Problem, Timing, UsageError

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
words = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True).filter(lambda w: w not in ("true", "false"))
values = st.integers(-(2**62), 2**62) | st.booleans() | words


@given(st.dictionaries(names, values, min_size=1))
def test_problem_survives_its_spelling(fields):
    problem = Problem(fields)
    assert Problem.parse(str(problem)) == problem
    assert str(Problem.parse(str(problem))) == str(problem)


@given(st.dictionaries(names, values))
def test_config_survives_its_spelling(fields):
    assert Config.parse(str(Config(fields))) == Config(fields)


@given(st.dictionaries(names, values, min_size=2))
def test_order_is_no_part_of_identity(fields):
    backwards = dict(reversed(fields.items()))
    assert Config(fields) == Config(backwards)
    assert hash(Config(fields)) == hash(Config(backwards))
    assert str(Config(fields)) == str(Config(backwards))


def test_true_is_not_one():
    assert Config(A=True) != Config(A=1)
    assert len({Config(A=True), Config(A=1)}) == 2


def test_the_documented_spelling():
    problem = Problem.parse("M=4096,N=4096,K=4096,dtype=float16")
    assert dict(problem) == {"M": 4096, "N": 4096, "K": 4096, "dtype": "float16"}
    assert str(problem) == "M=4096,N=4096,K=4096,dtype=float16"


@pytest.mark.parametrize(
    "text", ["", "M", "M=", "=4", "M=4,", "M=4,,N=5", "M=4,M=4", "1M=4", "M=4 5", "M=" + "9" * 30]
)
def test_malformed_problem_is_refused(text):
    with pytest.raises(UsageError, match="problem"):
        Problem.parse(text)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", '{"a":1.5}', '{"a":null}', '{"a b":1}', '{"a":[1]}', "[" * 5000]
)
def test_malformed_config_is_refused(text):
    with pytest.raises(UsageError, match="config"):
        Config.parse(text)


@pytest.mark.parametrize(
    "bad", [(0, 0, 0, 1), (2, 1, 3, 1), (1, 2, 3, 0), (math.nan,) * 3 + (1,), (1, 1, math.inf, 1)]
)
def test_impossible_timing_is_refused(bad):
    p20, median, p80, n = bad
    with pytest.raises(UsageError, match="p20_ms"):
        Timing(median, p20, p80, n, "wall-1")


def test_device_identity_is_more_than_architecture_or_name():
    h100 = Device("NVIDIA H100", "sm_90", 132, 232448, 80 * 2**30, 50 * 2**20)
    h100_pcie = Device("NVIDIA H100", "sm_90", 114, 232448, 80 * 2**30, 50 * 2**20)
    h200 = Device("NVIDIA H200", "sm_90", 132, 232448, 141 * 2**30, 50 * 2**20)
    assert len({h100.key, h100_pcie.key, h200.key}) == 3


def test_arithmetic():
    assert [next_power_of_2(n) for n in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]
    assert [cdiv(n, 16) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
