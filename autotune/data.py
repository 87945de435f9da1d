"""The nouns every other module speaks: frozen, hashable, checked when they are made.

Imports nothing but the standard library, so that a search space, a kernel or a test can use them
without pulling in torch, Triton or a database.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Literal, TypeAlias

from autotune.rung import Resources, Rung

Value: TypeAlias = int | bool | str

#: Bytes per element of the dtypes a problem may name.
ITEMSIZE: Mapping[str, int] = {
    **{"float16": 2, "bfloat16": 2, "float32": 4},
    **{"float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1, "int32": 4},
}
#: Those that every kernel takes, unless it says otherwise.
FLOATS = ("float16", "bfloat16", "float32")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_INTEGER = re.compile(r"-?[0-9]+")


class AutotuneError(Exception):
    """Something the caller can act on. The message is one line: the value, the rule, the way out."""


class UsageError(AutotuneError, ValueError):
    """The request itself is wrong: an unknown kernel, a malformed problem, a target that is not there."""


class _Record(Mapping[str, Value]):
    """A frozen mapping of names to numbers, flags and words; equality ignores order but not type."""

    __slots__ = ("_hash", "_values")
    _what: ClassVar[str]

    def __init__(self, values: Mapping[str, Value] | None = None, /, **more: Value) -> None:
        self._values: dict[str, Value] = {**(values or {}), **more}
        for name, value in self._values.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise UsageError(f"{self._what} has a field named {name!r}; a name is a Python identifier")
            if type(value) not in (int, bool, str):
                raise UsageError(
                    f"{self._what} field {name}={value!r} is a {type(value).__name__}; use an int, a bool or a str"
                )
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise UsageError(f"{self._what} field {name}={value} does not fit 64 bits")
        # bool is an int to Python, and True == 1: the type belongs to the identity.
        self._hash = hash(frozenset((name, type(value), value) for name, value in self._values.items()))

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self._values == other._values and all(
            type(value) is type(other._values[name]) for name, value in self._values.items()
        )

    def integer(self, name: str, default: int | None = None) -> int:
        """The int called ``name``; for callers that need arithmetic, and mypy to know it."""
        value = self._values.get(name, default)
        if type(value) is not int:
            raise UsageError(f"{self._what} {self} needs an integer {name}, got {value!r}")
        return value


class Config(_Record):
    """One point of a search space. ``num_warps`` and ``num_stages`` are entries like any other.

    ``str(config)`` is canonical JSON with sorted keys, its one spelling in the database.
    """

    _what = "config"

    def __str__(self) -> str:
        return json.dumps(self._values, sort_keys=True, separators=(",", ":"))

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in sorted(self._values.items()))})"

    @property
    def provider(self) -> str | None:
        """The name in ``provider=NAME``, a config that launches no kernel (:class:`~autotune.kernel.Provider`)."""
        name = self._values.get("provider")
        return name if isinstance(name, str) else None

    @classmethod
    def parse(cls, text: str) -> Config:
        """:raises UsageError: if ``text`` is not a JSON object of ints, bools and strings."""
        try:
            values = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise UsageError(f'config {str(text)[:200]!r} is not a JSON object such as {{"BLOCK_M":64}}')
        return cls(values)


class Problem(_Record):
    """What a kernel is asked to compute: sizes, dtype and the traits that change the compiled code.

    ``str(problem)`` is its one spelling: ``M=4096,N=4096,K=4096,dtype=float16``. A field at its default is
    left out. A kernel gives its problems one order of fields (:meth:`autotune.kernel.Kernel.parse`).
    """

    _what = "problem"

    def __str__(self) -> str:
        return ",".join(
            f"{name}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in self._values.items()
        )

    def __repr__(self) -> str:
        return f"Problem({str(self)!r})"

    @classmethod
    def parse(cls, text: str) -> Problem:
        """``name=value`` pairs joined by commas; integers, ``true``/``false`` and words.

        :raises UsageError: on a malformed pair or a repeated name.
        """
        values: dict[str, Value] = {}
        for pair in text.strip().split(","):
            name, equals, value = (part.strip() for part in pair.partition("="))
            if not equals or not _NAME.fullmatch(name) or not value:
                raise UsageError(
                    f"problem {text[:200]!r}: {pair[:40]!r} is not name=value; write M=64,N=64,K=64,dtype=float16"
                )
            if name in values:
                raise UsageError(f"problem {text[:200]!r} gives {name} twice")
            if value in ("true", "false"):
                values[name] = value == "true"
            elif _INTEGER.fullmatch(value):
                values[name] = int(value[:21])  # longer ones are out of range whatever their digits
            elif _WORD.fullmatch(value):
                values[name] = value
            else:
                raise UsageError(
                    f"problem {text[:200]!r}: {name}={value[:40]!r} is neither an integer, a flag nor a word"
                )
        return cls(values)


@dataclass(frozen=True)
class Device:
    """Facts of one accelerator that spaces, constraints and the database need.

    Its identity, :attr:`key`, is never the architecture alone (an H200 is not an H100) and never the
    marketing name alone (one name is sold with several core counts and memories).
    """

    name: str
    #: ``sm_90``, ``gfx942``; ``interpreter`` for Triton's interpreter, ``cpu`` where no kernel can run.
    arch: str
    sm_count: int
    #: Dynamic shared memory (LDS on AMD) one block may ask for.
    shared_bytes_per_block: int
    memory_bytes: int
    l2_bytes: int
    warp_size: int = 32
    #: The CUDA version the driver supports, or HIP's version.
    driver: str = ""

    @property
    def key(self) -> str:
        if self.arch in ("interpreter", "cpu"):
            return self.arch
        # To 4 GiB: what a driver keeps for itself varies, the card does not.
        memory_gib = 4 * round(self.memory_bytes / 2**32)
        return f"{self.arch}/{self.sm_count}sm/{memory_gib}GiB/{self.name}"


class Reason(str, Enum):
    """Why a candidate has no time."""

    #: The compiler refused it.
    COMPILE = "COMPILE"
    #: It needs more shared memory or registers than the device has.
    RESOURCES = "RESOURCES"
    #: It crashed, or raised, while running.
    RUNTIME = "RUNTIME"
    #: Its result is not the reference's.
    WRONG = "WRONG"
    #: It did not finish in the time it was given.
    TIMEOUT = "TIMEOUT"


@dataclass(frozen=True)
class Timing:
    """A measured time. ``protocol`` names how it was measured; times of two protocols don't compare."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    n: int
    protocol: str
    #: What the protocol's objective ranks by, if not the median: a tail quantile, for latency; for configs timed
    #: in turns for throughput, the fastest's median times how much slower this one was in the same rounds.
    score_ms: float | None = None
    #: 95 % interval of the score, for configs timed in turns with the other fastest: both or neither.
    low_ms: float | None = None
    high_ms: float | None = None
    #: The fastest's score for all that can't be told apart from it, else the config's own; ties are equal here.
    rank_ms: float | None = None

    @property
    def score(self) -> float:
        """Milliseconds to compare with those of other configs."""
        return self.median_ms if self.score_ms is None else self.score_ms

    @property
    def rank(self) -> float:
        """Like :attr:`score`, with configs that can't be told apart on one value."""
        return self.score if self.rank_ms is None else self.rank_ms

    def __post_init__(self) -> None:
        if not (0 < self.p20_ms <= self.median_ms <= self.p80_ms < math.inf) or self.n < 1:
            raise UsageError(f"0 < p20_ms <= median_ms <= p80_ms < inf and n >= 1 must hold, got {self}")
        low_ms = self.score if self.low_ms is None else self.low_ms
        high_ms = self.score if self.high_ms is None else self.high_ms
        if (self.low_ms is None) != (self.high_ms is None) or not 0 < low_ms <= self.score <= high_ms < math.inf:
            raise UsageError(f"0 < low_ms <= score <= high_ms < inf must hold, with both or neither, got {self}")
        if not 0 < self.rank <= self.score:
            raise UsageError(f"0 < rank_ms <= score must hold, got {self}")


@dataclass(frozen=True)
class Failure:
    """A candidate without a time, and why; an expected outcome, not an exception."""

    reason: Reason
    detail: str
    protocol: str


Outcome: TypeAlias = Timing | Failure


@dataclass(frozen=True)
class Trial:
    """One row of the database: what was asked, of whom, and what came of it."""

    kernel: str
    source: str
    problem: Problem
    device: str
    config: Config
    outcome: Outcome
    target: str
    triton: str
    torch: str
    #: UTC, ISO 8601.
    created_at: str
    driver: str = ""
    #: What else is worth keeping (who proposed it, seed, host): JSON-able.
    provenance: Mapping[str, str | int] = field(default_factory=dict)
    #: Where on the ladder the outcome was settled, and the seconds spent on each rung up to there.
    rung: Rung | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    resources: Resources | None = None
    #: The config that was measured in its place: both compile to the same code.
    same_as: Config | None = None

    def __hash__(self) -> int:
        return hash((self.kernel, self.source, self.problem, self.device, self.config, self.outcome))


Source: TypeAlias = Literal["tuned", "nearest", "predicted", "default", "reference"]


@dataclass(frozen=True)
class Choice:
    """What dispatch launches, where it comes from and why; for ``reference``, torch, ``config`` is empty."""

    config: Config
    source: Source
    why: str
