"""How full a block-sparse thing is, in steps that problems name, so that things of one kind share what is tuned."""

from __future__ import annotations

from collections.abc import Sequence

#: Blocks in percent of all.
DENSITIES = (1, 2, 5, 10, 20, 35, 50, 75, 100)


def nearest(value: float, steps: Sequence[int]) -> int:
    """The step nearest by ratio; of two equally near the smaller."""
    return min(steps, key=lambda step: max(step, value) / max(1e-9, min(step, value)))


def density_step(blocks: int, places: int) -> int:
    """Of :data:`DENSITIES`, for ``blocks`` in so many places; where there is no place it is full."""
    return nearest(100 * blocks / places, DENSITIES) if places else 100
