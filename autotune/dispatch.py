"""Shapes in, config out, launch. Never tunes, never writes, never fails because of the database.

The hot path is one memo look-up per call. A miss decides: the winner of this very problem, else that of a
near one, else the space's default. The database is read once, into a dict; what it says is used only if the
live space allows it for this problem on this device.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
import warnings
from collections.abc import Hashable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from autotune import locate, registry
from autotune.data import Choice, Config, Device, Problem, UsageError
from autotune.kernel import Kernel
from autotune.registry import Loaded

#: A neighbour's winner is used if no size differs by more than this factor, and all together by no more
#: than its cube. Beyond, the default knows better: a config tuned for long sequences ruins short ones.
NEAREST_FACTOR = 4.0

#: How long the one read of the database may wait for a writer's commit.
BUSY_SECONDS = 0.25
#: How long it may take altogether; 100,000 winners take a tenth of it.
READ_SECONDS = 2.0


@dataclass(frozen=True)
class Winner:
    """A row of the view ``best``, as read."""

    problem: Problem
    source: str
    config: Config
    median_ms: float
    protocol: str
    triton: str


#: (kernel, device) -> its rows of the view ``best``, in a fixed order.
Rows: TypeAlias = Mapping[tuple[str, str], list[tuple[Any, ...]]]


def decide(loaded: Loaded, problem: Problem, device: Device, winners: tuple[Winner, ...]) -> Choice:
    """What to launch for ``problem``. Pure: the same winners give every process the same choice."""
    space = loaded.space
    notes = []
    for winner in winners:
        if winner.problem == problem:
            why_not = _unusable(winner, loaded, problem, device)
            if why_not is None:
                return Choice(winner.config, "tuned", f"measured {winner.median_ms:.4g} ms ({winner.protocol})")
            notes.append(f"the winner of this problem {why_not}")
    near = [
        (distance, winner)
        for winner in winners
        if winner.problem != problem and (distance := _distance(loaded, problem, winner.problem)) is not None
    ]
    for distance, winner in sorted(near, key=lambda pair: (pair[0], str(pair[1].problem), str(pair[1].config))):
        text = str(winner.problem)
        why_not = _unusable(winner, loaded, problem, device)
        if why_not is None:
            why = f"tuned for {text}, {2**distance:.3g}x away in size"
            return Choice(winner.config, "nearest", "; ".join([why, *notes]))
        notes.append(f"the winner of {text} {why_not}")
    notes.append(_misses(loaded, problem, winners) if winners else f"nothing is tuned on {device.key}")
    return Choice(space.default(problem, device), "default", "; ".join(notes[:3]))


def _unusable(winner: Winner, loaded: Loaded, problem: Problem, device: Device) -> str | None:
    if winner.source != loaded.source:
        return "was measured on other kernel code"
    why_not = loaded.space.why_not(winner.config, problem, device)
    return None if why_not is None else f"is not allowed here: {why_not}"


def _distance(loaded: Loaded, a: Problem, b: Problem) -> float | None:
    """Sum of |log2| of the sizes' ratios; None if another field differs or a size is too far off."""
    sizes = loaded.kernel.sizes
    if _traits(a, sizes) != _traits(b, sizes):
        return None
    total, limit = 0.0, math.log2(NEAREST_FACTOR)
    for known in loaded.kernel.fields:
        if known.kind == "size":
            one, other = (problem.integer(known.name, _size(known.default)) for problem in (a, b))
            apart = abs(math.log2(max(1, one) / max(1, other)))
            if apart > limit or (one == 0) != (other == 0):
                return None
            total += apart
    return total if total <= 3 * limit else None


def _size(default: Any) -> int | None:
    return default if isinstance(default, int) else None


def _traits(problem: Problem, sizes: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in problem.items() if name not in sizes}


def _misses(loaded: Loaded, problem: Problem, winners: tuple[Winner, ...]) -> str:
    """By which fields the closest tuned problem differs."""

    def differing(winner: Winner) -> list[str]:
        return [
            f"{known.name}={winner.problem.get(known.name, known.default)}"
            for known in loaded.kernel.fields
            if winner.problem.get(known.name, known.default) != problem.get(known.name, known.default)
        ]

    closest = min(winners, key=lambda winner: (len(differing(winner)), str(winner.problem)))
    return f"no tuned problem is near; the closest has {', '.join(differing(closest)) or 'the same fields'}"


def read_rows(path: Path) -> Rows:
    """The view ``best``, as it is.

    :raises sqlite3.Error, OSError, ValueError: if the file is missing or can't be read in READ_SECONDS.
    """
    if not path.is_file():
        raise FileNotFoundError("no such file")
    found: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    uri = f"{path.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection:
        end = time.monotonic() + READ_SECONDS
        # A hostile view may never end: look at the clock every so many steps of SQLite's machine.
        connection.set_progress_handler(lambda: time.monotonic() > end, 100_000)
        rows = connection.execute(
            "select kernel, device, problem, source, config, median_ms, protocol, triton from best "
            "order by kernel, device, problem, protocol"
        )
        for kernel, device, *row in rows:
            found.setdefault((kernel, device), []).append(tuple(row))
    return found


def winners_of(loaded: Loaded, device: Device, rows: Rows) -> tuple[Winner, ...]:
    """The rows of one kernel on one device that are in order; nothing read from a file is trusted."""
    winners = []
    for problem, source, config, median_ms, protocol, triton in rows.get((loaded.name, device.key), ()):
        # Not rows that this version writes.
        with suppress(UsageError, TypeError, ValueError, AttributeError, RecursionError):
            known = loaded.kernel.parse(problem)
            if 0 < median_ms < math.inf:
                winners.append(
                    Winner(known, str(source), Config.parse(config), median_ms, str(protocol), str(triton))
                )
    return tuple(winners)


# What the memo look-up raises: KeyError for what is new, the others for arguments that are no such tensors.
_NOT_KNOWN = (KeyError, AttributeError, TypeError, RuntimeError)


@dataclass
class Dispatcher:
    """Choices of one process for one database. Thread-safe: a memo entry is written once, whole."""

    path: Path | None = None
    #: Kernel name -> its key function, and what was decided for each key.
    known: dict[str, tuple[Kernel, dict[Hashable, Choice]]] = field(default_factory=dict)
    _rows: Rows | None = None
    _winners: dict[tuple[str, str], tuple[Winner, ...]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, name: str, /, *args: Any, **kwargs: Any) -> Choice:
        try:
            kernel, memo = self.known[name]
            return memo[kernel.key(*args, **kwargs)]
        except _NOT_KNOWN:
            return self._decide(name, args, kwargs)

    def run(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        choice = self.choose(name, *args, **kwargs)
        kernel, _ = self.known[name]
        if choice.source != "reference":
            return kernel.run(choice.config, *args, **kwargs)
        import torch

        # As a kernel's result, which has no history either; operators add their gradient above this.
        with torch.no_grad():
            return kernel.reference(*args, **kwargs)

    def _decide(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Choice:
        loaded = registry.load(name)
        kernel, memo = self.known.setdefault(name, (loaded.kernel, {}))
        choice = self._choice(loaded, args, kwargs)
        # Arguments that have no key are of no use: torch's reference will say so when it runs.
        with suppress(*_NOT_KNOWN):
            memo[kernel.key(*args, **kwargs)] = choice
        return choice

    def _choice(self, loaded: Loaded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Choice:
        import torch  # late: `import autotune` must load neither torch nor Triton

        from autotune import device

        first = next(iter((*args, *kwargs.values())), None)
        if not isinstance(first, torch.Tensor):
            raise UsageError(f"{loaded.name} got a {type(first).__name__} where it takes a tensor first")
        where = device.of(first)
        if where.arch == "cpu":
            return _torch("the tensors are on a CPU and TRITON_INTERPRET is not set")
        try:
            problem = loaded.kernel.problem(*args, **kwargs)
        except ValueError as error:
            # The kernel can't; torch may. If torch can't either, its reference says so when it runs.
            return _torch(str(error))
        except (AttributeError, TypeError) as error:
            kinds = ", ".join(type(value).__name__ for value in (*args, *kwargs.values()))
            raise UsageError(f"{loaded.name} can't take ({kinds}): {error}") from error
        return self.explain(loaded, problem, where)

    def explain(self, loaded: Loaded, problem: Problem, where: Device) -> Choice:
        if where.arch == "cpu":
            return _torch("this machine has no GPU and TRITON_INTERPRET is not set")
        return decide(loaded, problem, where, self.winners(loaded, where))

    def winners(self, loaded: Loaded, where: Device) -> tuple[Winner, ...]:
        """What the database has for a kernel on a device; nothing, with one warning, if it can't be read."""
        with self._lock:
            if self._rows is None:
                path = locate.for_reading(self.path)
                try:
                    self._rows = read_rows(path)
                except (sqlite3.Error, OSError, ValueError) as error:
                    self._rows = {}
                    warnings.warn(
                        f"autotune: no winners from {path} ({error}); default configs are used. "
                        "Check the file, or name another with autotune.use(path)",
                        RuntimeWarning,
                        stacklevel=2,
                    )
            key = (loaded.name, where.key)
            if key not in self._winners:
                self._winners[key] = winners_of(loaded, where, self._rows)
            return self._winners[key]


def _torch(why: str) -> Choice:
    return Choice(Config(), "reference", f"torch computes it: {why}")


_dispatcher = Dispatcher()


def use(path: str | Path | None) -> None:
    """Read winners from this database from now on; None: from the usual places again."""
    global _dispatcher
    # Absolute: a program may change its directory before its first call.
    _dispatcher = Dispatcher(None if path is None else Path(path).absolute())


def forget() -> None:
    """Read the database again at the next call: it has changed."""
    use(_dispatcher.path)


def choose(kernel: str, /, *args: Any, **kwargs: Any) -> Config:
    """The config that :func:`run` would launch for these arguments. A memo look-up when they are known.

    Empty where torch computes it (:func:`explain` says why).

    :raises UsageError: if no kernel has this name.
    """
    # The hot path, about a microsecond and a half: written out here, since each call in between costs 0.1 us.
    try:
        known, memo = _dispatcher.known[kernel]
        return memo[known.key(*args, **kwargs)].config
    except _NOT_KNOWN:
        return _dispatcher.choose(kernel, *args, **kwargs).config


def run(kernel: str, /, *args: Any, **kwargs: Any) -> Any:
    """Launch ``kernel`` on ``args`` with the config of choice; the result, a new tensor.

    Not differentiable: that is what ``autotune.ops`` is for.

    :raises UsageError: if no kernel has this name.
    :raises ValueError: if the arguments don't fit together.
    """
    return _dispatcher.run(kernel, *args, **kwargs)


def explain(kernel: str, /, *args: Any, device: Device | None = None, **kwargs: Any) -> Choice:
    """What dispatch would launch, where that comes from, and why.

    :param args: the kernel's arguments, or one problem (text or :class:`~autotune.data.Problem`)
    :param device: for a problem: the device, default the one present
    :raises UsageError: on an unknown kernel or a bad problem.
    """
    loaded = registry.load(kernel)
    if len(args) != 1 or not isinstance(args[0], str | Problem):
        return _dispatcher.choose(kernel, *args, **kwargs)
    problem = loaded.kernel.parse(str(args[0]))
    return _dispatcher.explain(loaded, problem, device or _here())


def _here() -> Device:
    import torch

    from autotune import device as devices

    if devices.interpreting():
        return devices.INTERPRETER
    return devices.present() if torch.cuda.is_available() else devices.CPU
