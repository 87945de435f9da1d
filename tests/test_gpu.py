"""On a GPU: the same verdicts, real times, and a worker that outlives a poisoned context.

The rest of the suite hides GPUs from this process, so candidates here run in workers that see them.
"""

import os
import shutil

import pytest

from autotune import registry
from autotune.data import Reason, Timing
from autotune.protocol import Protocol
from autotune.store import Store
from autotune.summary import Job
from autotune.targets.process import ProcessTarget
from autotune.tuning import sweep

from .conftest import GPUS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        GPUS == "" or not (shutil.which("nvidia-smi") or os.path.exists("/dev/kfd")),
        reason="no GPU on this machine",
    ),
]

GRAPH = Protocol("cudagraph", "throughput")
CRASHING = """
from dataclasses import replace
import triton, triton.language as tl
from autotune.kernels.gemm import KERNEL as GEMM

@triton.jit
def astray(x):
    tl.store(x + tl.program_id(0).to(tl.int64) * (1 << 40), 1.0)

def run(config, a, b):
    if config["BLOCK_K"] == 32:
        astray[(64,)](a)
    return GEMM.run(config, a, b)

KERNEL = replace(GEMM, run=run)
"""


@pytest.fixture
def target():
    environment = {"TRITON_INTERPRET": None, "CUDA_VISIBLE_DEVICES": GPUS}
    with ProcessTarget("cuda:0", "cuda:0", GRAPH, environment, timeout_s=120.0) as opened:
        yield opened


@pytest.mark.parametrize("name", registry.entries())
def test_defaults_are_right_and_have_times(target, name):
    loaded = registry.load(name)
    for text in loaded.kernel.problems:
        problem = loaded.kernel.parse(text)
        outcome = target.evaluate(loaded.entry, problem, loaded.space.default(problem, target.device)).outcome
        assert isinstance(outcome, Timing), (text, outcome)
        assert outcome.protocol == str(GRAPH)
        assert isinstance(target.time_reference(loaded.entry, problem), Timing)


def test_an_illegal_access_is_a_row_and_the_sweep_goes_on(target, tmp_path, db_path, monkeypatch):
    path = tmp_path / "crashing.py"
    path.write_text(CRASHING)
    monkeypatch.setattr(registry, "_registered", {})
    registry.register("crashing", str(path), "autotune.search_spaces.gemm")
    problem = registry.load("crashing").kernel.parse("M=256,N=256,K=256,dtype=float16")
    with Store(db_path) as store:
        (summary,) = sweep([Job("crashing", problem)], target, store, trials=12)
    bad = {config for config, outcome in summary.outcomes.items() if not isinstance(outcome, Timing)}
    assert bad == {config for config in summary.outcomes if config["BLOCK_K"] == 32}
    assert set(summary.failures) == {Reason.RUNTIME} and summary.best is not None
