"""A long-lived process that can be killed: what may crash, hang or poison its device runs there.

It is started by ``python -m autotune.worker`` and not by multiprocessing, which would import the caller's
``__main__`` again and so require a guard in every script that tunes.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

#: From hanging up to having ended; a process that exits in order takes a tenth.
GRACE_SECONDS = 5.0

#: What a message from the process is, before its content.
_NOTE, _RETIRES, _VALUE, _ERROR = range(4)

T = TypeVar("T")


class WorkerDied(Exception):
    """The process ended in the middle of a call, or could not start."""

    #: It was killed by SIGKILL, which the kernel sends where memory runs out, and which nothing here sent.
    out_of_memory = False


class WorkerTimeout(Exception):
    """The call did not return in time; the process was killed."""


class WorkerError(Exception):
    """The call raised something nobody expected; the message is its traceback."""


class Worker:
    """Runs functions by reference (``module.name``) in another process, started when first needed.

    After a death, a timeout or a retirement the next call starts a new process.
    """

    def __init__(
        self, environment: Mapping[str, str | None] | None = None, memory_bytes: int | None = None
    ) -> None:
        """
        :param environment: variables to set, or to remove (None), for the process.
        :param memory_bytes: private memory the process may have; torch and Triton take 0.23 GB of it.
        """
        self._environment = dict(environment or {})
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._death = -1  # a file descriptor that becomes readable when the process ends

    @property
    def running(self) -> bool:
        """Whether the next call goes to a process that is there, as far as is known."""
        return self._process is not None

    def call(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        timeout_s: float,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> T:
        """``function(*args)``, both picklable, with ``timeout_s`` for the answer.

        :param on_note: gets what the function passes to :func:`note`, while it goes on.
        :raises WorkerDied, WorkerTimeout: and the process is gone.
        :raises WorkerError: if the function raised.
        """
        end = time.monotonic() + timeout_s
        retires = False
        try:
            connection = self._connection or self._start()
            connection.send((function, args))
            while True:
                # The process itself is watched too: one that forked may die while its child holds the line open.
                ready = wait([connection, self._death], max(0.0, end - time.monotonic()))
                if not ready:
                    self.close()
                    raise WorkerTimeout(f"no answer within {timeout_s:.0f} s")
                if connection not in ready:
                    raise EOFError
                kind, value = connection.recv()
                if kind == _NOTE:
                    on_note(value)
                elif kind == _RETIRES:
                    retires = True
                else:
                    break
        except (EOFError, ConnectionError) as error:
            raise self._death_certificate() from error
        except BaseException:
            # Ctrl-C in the middle of a call: an answer may be under way, and nobody would read it.
            self.close()
            raise
        if retires:
            self.close()
        if kind == _ERROR:
            raise WorkerError(value)
        result: T = value
        return result

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        for name, value in self._environment.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        with theirs:
            # A session of its own: Ctrl-C at the terminal is for the parent, which then ends the worker. What
            # candidates print goes to standard error: standard output is for results.
            numbers = theirs.fileno(), os.getpid(), self._memory_bytes or 0
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "autotune.worker", *map(str, numbers)],
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    start_new_session=True,
                )
            except OSError as error:  # no memory or no process number left
                ours.close()
                raise WorkerDied(f"the process did not start: {error}") from error
        self._death = os.pidfd_open(self._process.pid)
        self._connection = Connection(ours.detach())
        return self._connection

    def _death_certificate(self) -> WorkerDied:
        assert self._process is not None
        # One that only closed its end of the line may run on for ever.
        ended = wait([self._death], GRACE_SECONDS)
        code = self._process.wait() if ended else 0
        self.close()
        if not ended:
            return WorkerDied("the process hung up and ran on")
        if code < 0:
            died = WorkerDied(f"the process was killed by {signal.Signals(-code).name}")
            died.out_of_memory = code == -signal.SIGKILL
            return died
        return WorkerDied(f"the process exited with status {code}")

    def close(self) -> None:
        """Kill the process and what it forked, if there is one."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            os.close(self._death)
        self._connection = self._process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


#: In a worker process: the line to its owner.
_owner: Connection | None = None


def note(text: str) -> None:
    """In a worker: tell the owner how far the call is. Elsewhere: nothing."""
    if _owner is not None:
        _owner.send((_NOTE, text))


def retire() -> None:
    """In a worker: end after this call, for its process may be damaged; the next call gets a new one."""
    if _owner is not None:
        _owner.send((_RETIRES, None))


def serve(connection: Connection, parent: int, memory_bytes: int) -> None:
    """Answer calls until the owner hangs up.

    :param memory_bytes: 0 for no limit
    """
    global _owner
    _owner = connection
    _contain(memory_bytes)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    while True:
        try:
            function, args = connection.recv()
        except (EOFError, ConnectionError):
            return  # the parent is gone
        # Everything goes back to the parent, which raises it there.
        try:
            answer = (_VALUE, function(*args))
        except Exception:
            answer = (_ERROR, traceback.format_exc())
        try:
            connection.send_bytes(pickle.dumps(answer))
        except OSError:
            return


def _contain(memory_bytes: int) -> None:
    """Let this process harm itself alone, whatever it allocates."""
    # A core file of a crashed candidate would be as large as its memory, and nobody reads it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Where memory runs out all the same, this process is to go, and not its owner or a stranger.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    if memory_bytes:
        # Not RLIMIT_AS, which counts libraries and address ranges that are only reserved.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _end_with(parent: int) -> None:
    """End this process, in whatever it is, when its parent has ended without saying so."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    # One module under both of its names: what runs here takes note() and retire() from autotune.worker.
    sys.modules["autotune.worker"] = sys.modules[__name__]
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
