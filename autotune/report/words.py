"""How the report says a number, a protocol and who proposed a trial."""

from __future__ import annotations

from autotune.data import UsageError
from autotune.protocol import objective_of

_CLOCKS = {
    "wall": "wall time of a call",
    "cudagraph": "replays of a CUDA graph, without launch cost",
    "eager": "one launch at a time, launch cost included",
}


def milliseconds(value: float | None) -> str:
    """Four digits that count, and never a power of ten for a long time; ``-`` for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:#.4g}"


def gain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def duration(seconds: float) -> str:
    """``not recorded`` for 0: files older than this column have nothing in it."""
    if not seconds:
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def clock(protocol: str) -> str:
    """How a protocol takes a time, in words; the protocol itself if it is not known."""
    return _CLOCKS.get(protocol.partition("-")[0], protocol)


def statistic(protocol: str) -> str:
    """What a protocol's times are: of the samples, which."""
    try:
        return "95th percentile" if objective_of(protocol) == "latency" else "median"
    except UsageError:
        return "score"


def proposer(origin: object) -> str:
    """Who proposed a trial, from its provenance."""
    words = {"default": "the default", "seed": "the seeds", "search": "the search", "provider": "a provider"}
    return words.get(str(origin), "not recorded")
