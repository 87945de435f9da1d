"""One parameter as the surrogate sees it: its values in order, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

#: A continuous parameter, or an integer one of more values, is looked at in this many steps.
GRID = 64
#: Values that span this factor are compared by their ratio, others by their difference.
LOG_SPAN = 4.0
#: Multiples of more than 2**5 are all alike: a warp has 32 threads, a sector 32 bytes.
ALIGNMENT = 5


@dataclass(frozen=True, eq=False)
class Axis:
    """A parameter's values; a config is a row of positions in them, its code."""

    name: str
    values: tuple[Any, ...]
    #: Tables of distances (values x values), from 0 to 1, one for each way in which values are near or far.
    distances: tuple[Floats, ...]
    #: Whether the values stand for the numbers between them too.
    grid: bool = False

    @cached_property
    def places(self) -> dict[tuple[type, Any], int]:
        # True == 1 to Python, and they are two values to a kernel.
        return {(type(value), value): place for place, value in enumerate(self.values)}

    def place(self, value: Any) -> int | None:
        """The position of a value, on a grid that of the nearest; None if it is no value of this axis."""
        place = self.places.get((type(value), value))
        if place is None and self.grid and type(value) in (int, float):
            place = int(np.abs(np.array(self.values, dtype=float) - value).argmin())
        return place


def axis(name: str, values: Sequence[Any]) -> Axis:
    """Numbers are ordinal, and also alike in the power of two they are multiples of; all else is categorical."""
    values = tuple(values)
    if not all(isinstance(value, bool | int | float) for value in values):
        return Axis(name, values, (1.0 - np.eye(len(values)),))
    numbers = np.array(values, dtype=float)
    apart = [_apart(np.log2(numbers) if _by_ratio(numbers) else numbers)]
    # 96 and 128 are neighbours in size, but only one of them is a whole number of 64-wide tiles.
    if all(isinstance(value, int) and value > 0 for value in values):
        whole = [int(value) for value in values]
        if any(value & (value - 1) for value in whole):
            apart.append(_apart(np.array([min(ALIGNMENT, (v & -v).bit_length() - 1) for v in whole], dtype=float)))
    return Axis(name, values, tuple(table for table in apart if table.any()) or (apart[0],))


def _by_ratio(numbers: Floats) -> bool:
    return bool(numbers.min() > 0 and numbers.max() / numbers.min() >= LOG_SPAN)


def _apart(positions: Floats) -> Floats:
    span = np.ptp(positions)
    distances: Floats = np.abs(positions[:, None] - positions[None, :]) / (span if span > 0 else 1.0)
    return distances


def axis_of(name: str, distribution: BaseDistribution) -> Axis:
    """The axis of an Optuna distribution; continuous ones, and long integer ones, as a grid of GRID steps.

    :raises ValueError: on a kind of distribution that is none of Optuna's own.
    """
    if isinstance(distribution, CategoricalDistribution):
        return axis(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        step = distribution.step or 1
        count = (distribution.high - distribution.low) // step + 1
        if count <= GRID:
            return axis(name, range(distribution.low, distribution.high + 1, step))
        inner = _grid(distribution.low, distribution.high, distribution.log)
        steps = sorted({round((value - distribution.low) / step) for value in inner})
        return replace(axis(name, [distribution.low + step * place for place in steps]), grid=True)
    if isinstance(distribution, FloatDistribution):
        if distribution.step is not None:
            count = math.floor((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
            chosen = np.unique(np.linspace(0, count - 1, min(count, GRID)).round())
            # 3 * 0.1 is more than 0.3: rounding must not leave the distribution.
            values = [
                min(float(distribution.low + place * distribution.step), distribution.high) for place in chosen
            ]
        else:
            values = _grid(distribution.low, distribution.high, distribution.log)
        return replace(axis(name, values), grid=True)
    raise ValueError(f"parameter {name} has a {type(distribution).__name__}; use an int, float or categorical one")


def _grid(low: float, high: float, log: bool) -> list[float]:
    inner = np.geomspace(low, high, GRID) if log else np.linspace(low, high, GRID)
    # The ends exactly: rounding must not leave the distribution.
    return [low, *(float(value) for value in inner[1:-1]), high] if high > low else [low]
