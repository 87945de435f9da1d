"""One candidate, from config to outcome: verify against the reference, then time. Runs in a worker process."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
import triton
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from autotune import bench, device
from autotune.data import Config, Device, Failure, Outcome, Problem, Reason, Timing
from autotune.registry import Entry
from autotune.verify import Oracle

T = TypeVar("T")


@lru_cache(maxsize=1)
def prepare(entry: Entry, problem: Problem, seed: int, where: str) -> Oracle:
    """Inputs and references of the problem at hand; a sweep asks for one problem at a time.

    :param where: torch device, ``cpu`` or ``cuda:0``
    """
    kernel = entry.load().kernel
    return Oracle(kernel, kernel.inputs(problem, seed, where))


def evaluate(entry: Entry, problem: Problem, config: Config, seed: int, where: str) -> Outcome:
    """Verify, then time. What can go wrong with a candidate comes back as a Failure, anything else raises."""
    with _current(where):
        oracle = prepare(entry, problem, seed, where)
        timer, protocol = _timer(where)

        def verify_and_time() -> Outcome:
            fault = oracle.fault(config)
            if fault is not None:
                return Failure(Reason.WRONG, fault, protocol)
            return timer(partial(oracle.kernel.run, config, *oracle.args))

        return _caught(verify_and_time, protocol)


def verify(entry: Entry, problem: Problem, config: Config, seed: int, where: str) -> Failure | None:
    """The verdict alone, without a time."""
    with _current(where):
        oracle = prepare(entry, problem, seed, where)
        protocol = _timer(where)[1]

        def verify_only() -> Failure | None:
            fault = oracle.fault(config)
            return None if fault is None else Failure(Reason.WRONG, fault, protocol)

        return _caught(verify_only, protocol)


def time_reference(entry: Entry, problem: Problem, seed: int, where: str) -> Outcome:
    """The time of the kernel's reference in torch, by the same protocol."""
    with _current(where):
        oracle = prepare(entry, problem, seed, where)
        timer, protocol = _timer(where)
        return _caught(lambda: timer(partial(oracle.kernel.reference, *oracle.args)), protocol)


def versions(where: str) -> tuple[Device, str, str]:
    """The device as seen from this process, and the versions of triton and torch."""
    seen = device.INTERPRETER if where == "cpu" else device.present(int(where.partition(":")[2] or 0))
    return seen, triton.__version__, torch.__version__


def _current(where: str) -> torch.cuda.device:
    return torch.cuda.device(where if where != "cpu" else -1)  # -1: no device, does nothing


def _timer(where: str) -> tuple[Callable[[Callable[[], Any]], Timing], str]:
    if where == "cpu":
        return bench.wall, bench.WALL_PROTOCOL
    seen, _, _ = versions(where)
    return partial(bench.graph, device=seen), bench.GRAPH_PROTOCOL


def _caught(attempt: Callable[[], T], protocol: str) -> T | Failure:
    """What ``attempt`` gives, or the failure it ended in."""
    try:
        result = attempt()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result
    except (OutOfResources, torch.cuda.OutOfMemoryError, MemoryError) as error:
        return Failure(Reason.RESOURCES, _line(error), protocol)
    except (CompilationError, PTXASError) as error:
        return Failure(Reason.COMPILE, _line(error), protocol)
    # A candidate may raise anything at all, SystemExit too: the interpreter runs its body as Python, in a
    # process that does nothing else. Its row says what.
    except BaseException as error:
        line = _line(error)
        exhausted = "can't allocate memory" in line  # torch's CPU allocator has no exception of its own
        return Failure(Reason.RESOURCES if exhausted else Reason.RUNTIME, line, protocol)


def _line(error: BaseException) -> str:
    """One line of text that any database takes, whatever the exception does."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # its __str__ is the candidate's code as well
        text = "its message can't be read"
    return f"{type(error).__name__}: {text[:300]}".encode("utf-8", "backslashreplace").decode()
