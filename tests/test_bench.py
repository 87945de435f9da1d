import json
import os
import subprocess
import sys
import time

import pytest

from autotune import bench


def test_quantiles():
    timing = bench.summary([5.0, 1.0, 3.0, 2.0, 4.0, 100.0], "wall-1")
    # Sorted 1 2 3 4 5 100: places 0.2 * 5 = 1, 0.5 * 5 = 2.5 and 0.8 * 5 = 4.
    assert (timing.p20_ms, timing.median_ms, timing.p80_ms, timing.n) == (2.0, 3.5, 5.0, 6)


def test_wall_time_is_of_the_function():
    timing = bench.wall(lambda: time.sleep(0.02), budget_s=0.2, most=3)
    assert 19 < timing.p20_ms <= timing.median_ms < 200 and timing.n == 3


def test_a_slow_function_runs_once():
    calls = []
    timing = bench.wall(lambda: calls.append(1) or time.sleep(0.05), budget_s=0.01)
    assert len(calls) == timing.n == 1


@pytest.mark.slow
def test_a_known_look_up_is_faster_than_tritons(root):
    """Side by side in one run, as the benchmark prints it; by how much is for the benchmark to say."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "benchmarks.lookup", "--json"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    figures = json.loads(printed)
    assert figures["autotune.choose gemm"] < figures["triton Autotuner.run over a stub"]
    assert figures["autotune.choose gemm"] < 10
