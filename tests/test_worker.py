import os
import signal
import time

import pytest

from autotune.worker import Worker, WorkerDied, WorkerError, WorkerTimeout


@pytest.fixture
def worker():
    with Worker({"AUTOTUNE_TEST": "yes", "TRITON_INTERPRET": None}) as worker:
        yield worker


def test_calls_run_elsewhere_with_the_environment_asked_for(worker):
    assert worker.call(os.getpid, timeout_s=30) != os.getpid()
    assert worker.call(os.getenv, "AUTOTUNE_TEST", timeout_s=30) == "yes"
    assert worker.call(os.getenv, "TRITON_INTERPRET", timeout_s=30) is None


def test_one_process_serves_many_calls(worker):
    assert len({worker.call(os.getpid, timeout_s=30) for _ in range(3)}) == 1


def test_an_exception_comes_back_with_its_traceback_and_the_process_lives(worker):
    before = worker.call(os.getpid, timeout_s=30)
    with pytest.raises(WorkerError, match=r"(?s)Traceback.*FileNotFoundError"):
        worker.call(os.stat, "/absent", timeout_s=30)
    assert worker.call(os.getpid, timeout_s=30) == before


@pytest.mark.parametrize(
    ("function", "args", "cause"),
    [
        (os._exit, (3,), "exited with status 3"),
        (os.abort, (), "killed by SIGABRT"),
        (signal.raise_signal, (signal.SIGSEGV,), "killed by SIGSEGV"),
    ],
)
def test_death_is_told_and_the_next_call_has_a_new_process(worker, function, args, cause):
    before = worker.call(os.getpid, timeout_s=30)
    with pytest.raises(WorkerDied, match=cause):
        worker.call(function, *args, timeout_s=30)
    assert worker.call(os.getpid, timeout_s=30) != before


def test_a_call_that_never_ends_is_killed(worker):
    before = worker.call(os.getpid, timeout_s=30)
    started = time.monotonic()
    with pytest.raises(WorkerTimeout, match="within 0 s"):
        worker.call(time.sleep, 60, timeout_s=0.3)
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)


def test_the_process_ends_with_its_owner():
    worker = Worker()
    process = worker.call(os.getpid, timeout_s=30)
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
