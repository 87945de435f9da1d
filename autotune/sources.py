"""Which trials of the database teach something about a problem that has none: those of problems near it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

from autotune.data import Config, Device, Outcome, Problem, Timing, UsageError
from autotune.protocol import objective_of
from autotune.registry import Loaded
from autotune.search import Experience
from autotune.store import Group, Store

#: Sources taken at most, the nearest: each costs the surrogate's start about half a second.
MOST = 4
#: Timed trials that a source needs.
FEWEST = 8
#: Doublings of a size that another device, other code or another trait are as far as.
OTHER_DEVICE, OTHER_CODE, OTHER_TRAIT = 2.0, 0.5, 4.0


def experience(store: Store, loaded: Loaded, problem: Problem, device: Device, protocol: str) -> list[Experience]:
    """Trials of the same kernel on other problems, devices or code, nearest first.

    Of one objective, and of one kind of device: the interpreter's times say nothing of a GPU.
    """
    own = Group(loaded.source, problem, device.key, protocol)
    near: list[tuple[float, str, Group]] = []
    for group, timed in store.groups(loaded.name).items():
        comparable = (group.device == "interpreter") == (device.key == "interpreter")
        if group != own and timed >= FEWEST and comparable and _ranked_alike(group.protocol, protocol):
            far = distance(loaded, problem, group.problem)
            far += OTHER_DEVICE * (group.device != device.key) + OTHER_CODE * (group.source != loaded.source)
            near.append((far, str(group), group))
    return [
        Experience(_scores(store.outcomes(loaded.name, group.source, group.problem, group.device, group.protocol)))
        for _, _, group in sorted(near, key=lambda one: one[:2])[:MOST]
    ]


def distance(loaded: Loaded, a: Problem, b: Problem) -> float:
    """Doublings of sizes between two problems, and some for each trait in which they differ."""
    far = 0.0
    for known in loaded.kernel.fields:
        one, other = (problem.get(known.name, known.default) for problem in (a, b))
        if known.kind != "size":
            far += OTHER_TRAIT * (one != other)
        elif isinstance(one, int) and isinstance(other, int):
            far += abs(math.log2(max(1, one) / max(1, other)))
    return far


def _ranked_alike(theirs: str, ours: str) -> bool:
    # A file may hold any text there.
    with suppress(UsageError):
        return objective_of(theirs) == objective_of(ours)
    return False


def _scores(outcomes: Mapping[Config, Outcome]) -> dict[Config, float | None]:
    # Providers have no parameters to learn from.
    return {
        config: outcome.score if isinstance(outcome, Timing) else None
        for config, outcome in outcomes.items()
        if config.provider is None
    }
