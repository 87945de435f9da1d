import os
import resource
import signal
import time
from pathlib import Path

import pytest

from autotune.worker import Worker, WorkerDied, WorkerError, WorkerTimeout, note, retire


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
        (os._exit, (3,), "the process exited with status 3"),
        (os.abort, (), "the process was killed by SIGABRT"),
        (signal.raise_signal, (signal.SIGSEGV,), "the process was killed by SIGSEGV"),
        (exec, ("import os, time; os.closerange(3, 99); time.sleep(60)",), "the process hung up and ran on"),
    ],
)
def test_death_is_told_and_the_next_call_has_a_new_process(worker, monkeypatch, function, args, cause):
    monkeypatch.setattr("autotune.worker.GRACE_SECONDS", 1.0)
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


@pytest.mark.parametrize(("sent", "out_of_memory"), [(signal.SIGKILL, True), (signal.SIGTERM, False)])
def test_what_the_kernel_sends_where_memory_runs_out_is_told_apart(worker, sent, out_of_memory):
    with pytest.raises(WorkerDied) as caught:
        worker.call(signal.raise_signal, sent, timeout_s=30)
    assert caught.value.out_of_memory is out_of_memory


def test_notes_come_before_the_answer_and_survive_a_death(worker):
    notes = []
    text = "from autotune.worker import note; note('one'); note('two')"
    assert worker.call(exec, text, timeout_s=30, on_note=notes.append) is None
    with pytest.raises(WorkerDied):
        worker.call(exec, text + "; import os; os._exit(1)", timeout_s=30, on_note=notes.append)
    assert notes == ["one", "two"] * 2


def test_one_that_retires_answers_and_the_next_call_has_a_new_process(worker):
    before = worker.call(os.getpid, timeout_s=30)
    worker.call(exec, "from autotune.worker import retire; retire()", timeout_s=30)
    assert not worker.running
    assert worker.call(os.getpid, timeout_s=30) != before
    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        worker.call(exec, "from autotune.worker import retire; retire(); 1 / 0", timeout_s=30)
    assert not worker.running


def test_outside_a_worker_notes_and_retiring_do_nothing():
    assert note("on its way") is None
    assert retire() is None  # and this process goes on


def test_memory_has_a_bound_where_asked_for(worker):
    with Worker(memory_bytes=2**28) as bounded:
        assert bounded.call(resource.getrlimit, resource.RLIMIT_DATA, timeout_s=30) == (2**28, 2**28)
        with pytest.raises(WorkerError, match="MemoryError"):
            bounded.call(bytearray, 2**29, timeout_s=30)
        assert bounded.call(len, bytes(2**20), timeout_s=30) == 2**20
    unbounded = resource.getrlimit(resource.RLIMIT_DATA)
    assert worker.call(resource.getrlimit, resource.RLIMIT_DATA, timeout_s=30) == unbounded


def test_the_process_is_the_first_to_go_where_memory_runs_out(worker):
    text = worker.call(Path.read_text, Path("/proc/self/oom_score_adj"), timeout_s=30)
    assert text.strip() == "1000"
    assert worker.call(resource.getrlimit, resource.RLIMIT_CORE, timeout_s=30) == (0, 0)


def test_one_that_does_not_start_is_dead(monkeypatch):
    monkeypatch.setattr("autotune.worker.sys.executable", "/absent/python")
    with Worker() as worker, pytest.raises(WorkerDied, match=r"did not start.*absent"):
        worker.call(os.getpid, timeout_s=30)


def test_the_process_ends_with_its_owner():
    worker = Worker()
    process = worker.call(os.getpid, timeout_s=30)
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
