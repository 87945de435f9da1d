"""A long-lived process that can be killed: what may crash, hang or poison its device runs there.

It is started by ``python -m autotune.worker`` and not by multiprocessing, which would import the caller's
``__main__`` again and so require a guard in every script that tunes.
"""

from __future__ import annotations

import os
import pickle
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

T = TypeVar("T")


class WorkerDied(Exception):
    """The process ended in the middle of a call: by a signal, or by exiting."""


class WorkerTimeout(Exception):
    """The call did not return in time; the process was killed."""


class WorkerError(Exception):
    """The call raised something nobody expected; the message is its traceback."""


class Worker:
    """Runs functions by reference (``module.name``) in another process, started when first needed.

    After a death or a timeout the next call starts a new process.
    """

    def __init__(self, environment: Mapping[str, str | None] | None = None) -> None:
        """:param environment: variables to set, or to remove (None), for the process."""
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._death = -1  # a file descriptor that becomes readable when the process ends

    def call(self, function: Callable[..., T], /, *args: Any, timeout_s: float) -> T:
        """``function(*args)``, both picklable, with ``timeout_s`` for the answer.

        :raises WorkerDied, WorkerTimeout: and the process is gone.
        :raises WorkerError: if the function raised.
        """
        connection = self._connection or self._start()
        try:
            connection.send((function, args))
            # The process itself is watched too: one that forked may die while its child holds the line open.
            ready = wait([connection, self._death], timeout_s)
            if not ready:
                self.close()
                raise WorkerTimeout(f"no answer within {timeout_s:.0f} s")
            if connection not in ready:
                raise EOFError
            done, value = connection.recv()
        except (EOFError, ConnectionError) as error:
            raise WorkerDied(self._cause_of_death()) from error
        except BaseException:
            # Ctrl-C in the middle of a call: an answer may be under way, and nobody would read it.
            self.close()
            raise
        if not done:
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
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autotune.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
            )
        self._death = os.pidfd_open(self._process.pid)
        self._connection = Connection(ours.detach())
        return self._connection

    def _cause_of_death(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        self.close()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"

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


def _serve(connection: Connection, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    while True:
        try:
            function, args = connection.recv()
        except (EOFError, ConnectionError):
            return  # the parent is gone
        # Everything goes back to the parent, which raises it there.
        try:
            answer = (True, function(*args))
        except Exception:
            answer = (False, traceback.format_exc())
        try:
            connection.send_bytes(pickle.dumps(answer))
        except OSError:
            return


def _end_with(parent: int) -> None:
    """End this process, in whatever it is, when its parent has ended without saying so."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
