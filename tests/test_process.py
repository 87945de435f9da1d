"""Candidates that attack their worker: each is a row with its reason, and the next one is measured."""

import os
import signal

import pytest

from autotune import device, measure, registry
from autotune.checking import check
from autotune.data import Config, Failure, Reason, Timing
from autotune.kernels.gemm import KERNEL as GEMM
from autotune.measure import Setting
from autotune.protocol import Protocol
from autotune.registry import Entry
from autotune.rung import Rung
from autotune.search_spaces.gemm import SPACE
from autotune.targets import process as process_module
from autotune.targets.process import ProcessTarget, TargetError

PROBLEM = GEMM.parse("M=16,N=16,K=32,dtype=float32")
SETTING = Setting("cpu", Protocol("wall", "throughput"))
DOOMED = GEMM.parse("M=16,N=32,K=16,dtype=float32")
OTHER = GEMM.parse("M=16,N=16,K=16,dtype=float32")
ENVIRONMENT = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
MEMORY_BYTES = 2**29

#: gemm with attacks, which get its output before it is returned; a config's ATTACK names one.
ATTACKS = """
import os, signal
from dataclasses import replace
import numpy, torch, triton, triton.language as tl
from autotune.data import Config
from autotune.kernels.gemm import KERNEL as GEMM

hoard = []

@triton.jit
def astray(c, offset):
    tl.store(c + offset, 1.0)

@triton.jit
def endless(c):
    while tl.program_id(0) == 0:
        tl.store(c, 1.0)

@triton.jit
def wide(c):
    bytearray(2**60)

def is_good(c):
    pass

def is_wrong(c):
    c.zero_()

def raises(c):
    raise OverflowError("too wide")

def raises_in_circles(c):
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    raise one

def segfaults(c):
    astray[(1,)](c, 1 << 44)

def dies(c):
    os._exit(3)

def loops(c):
    endless[(1,)](c)

def is_killed(c):
    os.kill(os.getpid(), signal.SIGKILL)

def fills_memory(c):
    while True:
        hoard.append(torch.empty(2**24))

def asks_torch(c):
    torch.empty(2**50)

def asks_numpy(c):
    numpy.empty(2**50)

def asks_python(c):
    bytearray(2**60)

def asks_in_kernel(c):
    wide[(1,)](c)

def strays(c):
    astray[(1,)](c, c.numel())

def dies_while_timed(c):
    # Verified on A, B and A again; the fourth run is the first that is timed.
    hoard.append(c)
    if len(hoard) == 4:
        os._exit(4)

def run(config, a, b):
    c = GEMM.run(Config({name: value for name, value in config.items() if name != "ATTACK"}), a, b)
    globals()[config["ATTACK"]](c)
    return c

KERNEL = replace(GEMM, run=run)
"""


def config(attack):
    return Config({**SPACE.default(PROBLEM, device.INTERPRETER), "ATTACK": attack})


@pytest.fixture(scope="module")
def target():
    where = {"where": "cpu", "protocol": Protocol("wall", "throughput"), "environment": ENVIRONMENT}
    with ProcessTarget("interpreter", **where, timeout_s=60.0, memory_bytes=MEMORY_BYTES) as target:
        yield target


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "attacks.py"
    path.write_text(ATTACKS)
    return Entry("attacks", str(path), "autotune.search_spaces.gemm")


def process(target):
    return target._worker.call(os.getpid, timeout_s=30)


OUTCOMES = {
    "raises": (Reason.RUNTIME, "OverflowError: too wide"),
    "segfaults": (Reason.RUNTIME, "the process was killed by SIGSEGV"),
    "loops": (Reason.TIMEOUT, "not done in 2 s"),
    "fills_memory": (Reason.RESOURCES, "can't allocate memory"),
    "strays": (Reason.WRONG, "it wrote outside its output, 1 bytes after its (16, 16)"),
}


@pytest.mark.parametrize("attack", OUTCOMES)
def test_an_attack_is_a_row_and_the_next_candidate_is_measured_in_a_fresh_worker(
    target, entry, monkeypatch, attack
):
    before = process(target)
    with monkeypatch.context() as patched:
        if attack == "loops":
            patched.setattr(target, "timeout_s", 2.0)
        measured = target.evaluate(entry, PROBLEM, config(attack))
    reason, detail = OUTCOMES[attack]
    assert measured.outcome.reason is reason and detail in measured.outcome.detail, measured
    assert measured.rung is Rung.VERIFY and list(measured.seconds) == ["verify"]
    if attack == "loops":
        assert 2.0 <= measured.seconds["verify"] < 4.0
    after = target.evaluate(entry, PROBLEM, config("is_good"))
    assert isinstance(after.outcome, Timing) and after.rung is Rung.TIMING, after
    assert list(after.seconds) == ["verify", "timing"] and min(after.seconds.values()) > 0
    assert process(target) != before


@pytest.mark.parametrize("attack", ["asks_torch", "asks_numpy", "asks_python", "asks_in_kernel"])
def test_whatever_memory_is_missing_in_the_reason_is_resources(entry, attack):
    failure = measure.verify(entry, PROBLEM, config(attack), SETTING)
    assert failure.reason is Reason.RESOURCES, failure


def test_a_chain_of_exceptions_without_end_is_a_row_too(entry):
    failure = measure.verify(entry, PROBLEM, config("raises_in_circles"), SETTING)
    assert failure == Failure(Reason.RUNTIME, "ValueError: one", "wall-throughput-2")


def test_a_wrong_result_costs_no_worker(target, entry):
    before = process(target)
    measured = target.evaluate(entry, PROBLEM, config("is_wrong"))
    assert (measured.outcome.reason, measured.rung) == (Reason.WRONG, Rung.VERIFY)
    assert list(measured.seconds) == ["verify"] and process(target) == before


def test_a_death_between_two_candidates_is_nobodys_fault(target, entry):
    """As of a thread that a candidate left behind."""
    os.kill(process(target), signal.SIGKILL)
    target._worker._process.wait(30)
    assert isinstance(target.evaluate(entry, PROBLEM, config("is_good")).outcome, Timing)


def test_deaths_in_a_row_end_the_problem_and_no_other(target, entry, monkeypatch):
    assert process_module.MOST_DEATHS == 5
    monkeypatch.setattr(process_module, "MOST_DEATHS", 2)
    for _ in range(2):
        dead = target.evaluate(entry, DOOMED, config("dies"))
        assert dead.outcome == Failure(Reason.RUNTIME, "the process exited with status 3", "wall-throughput-2")
    with pytest.raises(TargetError, match="the last 2 candidates each killed the worker: the process exited"):
        target.evaluate(entry, DOOMED, config("is_good"))
    assert isinstance(target.evaluate(entry, OTHER, config("is_good")).outcome, Timing)


def test_deaths_with_an_answer_in_between_end_nothing(target, entry, monkeypatch):
    monkeypatch.setattr(process_module, "MOST_DEATHS", 2)
    killed = target.evaluate(entry, PROBLEM, config("is_killed"))
    assert killed.outcome.reason is Reason.RESOURCES
    assert killed.outcome.detail == "the process was killed by SIGKILL, as where memory runs out"
    assert target.evaluate(entry, PROBLEM, config("is_wrong")).outcome.reason is Reason.WRONG
    died = target.evaluate(entry, PROBLEM, config("dies_while_timed"))
    assert died.rung is Rung.TIMING and list(died.seconds) == ["verify", "timing"]
    assert died.outcome.detail == "the process exited with status 4" and min(died.seconds.values()) > 0
    assert isinstance(target.evaluate(entry, PROBLEM, config("is_good")).outcome, Timing)


def test_a_worker_that_cannot_start_again_ends_the_problem_at_once(target, entry, monkeypatch):
    monkeypatch.setattr("autotune.worker.sys.executable", "/absent/python")
    target.close()
    with pytest.raises(TargetError, match="target interpreter does not start: the process did not start"):
        target.evaluate(entry, PROBLEM, config("is_good"))


class Fragile:
    """A target that ``deaths`` candidates of the first problem kill, and that then gives this problem up."""

    device = device.INTERPRETER

    def __init__(self, deaths):
        self.deaths, self.problems = deaths, []

    def verify(self, entry, problem, config):
        self.problems.append(problem)
        if problem != self.problems[0]:
            return None
        if len(self.problems) > self.deaths:
            raise TargetError("stopped with what it has")
        return Failure(Reason.RUNTIME, "the process exited with status 3", "wall-throughput-2")


def test_a_check_tells_of_the_deaths_and_goes_on_with_the_next_problem():
    first, second, *_ = check([registry.load("gemm")], Fragile(deaths=2), samples=3)
    assert (first.configs, len(first.failures)) == (2, 2)
    assert second.configs == 4 and not second.failures
    with pytest.raises(TargetError):
        check([registry.load("gemm")], Fragile(deaths=0), samples=3)
