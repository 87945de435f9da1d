"""Shapes in, config out, launch. Never tunes, never writes, never fails because of the database.

The hot path is one memo look-up per call. A miss decides: the winner of this very problem, else that of a
near one, else the space's default. The database is read once, into a dict; what it says is used only if the
live space allows it for this problem on this device.
"""

from __future__ import annotations

import sqlite3
import threading
import warnings
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from autotune import locate, registry
from autotune.break_even import break_even
from autotune.data import Choice, Config, Device, Problem, UsageError
from autotune.decide import decide, refusal
from autotune.kernel import Kernel
from autotune.protocol import Objective
from autotune.registry import Loaded
from autotune.winners import Rows, Winner, read_rows, winners_of

if TYPE_CHECKING:
    import torch

# What the memo look-up raises: KeyError for what is new, the others for arguments that are no such tensors.
_NOT_KNOWN = (KeyError, AttributeError, TypeError, RuntimeError)


@dataclass
class Dispatcher:
    """Choices of one process for one database. Thread-safe: a memo entry is written once, whole."""

    path: Path | None = None
    #: Which winners are served: those of training (throughput) or of answering (latency).
    objective: Objective = "throughput"
    #: Kernel name -> its key function, and what was decided for each key.
    known: dict[str, tuple[Kernel, dict[Hashable, Choice]]] = field(default_factory=dict)
    _rows: Rows | None = None
    _winners: dict[tuple[str, str], tuple[Winner, ...]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, name: str, /, *args: Any, **kwargs: Any) -> Choice:
        try:
            kernel, memo = self.known[name]
            return memo[kernel.key(*args, **kwargs)]
        except _NOT_KNOWN:
            return self._decide(name, args, kwargs)

    def run(self, name: str, /, *args: Any, out: torch.Tensor | None = None, **kwargs: Any) -> Any:
        choice = self.choose(name, *args, **kwargs)
        kernel, _ = self.known[name]
        provider = choice.config.provider
        if choice.source != "reference" and provider is None:
            # Few kernels take one.
            return kernel.run(choice.config, *args, **kwargs, **({} if out is None else {"out": out}))
        import torch

        in_torch = kernel.reference if provider is None else kernel.providers[provider].run
        # As a kernel's result, which has no history either; operators add their gradient above this.
        with torch.no_grad():
            result = in_torch(*args, **kwargs)
        if provider is None:
            # Only now is it known that torch can: a mistake must not decide for right calls that have the same key.
            self._keep(name, choice, args, kwargs)
        return result if out is None else out.copy_(result)

    def _decide(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Choice:
        loaded = registry.load(name)
        self.known.setdefault(name, (loaded.kernel, {}))
        choice, certain = self._choice(loaded, args, kwargs)
        if certain:
            self._keep(name, choice, args, kwargs)
        return choice

    def _keep(self, name: str, choice: Choice, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kernel, memo = self.known[name]
        # Arguments that have no key are of no use: torch's reference says so when it runs.
        with suppress(*_NOT_KNOWN):
            memo[kernel.key(*args, **kwargs)] = choice

    def _choice(self, loaded: Loaded, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Choice, bool]:
        """What to launch, and whether it is so for all arguments of this key."""
        import torch  # late: `import autotune` must load neither torch nor Triton

        from autotune import device

        first = next(iter((*args, *kwargs.values())), None)
        if not isinstance(first, torch.Tensor):
            raise UsageError(f"{loaded.name} got a {type(first).__name__} where it takes a tensor first")
        where = device.of(first)
        if where.arch == "cpu":
            return _torch("the tensors are on a CPU and TRITON_INTERPRET is not set"), True
        try:
            problem = loaded.kernel.problem(*args, **kwargs)
        except ValueError as error:
            # The kernel can't; torch may. If torch can't either, its reference says so when it runs.
            return _torch(str(error)), False
        except (AttributeError, TypeError) as error:
            kinds = ", ".join(type(value).__name__ for value in (*args, *kwargs.values()))
            raise UsageError(f"{loaded.name} can't take ({kinds}): {error}") from error
        return self.explain(loaded, problem, where), True

    def explain(self, loaded: Loaded, problem: Problem, where: Device) -> Choice:
        if where.arch == "cpu":
            return _torch("this machine has no GPU and TRITON_INTERPRET is not set")
        why = loaded.space.unsupported(problem, where)
        if why is not None:
            return _torch(why)
        winners = self.winners(loaded, where)
        refused = refusal(loaded, problem, where, winners)
        if refused is not None and loaded.name not in self._told:
            self._told.add(loaded.name)  # once a kernel: after a change of its code every winner is stale
            path = locate.for_reading(self.path)
            self._warn(f"{loaded.name} {problem} in {path}: {refused}; it is not used. Tune again")
        return decide(loaded, problem, where, winners)

    def explain_fully(self, loaded: Loaded, problem: Problem, where: Device) -> Choice:
        """Like :meth:`explain`, with what is recorded of the break-even between the kernel and its providers."""
        choice = self.explain(loaded, problem, where)
        if choice.source == "reference":
            return choice  # there is nothing to choose
        try:
            told = break_even(loaded, problem, where, locate.for_reading(self.path), self.objective)
        except (sqlite3.Error, OSError, ValueError):
            told = None  # winners() has said so
        return choice if told is None else replace(choice, why=f"{choice.why}; {told}")

    def _warn(self, message: str) -> None:
        warnings.warn(f"autotune: {message}", RuntimeWarning, stacklevel=3)

    def winners(self, loaded: Loaded, where: Device) -> tuple[Winner, ...]:
        """What the database has for a kernel on a device; nothing, with one warning, if it can't be read."""
        with self._lock:
            if self._rows is None:
                path = locate.for_reading(self.path)
                try:
                    self._rows = read_rows(path)
                except (sqlite3.Error, OSError, ValueError) as error:
                    self._rows = {}
                    if path != locate.SHIPPED:  # which nobody asked for by name
                        self._warn(
                            f"no winners from {path} ({error}); default configs are used. "
                            "Check the file, or name another with autotune.use(path)"
                        )
            key = (loaded.name, where.key)
            if key not in self._winners:
                self._winners[key] = winners_of(loaded, where, self._rows, self.objective)
            return self._winners[key]


def _torch(why: str) -> Choice:
    return Choice(Config(), "reference", f"torch computes it: {why}")


_dispatcher = Dispatcher()


def use(path: str | Path | None, objective: Objective = "throughput") -> None:
    """Read winners from this database from now on; None: from the usual places again.

    :param objective: ``latency`` serves what was tuned with that objective, where something was
    :raises UsageError: if there is no such objective.
    """
    global _dispatcher
    if objective not in get_args(Objective):
        raise UsageError(f"objective is {objective!r}; use one of {', '.join(get_args(Objective))}")
    # Absolute: a program may change its directory before its first call.
    _dispatcher = Dispatcher(None if path is None else Path(path).absolute(), objective)


def forget() -> None:
    """Read the database again at the next call: it has changed."""
    use(_dispatcher.path, _dispatcher.objective)


def choose(kernel: str, /, *args: Any, **kwargs: Any) -> Config:
    """The config that :func:`run` would launch for these arguments. A memo look-up when they are known.

    Empty where torch computes it (:func:`explain` says why).

    :raises UsageError: if no kernel has this name.
    """
    # The hot path, about two microseconds: written out here, since each call in between costs 0.1 us.
    try:
        known, memo = _dispatcher.known[kernel]
        return memo[known.key(*args, **kwargs)].config
    except _NOT_KNOWN:
        return _dispatcher.choose(kernel, *args, **kwargs).config


def run(kernel: str, /, *args: Any, **kwargs: Any) -> Any:
    """Launch ``kernel`` on ``args`` with the config of choice; the result, a new tensor or a tuple of them.

    :param out: where the kernel takes it: the tensor that gets the result

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
        choice = _dispatcher.choose(kernel, *args, **kwargs)
        if choice.source == "reference":
            return choice
        return _dispatcher.explain_fully(loaded, loaded.kernel.problem(*args, **kwargs), device or _here())
    problem = loaded.kernel.parse(str(args[0]))
    return _dispatcher.explain_fully(loaded, problem, device or _here())


def _here() -> Device:
    import torch

    from autotune import device as devices

    if devices.interpreting():
        return devices.INTERPRETER
    return devices.present() if torch.cuda.is_available() else devices.CPU
