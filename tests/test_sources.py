from datetime import datetime, timezone

import pytest

from autotune import device, registry
from autotune.data import Config, Failure, Reason, Timing, Trial
from autotune.sources import FEWEST, MOST, distance, experience
from autotune.store import Store

GEMM = registry.load("gemm")
H100, H200 = device.profile("h100"), device.profile("h200")
PROTOCOL = "cudagraph-throughput-2"


def problem(text):
    return GEMM.kernel.parse(text)


BASE = problem("M=1024,N=4096,K=4096,dtype=float16")
NEAR = problem("M=2048,N=4096,K=4096,dtype=float16")
FAR = problem("M=16,N=4096,K=4096,dtype=float16")
OTHER_DTYPE = problem("M=1024,N=4096,K=4096,dtype=float32")


@pytest.fixture
def store(db_path):
    with Store(db_path) as opened:
        yield opened


def record(store, problem, where=H100, protocol=PROTOCOL, source=GEMM.source, count=FEWEST, first_ms=1.0):
    """``count`` timed trials and a failed one; the first time marks the group."""
    for number in range(count + 1):
        ms = first_ms + number
        outcome = (
            Timing(ms, ms, ms, 3, protocol) if number < count else Failure(Reason.TIMEOUT, "too slow", protocol)
        )
        now = datetime.now(timezone.utc).isoformat()
        config = Config(BLOCK_M=16 << number % 5, number=number)
        store.record(
            Trial("gemm", source, problem, where.key, config, outcome, "t", "3.9.0", "2.13.0", created_at=now)
        )


def found(store, protocol=PROTOCOL, where=H100):
    """The first times of the sources, in order."""
    sources = experience(store, GEMM, BASE, where, protocol)
    assert all(None in source.trials.values() for source in sources)
    return [min(ms for ms in source.trials.values() if ms is not None) for source in sources]


def test_nearest_first_and_never_the_problem_itself(store):
    record(store, BASE, first_ms=1)
    record(store, FAR, first_ms=2)
    record(store, NEAR, first_ms=3)
    record(store, OTHER_DTYPE, first_ms=4)
    assert found(store) == [3, 4, 2]


def test_the_same_problem_on_another_device_or_of_other_code_is_near(store):
    record(store, BASE, where=H200, first_ms=1)
    record(store, BASE, source="other code", first_ms=2)
    record(store, NEAR, first_ms=3)
    assert found(store) == [2, 3, 1]


def test_the_interpreter_teaches_nothing_about_a_gpu_nor_the_reverse(store):
    record(store, NEAR, where=device.INTERPRETER, protocol="wall-throughput-2", first_ms=1)
    record(store, NEAR, first_ms=2)
    assert found(store) == [2]
    assert found(store, "wall-throughput-2", device.INTERPRETER) == [1]


def test_objectives_are_not_mixed_and_protocols_of_one_are(store):
    record(store, NEAR, protocol="eager-latency-2", first_ms=1)
    record(store, NEAR, protocol="cudagraph-coldL2-1", first_ms=2)
    assert found(store) == [2]


def test_a_protocol_that_is_none_is_left_out(store):
    record(store, NEAR, protocol="nonsense", first_ms=1)
    assert found(store) == []


def test_few_trials_are_left_out_and_so_are_too_many_sources(store):
    record(store, NEAR, count=FEWEST - 1)
    assert found(store) == []
    for m in range(1, MOST + 3):
        record(store, problem(f"M={m},N=4096,K=4096,dtype=float16"))
    assert len(found(store)) == MOST


def test_distance_is_in_doublings():
    assert distance(GEMM, BASE, NEAR) == 1 and distance(GEMM, BASE, FAR) == 6
    assert distance(GEMM, BASE, BASE) == 0 < distance(GEMM, BASE, OTHER_DTYPE)
