"""What the operator benchmarks found for one problem, as JSON and as a line of a table."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autotune.data import Choice, Config, Failure, Outcome, Problem, Timing
from autotune.kernel import Work
from autotune.spelling import short


@dataclass(frozen=True)
class Row:
    """Ours and torch's, timed in turns."""

    #: The list that the problem is of.
    name: str
    kernel: str
    problem: Problem
    work: Work
    #: What dispatch serves, and where that is from.
    choice: Choice
    default_config: Config
    tuned: Outcome
    default: Outcome
    #: Column -> outcome.
    peers: Mapping[str, Outcome]

    @property
    def peer_ms(self) -> float | None:
        """Of the fastest peer that ran."""
        return min((outcome.score for outcome in self.peers.values() if isinstance(outcome, Timing)), default=None)

    @property
    def speed_up(self) -> float | None:
        """The fastest peer's time over ours; None where either has none."""
        peer_ms = self.peer_ms
        return None if peer_ms is None or isinstance(self.tuned, Failure) else peer_ms / self.tuned.score

    def over(self, peer: str) -> float | None:
        """That peer's time over ours; None where either has none."""
        theirs = self.peers.get(peer)
        if not isinstance(theirs, Timing) or not isinstance(self.tuned, Timing):
            return None
        return theirs.score / self.tuned.score

    def json(self) -> dict[str, Any]:
        return {
            **{"list": self.name, "kernel": self.kernel, "problem": str(self.problem), **asdict(self.work)},
            **{"config": dict(self.choice.config), "source": self.choice.source, "why": self.choice.why},
            **{"default_config": dict(self.default_config), "speed_up": self.speed_up},
            **{"tuned": asdict(self.tuned), "default": asdict(self.default)},
            "peers": {name: asdict(outcome) for name, outcome in self.peers.items()},
        }


def table(rows: Sequence[Row]) -> str:
    """A line a problem. Rates are ours; ``speed-up`` is the fastest peer's time over ours, above 1 where we win."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row.peers))
    heads = ("problem", "config", "from", "tuned ms", "default ms", *(f"{peer} ms" for peer in peers))
    lines = [(*heads, "TFLOP/s", "GB/s", "speed-up")]
    for row in rows:
        times = (_ms(outcome) for outcome in (row.tuned, row.default, *(row.peers.get(peer) for peer in peers)))
        lines.append(
            (
                *(str(row.problem), short(row.choice.config), row.choice.source, *times),
                *(_rate(row.work.flops, row.tuned, 1e12), _rate(row.work.bytes, row.tuned, 1e9)),
                "-" if row.speed_up is None else f"{row.speed_up:.3g}x",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        [cell.ljust(width) if place < 3 else cell.rjust(width) for place, (cell, width) in enumerate(cells)]
        for cells in (zip(line, widths, strict=True) for line in lines)
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def _ms(outcome: Outcome | None) -> str:
    return f"{outcome.score:.4g}" if isinstance(outcome, Timing) else "-"


def _rate(amount: int, outcome: Outcome, unit: float) -> str:
    return f"{amount / (outcome.score * 1e-3) / unit:.3g}" if isinstance(outcome, Timing) else "-"


def summary(rows: Sequence[Row]) -> str:
    """A line a list: the geometric mean of the speed-ups, the least, and the mean over each of several peers."""
    return "\n".join(_of_list(name, [row for row in rows if row.name == name]) for name in _names(rows))


def _names(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.name for row in rows))


def _of_list(name: str, rows: Sequence[Row]) -> str:
    compared = {row.problem: row.speed_up for row in rows if row.speed_up is not None}
    if not compared:
        return f"{name}: none of {len(rows)} problems could be compared"
    worst = min(compared, key=compared.__getitem__)
    told = (
        f"{name}: {_mean(compared.values()):.3g}x the speed of the fastest peer in the geometric mean, "
        f"worst {compared[worst]:.3g}x at {worst}; {len(compared)} of {len(rows)} problems compared"
    )
    by_peer = {
        peer: [row.over(peer) for row in rows] for peer in dict.fromkeys(peer for row in rows for peer in row.peers)
    }
    each = {peer: [ratio for ratio in ratios if ratio is not None] for peer, ratios in by_peer.items()}
    if len(each) == 1:
        return told
    means = (f"{peer} {_mean(ratios):.3g}x of {len(ratios)}" for peer, ratios in each.items() if ratios)
    return f"{told}; by peer: {', '.join(means)}"


def _mean(ratios: Collection[float]) -> float:
    """Geometric."""
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
