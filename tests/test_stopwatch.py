import pytest
import torch

from autotune import stopwatch
from autotune.data import Device
from autotune.protocol import Protocol
from autotune.stopwatch import Wall, clones, stopwatch_for

MIB = 2**20
H100 = Device("H100", "sm_90", 132, 232448, 80 * 2**30, 50 * MIB)
MI300X = Device("MI300X", "gfx942", 304, 65536, 192 * 2**30, 4 * MIB)


def test_clones_hold_three_caches_and_no_more_than_six():
    for device, cache in ((H100, 50 * MIB), (MI300X, 256 * MIB)):
        for size in (5 * MIB, 13 * MIB, 51 * MIB, 149 * MIB, 151 * MIB, 767 * MIB):
            count = clones(size, device)
            if 64 * size >= 3 * cache:
                assert count * size >= 3 * cache
            assert count == 1 or count * size < 6 * cache


def test_clones_are_as_few_as_do():
    assert clones(150 * MIB, H100) == 1 and clones(150 * MIB - 1, H100) == 2
    assert clones(32 * MIB, H100) == 5
    assert clones(768 * MIB, MI300X) == 1 and clones(32 * MIB, MI300X) == 24  # 256 MiB, and not the reported 4


def test_tiny_inputs_are_not_rotated():
    assert clones(3 * MIB, H100) == 50
    assert clones(2 * MIB, H100) == clones(1, H100) == clones(0, H100) == 1


def test_wall_times_each_call_in_order(monkeypatch):
    ticks = iter([0.0, 0.25, 1.0, 1.5, 2.0, 2.125])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(ticks))
    calls = []
    assert Wall(lambda: calls.append(1)).sample(3) == [250.0, 500.0, 125.0]
    assert len(calls) == 3


def test_a_cpu_is_timed_by_the_wall():
    assert isinstance(stopwatch_for(Protocol("wall", "latency"), [lambda: None], H100), Wall)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or HIP device")
@pytest.mark.parametrize("text", ["cudagraph-throughput-2", "eager-throughput-2", "eager-latency-2"])
@pytest.mark.parametrize("count", [1, 8])
def test_times_on_a_device_are_of_one_call(text, count):
    from autotune.device import present

    inputs = [torch.ones(32 * MIB, device="cuda") for _ in range(count)]
    functions = [lambda x=x: x * 2 for x in inputs]
    samples = stopwatch_for(Protocol.parse(text), functions, present()).sample(20)
    # 256 MiB read and written: 0.03 ms at 8 TB/s, 2.7 ms at 0.1 TB/s; eight calls at once would take longer.
    assert len(samples) == 20 and 0.03 < sorted(samples)[10] < 2.7
