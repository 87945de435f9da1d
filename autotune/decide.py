"""What to launch for a problem, given the winners: a pure function."""

from __future__ import annotations

import math
from typing import Any

from autotune.data import Choice, Device, Problem
from autotune.registry import Loaded
from autotune.winners import Winner

#: A neighbour's winner is used if no size differs by more than this factor, and all together by no more
#: than its cube. Beyond, the default knows better: a config tuned for long sequences ruins short ones.
NEAREST_FACTOR = 4.0


def decide(loaded: Loaded, problem: Problem, device: Device, winners: tuple[Winner, ...]) -> Choice:
    """What to launch for ``problem``. Pure: the same winners give every process the same choice."""
    for winner in winners:
        if winner.problem == problem and _unusable(winner, loaded, problem, device) is None:
            version = f" with triton {winner.triton}" if winner.triton else ""
            why = f"measured {winner.score_ms:.4g} ms ({winner.protocol}){version}"
            return Choice(winner.config, "tuned", why)
    refused = refusal(loaded, problem, device, winners)
    notes = [] if refused is None else [refused]
    near = [
        (distance, winner)
        for winner in winners
        if winner.problem != problem and (distance := _distance(loaded, problem, winner.problem)) is not None
    ]
    # Equals stay as they are: the winners of one problem by protocol, a provider before the kernel's own best.
    for distance, winner in sorted(near, key=lambda pair: (pair[0], str(pair[1].problem))):
        text = str(winner.problem)
        why_not = _unusable(winner, loaded, problem, device) or _beyond_the_flip(winner, loaded, problem)
        if why_not is None:
            why = f"tuned for {text}, {2**distance:.3g}x away in size"
            return Choice(winner.config, "nearest", "; ".join([why, *notes[:3]]))
        notes.append(f"the winner of {text} {why_not}")
    if not notes:
        notes.append(_misses(loaded, problem, winners) if winners else f"nothing is tuned on {device.key}")
    return Choice(loaded.space.default(problem, device), "default", "; ".join(notes[:3]))


def refusal(loaded: Loaded, problem: Problem, device: Device, winners: tuple[Winner, ...]) -> str | None:
    """Why the winners of this very problem can't be served; None if one can, or there is none."""
    own = [_unusable(winner, loaded, problem, device) for winner in winners if winner.problem == problem]
    return f"the winner of this problem {own[0]}" if own and None not in own else None


def _unusable(winner: Winner, loaded: Loaded, problem: Problem, device: Device) -> str | None:
    if winner.source != loaded.source:
        return "was measured on other kernel code"
    why_not = loaded.why_not(winner.config, problem, device)
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


def _beyond_the_flip(winner: Winner, loaded: Loaded, problem: Problem) -> str | None:
    """None, or that a provider won at a larger density than the problem's, where the kernel had more to do."""
    along = loaded.kernel.flips
    if along is None or winner.config.provider is None:
        return None
    if problem.integer(along, 0) >= winner.problem.integer(along, 0):
        return None
    return f"is {winner.config.provider}, and at {along}={problem[along]} the kernel has less to do"


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
    return f"no tuned problem is near; the closest has {', '.join(differing(closest))}"
