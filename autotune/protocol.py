"""How a time is taken and what it is ranked by; times of two protocols are never compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy

from autotune.data import UsageError

#: ``wall``: the host's clock around a call of an interpreted kernel. ``native``: around a call of anything else.
#: ``cudagraph``: replays of a CUDA graph, without launch cost. ``eager``: one launch at a time.
Clock: TypeAlias = Literal["cudagraph", "eager", "wall", "native"]
Objective: TypeAlias = Literal["throughput", "latency"]

#: Whoever changes how a time is taken raises this: older times don't compare with newer ones then.
VERSION = 2

#: What the first version called its two protocols, as they would be called now.
_FIRST: Mapping[str, str] = {"wall-1": "wall-throughput-1", "cudagraph-coldL2-1": "cudagraph-throughput-1"}
_SPELLED = re.compile(r"([a-z]+)-(throughput|latency)-([0-9]{1,9})")


@dataclass(frozen=True)
class Protocol:
    """A clock and an objective. ``str(protocol)`` is its one spelling: ``cudagraph-throughput-2``.

    :raises UsageError: if one of the words is unknown, or latency is asked of a graph, which has no launch cost.
    """

    clock: Clock
    objective: Objective

    def __post_init__(self) -> None:
        for word, known in ((self.clock, get_args(Clock)), (self.objective, get_args(Objective))):
            if word not in known:
                raise UsageError(f"protocol has {word!r}; use one of {', '.join(known)}")
        if (self.clock, self.objective) == ("cudagraph", "latency"):
            raise UsageError("a latency contains its launch, a replayed graph does not; use the eager clock")

    def __str__(self) -> str:
        return f"{self.clock}-{self.objective}-{VERSION}"

    @classmethod
    def parse(cls, text: str) -> Protocol:
        """:raises UsageError: if ``text`` is not a protocol of this version."""
        for clock in get_args(Clock):
            for objective in get_args(Objective):
                if text == f"{clock}-{objective}-{VERSION}":
                    return cls(clock, objective)
        raise UsageError(
            f"protocol {text[:80]!r} is not CLOCK-OBJECTIVE-{VERSION}, such as wall-throughput-{VERSION}"
        )

    @property
    def quantile(self) -> float:
        """Of the samples, the score. A tail for latency: a server's slow answers are the ones noticed."""
        return 0.5 if self.objective == "throughput" else 0.95

    def score(self, samples_ms: Sequence[float]) -> float:
        """Milliseconds to rank by, from at least one sample; between samples where the quantile falls between."""
        return float(numpy.quantile(samples_ms, self.quantile))


def objective_of(text: str) -> Objective:
    """What rows of this protocol are ranked by, be it of this version, an older one or a recorded table's.

    :raises UsageError: if ``text`` names no protocol.
    """
    return "latency" if _parts(text)[1] == "latency" else "throughput"


def preference(text: str) -> tuple[int, int]:
    """Sorts protocols of one objective: the newest version first, then by clock: graphs before single launches.

    :raises UsageError: if ``text`` names no protocol.
    """
    clock, _, version = _parts(text)
    clocks = get_args(Clock)
    # A recorded table's has none of these.
    return -int(version), clocks.index(clock) if clock in clocks else len(clocks)


def _parts(text: str) -> tuple[str, str, str]:
    match = _SPELLED.fullmatch(_FIRST.get(text, text))
    if match is None:
        raise UsageError(
            f"protocol {text[:80]!r} is not CLOCK-OBJECTIVE-VERSION, such as wall-throughput-{VERSION}"
        )
    return match.group(1), match.group(2), match.group(3)


def of_provider(text: str) -> str:
    """How a provider's time is taken where candidates' are by the protocol called ``text``.

    The interpreter slows kernels down a thousandfold, and torch not at all: there the two don't compare.

    >>> of_provider("wall-throughput-2"), of_provider("cudagraph-throughput-2")
    ('native-throughput-2', 'cudagraph-throughput-2')
    """
    return f"native-{text.removeprefix('wall-')}" if text.startswith("wall-") else text


def is_native(text: str) -> bool:
    """Whether times by the protocol called ``text`` compare with no kernel's, as :func:`of_provider` says."""
    return text.startswith("native-")


def protocol_at(where: str, objective: Objective = "throughput", *, eager: bool = False) -> Protocol:
    """The protocol for a torch device, ``cpu`` or ``cuda:0``.

    Throughput on a GPU replays graphs, as inference engines do; ``eager`` asks for single launches instead.
    Latency on a GPU is always of single launches, their cost on the host included.
    """
    if where == "cpu":
        return Protocol("wall", objective)
    return Protocol("eager" if eager or objective == "latency" else "cudagraph", objective)
