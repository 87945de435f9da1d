"""Compile ahead on all cores, in processes that may crash or hang, while the device measures."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from contextlib import redirect_stdout, suppress
from typing import TypeAlias

from autotune.compile import Compiled, compile_config
from autotune.data import Config, Device, Failure, Problem, Reason
from autotune.registry import Entry
from autotune.worker import Worker, WorkerDied, WorkerTimeout

#: Enough for a worker to import Triton on a cold disk.
START_SECONDS = 180.0
#: Bounds of what one compile is given, and how many must be known before it may be less than the upper one.
LEAST_SECONDS, MOST_SECONDS, ENOUGH = 20.0, 120.0, 20

Job: TypeAlias = tuple[Entry, Problem, Config, Device]


def limit_s(seconds: Sequence[float]) -> float:
    """What the next compile is given: ten times the 95 % quantile of ``seconds``, those known so far.

    It is never under 20 s nor over 120 s, and 120 s until 20 are known.
    """
    if len(seconds) < ENOUGH:
        return MOST_SECONDS
    return min(MOST_SECONDS, max(LEAST_SECONDS, 10 * sorted(seconds)[int(0.95 * len(seconds))]))


class CompilePool:
    """Compiles in worker processes: an abort or an endless ptxas run costs one candidate, not the caller.

    Jobs start in the order they were submitted, but one that somebody waits for goes first. What came of a
    job is kept for the pool's life. Any thread may call any method.
    """

    def __init__(self, protocol: str, processes: int | None = None) -> None:
        """:param protocol: the sweep's, for the failures.
        :param processes: None for one per core.
        """
        self._protocol = protocol
        self._changed = threading.Condition()  # holds all below
        self._queue: deque[Job] = deque()
        self._results: dict[Job, Future[tuple[Compiled | Failure, float]]] = {}
        self._seconds: list[float] = []
        self._running: set[int] = set()
        self._closed = False
        count = len(os.sched_getaffinity(0)) if processes is None else processes
        # Daemons: a program that ends without closing the pool waits for no compiler.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, entry: Entry, problem: Problem, config: Config, device: Device) -> None:
        """Have it compiled, in turn. Does nothing if it was submitted before."""
        job = entry, problem, config, device
        with self._changed:
            if job not in self._results:
                self._enqueue(job)

    def result(
        self, entry: Entry, problem: Problem, config: Config, device: Device
    ) -> tuple[Compiled | Failure, float]:
        """What came of it and the seconds that took; waits for it.

        :raises WorkerError, WorkerDied, WorkerTimeout: if Triton or the kernel's file does not load.
        :raises CancelledError: if the pool is closed before it is done.
        """
        job = entry, problem, config, device
        with self._changed:
            if job not in self._results:
                self._enqueue(job)
            if job in self._queue:
                self._queue.remove(job)
                self._queue.appendleft(job)
            result = self._results[job]
        return result.result()

    def _enqueue(self, job: Job) -> None:
        self._results[job] = Future()
        if self._closed:
            self._results[job].cancel()
            return
        self._queue.append(job)
        self._changed.notify()

    def close(self) -> None:
        """Drop what is queued and kill what is running."""
        with self._changed:
            self._closed = True
            for result in self._results.values():
                result.cancel()
            for process in self._running:
                # Its own process group: with it goes the ptxas it may be waiting for.
                with suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _work(self) -> None:
        # The caller may be interpreting; what Triton's decorators make then can't be compiled.
        with Worker({"TRITON_INTERPRET": None}) as worker:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._queue)
                    if self._closed:
                        return
                    job = self._queue.popleft()
                    result = self._results[job]
                    result.set_running_or_notify_cancel()
                # Whatever happens is for whoever waits for the result: the thread goes on.
                try:
                    result.set_result(self._compile(worker, job))
                except BaseException as error:
                    result.set_exception(CancelledError() if self._closed else error)

    def _compile(self, worker: Worker, job: Job) -> tuple[Compiled | Failure, float]:
        try:
            process = worker.call(os.getpid, timeout_s=START_SECONDS)
        except WorkerDied:
            # It ended between two jobs, killed for its memory, say: that is no fault of this one.
            process = worker.call(os.getpid, timeout_s=START_SECONDS)
        with self._changed:
            if self._closed:
                raise CancelledError
            self._running.add(process)
            given_s = limit_s(self._seconds)
        try:
            worker.call(_ready, timeout_s=START_SECONDS)
            started = time.monotonic()
            try:
                outcome = worker.call(_compile, *job, self._protocol, timeout_s=given_s)
            except WorkerTimeout:
                return self._failed(Reason.TIMEOUT, f"not compiled in {given_s:.0f} s", started)
            except WorkerDied as error:
                return self._failed(Reason.COMPILE, f"compiling: {error}", started)
            seconds = time.monotonic() - started
            with self._changed:
                self._seconds.append(seconds)
            return outcome, seconds
        finally:
            with self._changed:
                self._running.discard(process)

    def _failed(self, reason: Reason, detail: str, started: float) -> tuple[Failure, float]:
        if self._closed:
            raise CancelledError  # killed by us, which says nothing of the candidate
        return Failure(reason, detail, self._protocol), time.monotonic() - started


def _ready() -> None:
    """Called by reference, so that the process has loaded this module, and Triton, before the clock starts."""
    # The process that measures goes before those that compile.
    os.setpriority(os.PRIO_PROCESS, 0, 10)


def _compile(entry: Entry, problem: Problem, config: Config, device: Device, protocol: str) -> Compiled | Failure:
    entry.load()  # a kernel file that raises is no fault of the config
    try:
        # Triton prints the whole assembly where ptxas refuses it.
        with redirect_stdout(None):
            return compile_config(entry, problem, config, device)
    except OSError:
        raise  # a full disk, a tool that is not there: no fault of the config, and no row
    # Any: Triton refuses by errors of its own, AssertionError, RuntimeError("PassManager::run failed"), KeyError
    # for an unknown option; and whatever signature() and constexpr code raise is about this config too.
    except Exception as error:
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Failure(Reason.COMPILE, detail, protocol)
