"""The configs that may be proposed: all that are allowed where they can be listed, else a sample that grows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from autotune.search.axes import Axis, Codes

#: Whether a config, as a mapping of names to values, may be proposed.
Allowed = Callable[[Mapping[str, Any]], bool]
#: A config with the parameters that change nothing in it at their rest: two that come to the same thing become one.
Settle = Callable[[Mapping[str, Any]], Mapping[str, Any]]

#: Products of ranges up to this size are listed; looking at one config takes a few microseconds.
LISTED = 200_000
#: Allowed configs kept in sight. The surrogate takes about a microsecond for each at every proposal.
KEPT = 20_000
#: Draws in search of allowed configs, per config wanted, where allowed ones are rare.
DRAWS = 20


class Candidates:
    """Rows of codes, one per candidate. Rows are only ever added, so that a row's number stays its name."""

    def __init__(
        self, axes: Sequence[Axis], allowed: Allowed | None = None, seed: int = 0, settle: Settle | None = None
    ) -> None:
        """:param allowed: asked of settled configs only"""
        self.axes = tuple(axes)
        self._allowed, self._settle = allowed, settle
        self._rng = np.random.default_rng([seed, 1])
        sizes = [len(axis.values) for axis in self.axes]
        #: Whether every allowed config is here.
        self.complete = math.prod(sizes) <= LISTED
        if self.complete:
            grid = itertools.product(*(range(size) for size in sizes))
            settled = dict.fromkeys(map(self._settled, grid))
            rows = [code for code in settled if self._may(code)]
            if len(rows) > KEPT:
                self.complete = False
                rows = [rows[place] for place in self._rng.choice(len(rows), KEPT, replace=False)]
        else:
            rows = self._draw(KEPT // 4)
        self.codes: Codes = np.array(rows, dtype=np.int64).reshape(len(rows), len(sizes))
        self._row = {code: number for number, code in enumerate(map(tuple, self.codes.tolist()))}

    def __len__(self) -> int:
        return len(self.codes)

    def config(self, row: int) -> dict[str, Any]:
        return self._named(self.codes[row])

    def row(self, config: Mapping[str, Any]) -> int | None:
        """The row of a config; one that is allowed but not in sight is added. None if it may not be proposed."""
        code: list[int] = []
        for axis in self.axes:
            place = axis.place(config.get(axis.name))
            if place is None:
                return None
            code.append(place)
        settled = self._settled(tuple(code))
        known = self._row.get(settled)
        if known is not None or self.complete:
            return known
        return self._add(settled)

    def look_around(self, row: int) -> None:
        """Where not all are listed: bring the neighbours of a candidate into sight, one value changed."""
        if self.complete:
            return
        code = tuple(self.codes[row].tolist())
        for place, axis in enumerate(self.axes):
            for value in range(len(axis.values)):
                self._add(self._settled((*code[:place], value, *code[place + 1 :])))

    def _add(self, code: tuple[int, ...]) -> int | None:
        if code not in self._row and self._may(code):
            self._row[code] = len(self.codes)
            self.codes = np.vstack([self.codes, code])
        return self._row.get(code)

    def _settled(self, code: tuple[int, ...]) -> tuple[int, ...]:
        if self._settle is None:
            return code
        settled = self._settle(self._named(code))
        return tuple(axis.places[type(settled[axis.name]), settled[axis.name]] for axis in self.axes)

    def _named(self, code: Sequence[int]) -> dict[str, Any]:
        return {axis.name: axis.values[place] for axis, place in zip(self.axes, code, strict=True)}

    def _may(self, code: Sequence[int]) -> bool:
        return self._allowed is None or self._allowed(self._named(code))

    def _draw(self, wanted: int) -> list[tuple[int, ...]]:
        sizes = [len(axis.values) for axis in self.axes]
        found: dict[tuple[int, ...], None] = {}
        for _ in range(DRAWS):
            for drawn in map(tuple, self._rng.integers(0, sizes, size=(wanted, len(sizes))).tolist()):
                code = self._settled(drawn)
                if code not in found and self._may(code):
                    found[code] = None
                if len(found) == wanted:
                    return list(found)
        return list(found)
