import os
import re
import signal
import threading
from concurrent.futures import CancelledError, Future
from pathlib import Path

import pytest

from autotune import compile_pool, device, registry
from autotune.compile import Compiled
from autotune.compile_pool import CompilePool, limit_s
from autotune.data import Config, Failure, Problem, Reason
from autotune.registry import Entry
from autotune.rung import Resources
from autotune.worker import WorkerError

FILE = str(Path(__file__).parent / "copy_kernel.py")
COPY, PROBLEM, H100 = Entry("copy", FILE, FILE), Problem(N=1000), device.profile("h100")
GOOD, HANGS = Config(BLOCK=256), Config(BLOCK=256, does="hang")


def outcome(pool, entry=COPY, **config):
    return pool.result(entry, PROBLEM, Config({"BLOCK": 256, **config}), H100)


@pytest.fixture(scope="module")
def pool():
    with CompilePool("sweep-1", processes=1) as pool:
        yield pool


def test_a_compiler_that_aborts_costs_one_candidate(pool):
    failure, seconds = outcome(pool, does="abort")
    assert failure.reason is Reason.COMPILE and failure.protocol == "sweep-1"
    assert re.fullmatch("compiling: .*killed by SIGABRT", failure.detail)
    assert seconds > 0
    assert isinstance(outcome(pool)[0], Compiled)


def test_a_compiler_that_never_ends_costs_its_limit(pool, monkeypatch):
    outcome(pool)
    monkeypatch.setattr(compile_pool, "MOST_SECONDS", 1.0)
    failure, seconds = outcome(pool, does="hang")
    assert failure == Failure(Reason.TIMEOUT, "not compiled in 1 s", "sweep-1")
    assert 1 <= seconds < 5


def test_a_compiler_that_raises_is_a_failure_in_one_line(pool):
    failure, _ = outcome(pool, does="raise")
    assert failure == Failure(Reason.COMPILE, "ZeroDivisionError: a tile of no size", "sweep-1")


def test_a_config_that_triton_refuses_is_a_failure_with_its_message(pool):
    gemm = registry.load("gemm")
    problem = gemm.kernel.parse("M=64,N=64,K=64,dtype=float16")
    for change, words in (({"num_warps": 3}, "num_warps must be a power of 2"), ({"num_wraps": 4}, "num_wraps")):
        config = Config({**gemm.space.default(problem, H100), **change})
        failure, _ = pool.result(gemm.entry, problem, config, H100)
        assert failure.reason is Reason.COMPILE and words in failure.detail


def test_a_kernel_file_that_aborts_is_a_failure(pool, tmp_path):
    file = tmp_path / "aborting_kernel.py"
    file.write_text("import os; os.abort()")
    failure, _ = outcome(pool, Entry("aborts", str(file), str(file)))
    assert failure.reason is Reason.COMPILE and "SIGABRT" in failure.detail


def test_a_kernel_file_that_does_not_load_is_no_candidates_fault(pool, tmp_path):
    file = tmp_path / "raising_kernel.py"
    file.write_text("1 / 0")
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        outcome(pool, Entry("raises", str(file), str(file)))


def processes():
    """Those that this process started, from whichever thread."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


def test_a_process_that_ends_between_two_jobs_costs_nothing():
    before = processes()
    with CompilePool("sweep-1", processes=1) as killed:
        outcome(killed)
        (process,) = processes() - before
        os.kill(process, signal.SIGKILL)
        assert isinstance(outcome(killed, BLOCK=128)[0], Compiled)


def test_closing_kills_what_runs_and_calls_it_no_failure(pool):
    before = processes()
    with CompilePool("sweep-1", processes=2) as closing:
        closing.submit(COPY, PROBLEM, HANGS, H100)
        closing.submit(COPY, PROBLEM, GOOD, H100)
        outcome(closing)  # so the first is under way
        mine = processes() - before
        threads = threading.active_count()
    assert len(mine) == 2 and not mine & processes()
    assert threading.active_count() == threads - 2
    for config in (HANGS, Config(BLOCK=128)):
        with pytest.raises(CancelledError):
            closing.result(COPY, PROBLEM, config, H100)
    closing.close()


@pytest.fixture
def interruptible():
    """A shell makes what it starts in the background ignore Ctrl-C, and Python goes by that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_waiting_leaves_no_process(pool, interruptible):
    before = processes()
    with pytest.raises(KeyboardInterrupt), CompilePool("sweep-1", processes=1) as interrupted:
        outcome(interrupted)
        mine = processes() - before
        main = threading.main_thread().ident
        threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
        interrupted.result(COPY, PROBLEM, HANGS, H100)
    assert len(mine) == 1 and not mine & processes()


class FakeWorker:
    """Compiles nothing; notes what it is given. The first job waits until it may end."""

    def __init__(self, environment):
        assert environment == {"TRITON_INTERPRET": None}
        self.jobs, self.given_s = [], []
        self.busy, self.may_end = threading.Event(), threading.Event()

    def call(self, function, *args, timeout_s):
        if function is os.getpid:
            return 2**31 - 1  # no process has this number
        if args:
            self.jobs.append(args[2])
            self.given_s.append(timeout_s)
            self.busy.set()
            self.may_end.wait()
            return Compiled(Resources(shared_bytes=0), code=str(args[2]))
        return None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


@pytest.fixture
def fake(monkeypatch):
    worker = FakeWorker({"TRITON_INTERPRET": None})
    monkeypatch.setattr(compile_pool, "Worker", lambda environment: worker)
    with CompilePool("sweep-1", processes=1) as pool:
        yield pool, worker
        worker.may_end.set()


def blocks(*values):
    return [Config(BLOCK=value) for value in values]


@pytest.mark.parametrize(("waited", "order"), [(2, (1, 2, 3, 4)), (4, (1, 4, 2, 3)), (5, (1, 5, 2, 3, 4))])
def test_jobs_run_once_in_order_and_one_waited_for_goes_first(fake, monkeypatch, waited, order):
    pool, worker = fake

    class Releasing(Future):
        def result(self):
            worker.may_end.set()
            return super().result()

    monkeypatch.setattr(compile_pool, "Future", Releasing)
    pool.submit(COPY, PROBLEM, Config(BLOCK=1), H100)
    worker.busy.wait()
    for config in blocks(2, 3, 2, 4):
        pool.submit(COPY, PROBLEM, config, H100)
    compiled, _ = outcome(pool, BLOCK=waited)
    assert compiled.code == str(Config(BLOCK=waited))
    for config in blocks(2, 3, 4):
        pool.result(COPY, PROBLEM, config, H100)
    assert worker.jobs == blocks(*order)


def test_a_job_is_one_entry_problem_config_and_device(fake):
    pool, worker = fake
    worker.may_end.set()
    other = Entry("copy", FILE, "elsewhere.py")
    jobs = [
        (COPY, PROBLEM, GOOD, H100),
        (other, PROBLEM, GOOD, H100),
        (COPY, Problem(N=1), GOOD, H100),
        (COPY, PROBLEM, Config(BLOCK=True), H100),
        (COPY, PROBLEM, Config(BLOCK=1), H100),
        (COPY, PROBLEM, GOOD, device.profile("h200")),
    ]
    for job in jobs + jobs:
        pool.result(*job)
    assert len(worker.jobs) == len(jobs)


def test_the_limit_follows_the_compile_times_within_its_bounds():
    assert limit_s([]) == limit_s([0.5] * 19) == 120
    assert limit_s([0.5] * 20) == 20
    assert limit_s([0.5] * 90 + [6.0] * 10) == 60
    assert limit_s([0.5] * 96 + [60.0] * 4) == 20
    assert limit_s([30.0] * 20) == 120


def test_a_compile_is_given_the_limit(fake, monkeypatch):
    pool, worker = fake
    worker.may_end.set()
    monkeypatch.setattr(compile_pool, "LEAST_SECONDS", 7.0)
    for config in blocks(*range(21)):
        pool.result(COPY, PROBLEM, config, H100)
    assert worker.given_s == [120] * 20 + [7]
