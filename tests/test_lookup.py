import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_known_look_up_is_faster_than_tritons(root):
    """Side by side in one run, as the benchmark prints it; by how much is for the benchmark to say."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "benchmarks.lookup", "--json"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    figures = json.loads(printed)
    assert figures["autotune.choose gemm"] < figures["triton Autotuner.run over a stub"]
    assert figures["autotune.choose gemm"] < 10
