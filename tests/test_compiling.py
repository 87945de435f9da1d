"""The rungs of the ladder below verification, with the real compiler and a machine that is made up."""

from dataclasses import dataclass, field, replace

import pytest

from autotune import device, registry
from autotune.candidate import Measured
from autotune.compile import Compiled
from autotune.data import Config, Failure, Reason, Timing
from autotune.rung import Resources, Rung
from autotune.store import Store
from autotune.summary import Job
from autotune.targets.compiling import Compiling
from autotune.targets.target import TargetError
from autotune.tuning import sweep
from autotune.worker import WorkerError

GEMM = registry.load("gemm")
H100 = device.profile("h100")
PROTOCOL = "cudagraph-throughput-2"
PROBLEM = GEMM.kernel.parse("M=4096,N=4096,K=4096,dtype=float16")
DEFAULT = GEMM.space.default(PROBLEM, H100)


@dataclass
class FakeMachine:
    """Where a GPU would be: a time for every config."""

    name: str = "cuda:0"
    device: object = H100
    protocol: str = PROTOCOL
    triton: str = "3.9.0"
    torch: str = "2.13.0"
    ahead: int = 0
    ran: list = field(default_factory=list)
    turns: list = field(default_factory=list)
    closed: bool = False

    def load(self, name, problem=None):
        return registry.load(name)

    def evaluate(self, entry, problem, config, best_ms=None):
        self.ran.append(config)
        ms = 1e6 / config["BLOCK_M"] / config["BLOCK_N"]
        return Measured(Timing(ms, ms, ms, 3, PROTOCOL), Rung.TIMING, {"verify": 0.5, "timing": 0.1})

    def evaluate_in_turns(self, entry, problem, configs):
        self.turns.append(list(configs))
        return {config: Timing(1.0, 1.0, 1.0, 9, PROTOCOL, 1.0, 1.0, 1.0, 1.0) for config in configs}

    def close(self):
        self.closed = True


@dataclass
class FakePool:
    """A compiler that takes two seconds, with code by ``code_of`` and needs by ``needs_of``."""

    code_of: object = str
    needs_of: object = lambda config: Resources(1000, 32, 0)
    submitted: list = field(default_factory=list)
    closed: bool = False

    def submit(self, entry, problem, config, device):
        self.submitted.append(config)

    def result(self, entry, problem, config, device):
        needs = self.needs_of(config)
        return (needs if isinstance(needs, Failure) else Compiled(needs, self.code_of(config))), 2.0

    def close(self):
        self.closed = True


def evaluated(pool, *configs):
    machine = FakeMachine()
    with Compiling(machine, pool) as target:
        found = [target.evaluate(GEMM.entry, PROBLEM, config) for config in configs]
    assert machine.closed and pool.closed
    return machine, found


def test_what_compiles_is_measured_and_keeps_its_needs_and_seconds():
    machine, (measured,) = evaluated(FakePool(), DEFAULT)
    assert machine.ran == [DEFAULT] and measured.rung is Rung.TIMING
    assert measured.resources == Resources(1000, 32, 0)
    assert measured.seconds == {"compile": 2.0, "verify": 0.5, "timing": 0.1}


@pytest.mark.parametrize(
    ("needs", "rung", "reason", "detail"),
    [
        (Failure(Reason.COMPILE, "PassManager::run failed", PROTOCOL), Rung.COMPILE, Reason.COMPILE, "PassManager"),
        (Failure(Reason.TIMEOUT, "not compiled in 20 s", PROTOCOL), Rung.COMPILE, Reason.TIMEOUT, "20 s"),
        (
            Resources(300_000, 32, 0),
            Rung.RESOURCES,
            Reason.RESOURCES,
            "300000 B of shared memory, sm_90 has",
        ),
        (Resources(1000, 255, 4096), Rung.RESOURCES, Reason.RESOURCES, "spills 4096 B"),
    ],
)
def test_what_the_compiler_rules_out_never_reaches_the_machine(needs, rung, reason, detail):
    machine, (measured,) = evaluated(FakePool(needs_of=lambda config: needs), DEFAULT)
    assert machine.ran == [] and measured.rung is rung
    assert measured.outcome.reason is reason and detail in measured.outcome.detail
    assert measured.seconds == {"compile": 2.0}


def test_equal_code_shares_the_outcome_and_says_whose():
    one, two, three = (Config({**DEFAULT, "num_stages": stages}) for stages in (2, 3, 4))
    pool = FakePool(code_of=lambda config: "long loop" if config["num_stages"] == 4 else "no loop")
    machine, found = evaluated(pool, one, two, three)
    assert machine.ran == [one, three]
    assert [measured.rung for measured in found] == [Rung.TIMING, Rung.DUPLICATE, Rung.TIMING]
    assert found[1].outcome == found[0].outcome and found[1].same_as == one


def test_a_sweep_announces_ahead_and_tells_what_each_rung_removed(db_path):
    """Stages don't matter to this compiler; blocks of 32 in K spill."""
    pool = FakePool(
        code_of=lambda config: str(Config({**config, "num_stages": 2})),
        needs_of=lambda config: Resources(1000, 255, 4096 if config["BLOCK_K"] == 32 else 0),
    )
    machine = FakeMachine()
    with Store(db_path) as store:
        target = Compiling(machine, pool)
        (summary,) = sweep([Job("gemm", PROBLEM)], target, store, trials=40)
        rows = list(store.rows())
    assert set(pool.submitted) >= set(summary.outcomes) and len(pool.submitted) == len(set(pool.submitted))
    assert not any(config["BLOCK_K"] == 32 for config in machine.ran)
    assert summary.settled[Rung.RESOURCES] == summary.failures[Reason.RESOURCES] > 0
    assert summary.settled[Rung.DUPLICATE] == sum(row["same_as"] is not None for row in rows) > 0
    assert summary.seconds["compile"] == pytest.approx(2.0 * 40)
    # Twins are not timed against each other, and follow the one that is.
    finalists = machine.turns[0]
    codes = [pool.code_of(config) for config in finalists]
    assert len(set(codes)) == len(codes)
    for row in rows:
        if row["same_as"] is not None and Config.parse(row["same_as"]) in finalists:
            assert row["rank_ms"] == 1.0 and row["rung"] == "duplicate"


@pytest.mark.slow
def test_with_the_real_compiler(db_path):
    machine = FakeMachine()
    with Store(db_path) as store, Compiling(machine) as target:
        (summary,) = sweep([Job("gemm", PROBLEM)], target, store, trials=6)
        rows = list(store.rows())
    assert len(summary.outcomes) == 6 and summary.seconds["compile"] > 0.1
    assert all(row["shared_bytes"] > 0 for row in rows if row["rung"] != "compile")
    assert any(row["registers"] for row in rows)


def test_a_config_asked_for_again_is_measured_again():
    machine, found = evaluated(FakePool(), DEFAULT, DEFAULT)
    assert machine.ran == [DEFAULT, DEFAULT] and found[1].same_as is None
    assert replace(found[0]) == found[1]


def test_a_compiler_that_does_not_start_is_no_fault_of_the_config():
    class Broken(FakePool):
        def result(self, entry, problem, config, device):
            raise WorkerError("Traceback ...\nImportError: no module named triton")

    with pytest.raises(TargetError, match="no compiler for cuda:0: ImportError: no module named triton"):
        evaluated(Broken(), DEFAULT)
