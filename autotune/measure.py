"""One candidate, from config to outcome: verify against the reference, then time. Runs in a worker process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
import triton
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from autotune import device, worker
from autotune.candidate import Measured
from autotune.data import Config, Device, Failure, Outcome, Problem, Reason, Timing
from autotune.guard import copied, storages
from autotune.protocol import Protocol, of_provider
from autotune.registry import Entry
from autotune.rung import Rung
from autotune.stopwatch import clones, stopwatch_for
from autotune.timing import FINAL_SECONDS, Stopwatch, time_in_turns, time_one
from autotune.verify import Oracle

T = TypeVar("T")


#: Of timing one candidate.
TIMING_SECONDS = 0.2


@dataclass(frozen=True)
class Setting:
    """How a worker measures: on which torch device (``cpu``, ``cuda:0``), by which protocol, on which data."""

    where: str
    protocol: Protocol
    seed: int = 0

    def of(self, config: Config) -> Setting:
        """How this config is measured."""
        if config.provider is None:
            return self
        return replace(self, protocol=Protocol.parse(of_provider(str(self.protocol))))

    def sets(self, args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """The arguments, and as many clones of them as the protocol rotates over."""
        if self.protocol.clock != "cudagraph":
            return [args]
        held = sum(storage.nbytes() for storage in storages(args).values())
        return [args, *(copied(args) for _ in range(clones(held, versions(self.where)[0]) - 1))]

    def stopwatch(self, function: Callable[..., Any], sets: Sequence[tuple[Any, ...]]) -> Stopwatch:
        """On one call of ``function`` with each of the sets of arguments."""
        return stopwatch_for(self.protocol, [partial(function, *args) for args in sets], versions(self.where)[0])


@lru_cache(maxsize=1)
def prepare(entry: Entry, problem: Problem, seed: int, where: str) -> Oracle:
    """Two sets of inputs and their references for the problem at hand; a sweep asks for one problem at a time.

    :param where: torch device, ``cpu`` or ``cuda:0``
    """
    kernel = entry.load().kernel
    # numpy's legacy generators take seeds below 2**32, as tuning does.
    seeds = seed, (seed + 2**31) % 2**32
    return Oracle(kernel, *(kernel.inputs(problem, each, where) for each in seeds))


def evaluate(
    entry: Entry, problem: Problem, config: Config, setting: Setting, best_ms: float | None = None
) -> Measured:
    """Verify, then time. What can go wrong with a candidate comes back as a Failure, anything else raises.

    :param best_ms: score of the problem's best config so far: one far above it is timed briefly
    """
    with current(setting.where):
        oracle = prepare(entry, problem, setting.seed, setting.where)
        setting = setting.of(config)
        begun = time.perf_counter()
        failure = caught(partial(_verdict, oracle, config, setting.protocol), setting.protocol)
        seconds = {Rung.VERIFY.value: time.perf_counter() - begun}
        if failure is not None:
            return Measured(failure, Rung.VERIFY, seconds)
        worker.note(Rung.TIMING.value)
        begun = time.perf_counter()

        def time_it() -> tuple[Timing, Rung]:
            stopwatch = setting.stopwatch(partial(oracle.kernel.compute, config), setting.sets(oracle.inputs()))
            return time_one(stopwatch, setting.protocol, best_ms, TIMING_SECONDS)

        timed = caught(time_it, setting.protocol)
        outcome, rung = timed if isinstance(timed, tuple) else (timed, Rung.TIMING)
        seconds[rung.value] = time.perf_counter() - begun
        return Measured(outcome, rung, seconds)


def evaluate_in_turns(
    entry: Entry, problem: Problem, configs: Sequence[Config], setting: Setting
) -> dict[Config, Timing] | Failure:
    """Time configs that were verified and timed before against each other; a Failure if one does not run."""
    with current(setting.where):
        oracle = prepare(entry, problem, setting.seed, setting.where)

        def time_them() -> dict[Config, Timing]:
            # All on the same inputs: a kernel leaves them as they are.
            sets = setting.sets(oracle.inputs())
            stopwatches = {
                config: setting.stopwatch(partial(oracle.kernel.compute, config), sets) for config in configs
            }
            return time_in_turns(stopwatches, setting.protocol, FINAL_SECONDS)

        return caught(time_them, setting.protocol)


def verify(entry: Entry, problem: Problem, config: Config, setting: Setting) -> Failure | None:
    """The verdict alone, without a time."""
    with current(setting.where):
        oracle = prepare(entry, problem, setting.seed, setting.where)
        setting = setting.of(config)
        return caught(partial(_verdict, oracle, config, setting.protocol), setting.protocol)


def time_reference(entry: Entry, problem: Problem, setting: Setting) -> Outcome:
    """The time of what torch users run instead, the kernel's baseline or reference, by the same protocol."""
    with current(setting.where):
        oracle = prepare(entry, problem, setting.seed, setting.where)
        peer = oracle.kernel.baseline or oracle.kernel.reference

        def time_it() -> Timing:
            stopwatch = setting.stopwatch(peer, setting.sets(oracle.inputs()))
            return time_one(stopwatch, setting.protocol, None, TIMING_SECONDS)[0]

        return caught(time_it, setting.protocol)


def _verdict(oracle: Oracle, config: Config, protocol: Protocol) -> Failure | None:
    fault = oracle.fault(config)
    if fault is None:
        return None
    if fault.corrupting:
        worker.retire()
    return Failure(Reason.WRONG, fault.text, str(protocol))


def versions(where: str) -> tuple[Device, str, str]:
    """The device as seen from this process, and the versions of triton and torch."""
    seen = device.INTERPRETER if where == "cpu" else device.present(int(where.partition(":")[2] or 0))
    return seen, triton.__version__, torch.__version__


def current(where: str) -> torch.cuda.device:
    return torch.cuda.device(where if where != "cpu" else -1)  # -1: no device, does nothing


def caught(attempt: Callable[[], T], protocol: Protocol) -> T | Failure:
    """What ``attempt`` gives, or the failure it ended in."""
    try:
        result = attempt()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result
    except OutOfResources as error:
        return Failure(Reason.RESOURCES, line(error), str(protocol))
    except (CompilationError, PTXASError) as error:
        return Failure(Reason.COMPILE, line(error), str(protocol))
    # A candidate may raise anything at all, SystemExit too: the interpreter runs its body as Python, in a
    # process that does nothing else. Its row says what.
    except BaseException as error:
        # An illegal access poisons the CUDA context for good, what filled the memory may still be held, and an
        # interpreter that was left halfway has Triton's modules patched: the next candidate gets a new process.
        worker.retire()
        # What the candidate holds is still in its frames, and the answer needs memory too.
        traceback.clear_frames(error.__traceback__)
        return Failure(Reason.RESOURCES if _exhausted(error) else Reason.RUNTIME, line(error), str(protocol))


def _exhausted(error: BaseException) -> bool:
    """Whether it, or what it came from, is about memory; Triton's interpreter wraps what a kernel raises."""
    link: BaseException | None = error
    for _ in range(10):  # a candidate can tie the chain into a loop
        if link is None:
            return False
        # torch's CPU allocator has no exception of its own.
        if isinstance(link, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in line(link):
            return True
        link = link.__context__ if link.__cause__ is None else link.__cause__
    return False


def line(error: BaseException) -> str:
    """One line of text that any database takes, whatever the exception does."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # its __str__ is the candidate's code as well
        text = "its message can't be read"
    return f"{type(error).__name__}: {text[:300]}".encode("utf-8", "backslashreplace").decode()
