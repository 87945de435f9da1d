"""What became of one candidate: its outcome, and how far up the ladder it took to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.data import Config, Outcome, Trial
from autotune.rung import Resources, Rung


@dataclass(frozen=True)
class Measured:
    """One candidate's way up the ladder."""

    outcome: Outcome
    #: The rung that settled the outcome.
    rung: Rung
    #: Seconds spent on each rung, by the rung's value: ``{"verify": 0.8, "timing": 0.1}``.
    seconds: Mapping[str, float] = field(default_factory=dict)
    resources: Resources | None = None
    #: The config that was measured in its place, if both compile to the same code.
    same_as: Config | None = None
    #: The trial that answered, where nothing ran: its row is kept as it is, with its own source and date.
    recorded: Trial | None = None
