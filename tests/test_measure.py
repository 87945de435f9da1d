"""What a worker does with a candidate, in this process."""

from dataclasses import replace

import pytest
import torch

from autotune import device, guard, measure, registry
from autotune.data import Config, Failure, Reason, Timing
from autotune.measure import Setting
from autotune.protocol import Protocol
from autotune.rung import Rung
from autotune.targets.interpreter import Interpreter
from autotune.targets.target import TargetError

GEMM = registry.load("gemm")
PROBLEM = GEMM.kernel.parse("M=32,N=32,K=32,dtype=float32")
DEFAULT = GEMM.space.default(PROBLEM, device.INTERPRETER)
SMALL = Config({**DEFAULT, "BLOCK_K": 16})
THROUGHPUT, LATENCY = (Setting("cpu", Protocol("wall", objective)) for objective in ("throughput", "latency"))


def test_a_right_candidate_gets_a_time_and_its_seconds_by_rung():
    measured = measure.evaluate(GEMM.entry, PROBLEM, DEFAULT, THROUGHPUT)
    assert isinstance(measured.outcome, Timing) and measured.rung is Rung.TIMING
    assert measured.outcome.protocol == "wall-throughput-2" and measured.outcome.n >= 3
    assert set(measured.seconds) == {"verify", "timing"} and min(measured.seconds.values()) > 0


def test_one_far_above_the_best_is_timed_briefly():
    measured = measure.evaluate(GEMM.entry, PROBLEM, DEFAULT, THROUGHPUT, best_ms=1e-6)
    assert measured.rung is Rung.SCREEN and measured.outcome.n == 1
    assert set(measured.seconds) == {"verify", "screen"}


def test_latency_ranks_by_its_tail():
    timing = measure.evaluate(GEMM.entry, PROBLEM, DEFAULT, LATENCY).outcome
    assert timing.protocol == "wall-latency-2" and timing.score == timing.score_ms >= timing.p80_ms


def test_in_turns_each_gets_an_interval():
    timed = measure.evaluate_in_turns(GEMM.entry, PROBLEM, [DEFAULT, SMALL], THROUGHPUT)
    assert timed.keys() == {DEFAULT, SMALL}
    for timing in timed.values():
        assert timing.n >= 8 and timing.low_ms <= timing.score <= timing.high_ms and timing.rank_ms is not None


def test_one_that_fails_in_turns_is_a_failure(tmp_path):
    path = tmp_path / "tired.py"
    path.write_text(
        "from dataclasses import replace\n"
        "from autotune.kernels.gemm import KERNEL as GEMM\n"
        "def run(config, a, b):\n"
        "    if config['BLOCK_K'] == 16:\n"
        "        raise OverflowError('too tired')\n"
        "    return GEMM.run(config, a, b)\n"
        "KERNEL = replace(GEMM, run=run)\n"
    )
    entry = registry.Entry("tired", str(path), "autotune.search_spaces.gemm")
    failure = measure.evaluate_in_turns(entry, PROBLEM, [DEFAULT, SMALL], THROUGHPUT)
    assert isinstance(failure, Failure) and failure.reason is Reason.RUNTIME
    with (
        Interpreter() as target,
        pytest.raises(TargetError, match=r"in turns ended in .*too tired"),
    ):
        target.evaluate_in_turns(entry, PROBLEM, [DEFAULT, SMALL])


def test_clones_of_inputs_lie_in_memory_as_the_inputs_do():
    storage = torch.arange(64.0)
    args = (storage[3:27].view(4, 6).T, storage[8:16:2], 7, "word")
    clones = guard.copied(args)
    assert clones[2:] == args[2:]
    for clone, original in zip(clones[:2], args[:2], strict=True):
        assert torch.equal(clone, original) and clone.stride() == original.stride()
        assert clone.storage_offset() == original.storage_offset()
        assert clone.untyped_storage().data_ptr() != original.untyped_storage().data_ptr()


def test_settings_are_worth_comparing():
    assert replace(THROUGHPUT, seed=0) == THROUGHPUT != LATENCY
