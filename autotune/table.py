"""A recorded search space: every config of one kernel on one device, each with its time.

Two files: ``KERNEL@DEVICE.json`` has the parameters with their values in order, ``KERNEL@DEVICE.csv.gz`` one row
for each allowed config. The rows are the allowed set: the constraints are kept as text, and never evaluated.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from autotune.data import Config, UsageError, Value

_TIMES = ("time_ms", "std_ms", "cost_ms")
_SUFFIXES = (".csv.gz", ".json")


@dataclass(frozen=True, eq=False)
class Table:
    """What was recorded of ``kernel`` on one device; ``len(table)`` configs."""

    #: ``gemm@TitanRTX``
    name: str
    kernel: str
    #: ``TitanRTX``, the maker's ``NVIDIA TITAN RTX``, and its chip ``TU102``.
    device: str
    device_name: str
    arch: str
    #: Devices of one group are near copies: nothing is proved by learning from one about another.
    arch_group: str
    #: The values of each parameter, in order.
    params: Mapping[str, tuple[Value, ...]]
    #: Python expressions, to be read by people.
    constraints: tuple[str, ...]
    problem_size: tuple[int, ...]
    #: (rows, parameters): the position of each value among its parameter's.
    codes: NDArray[numpy.int64]
    #: (rows,): the recorded mean; NaN where the config failed.
    time_ms: NDArray[numpy.float64]
    #: (rows,): what it took to compile, verify and time the config; NaN where nobody wrote it down.
    cost_ms: NDArray[numpy.float64]

    def __len__(self) -> int:
        return len(self.codes)

    def config(self, row: int) -> Config:
        """The config of a row, counted from 0."""
        codes = self.codes[row].tolist()
        return Config({name: values[code] for (name, values), code in zip(self.params.items(), codes, strict=True)})

    @cached_property
    def middle(self) -> int:
        """The row that one would start from who knows nothing: nearest to the middle of every range.

        Distances are shares of a range, so that one of 29 values does not outweigh the others; of rows equally
        near, the first.
        """
        sizes = numpy.array([len(values) for values in self.params.values()])
        apart = numpy.abs(self.codes - (sizes - 1) // 2) / sizes
        return int(apart.sum(axis=1).argmin())


def stem_of(path: str | Path) -> str | None:
    """The path of a table's two files less their suffixes; None if ``path`` names no table."""
    text = str(path)
    for suffix in _SUFFIXES:
        if text.endswith(suffix):
            return text.removesuffix(suffix)
    return text if any(Path(text + suffix).is_file() for suffix in _SUFFIXES) else None


def read_table(path: str | Path) -> Table:
    """Read a table; ``path`` is that of either file, or what both have in common.

    :raises UsageError: if a file is missing or not in order.
    """
    stem = stem_of(path) or str(path)
    for suffix in _SUFFIXES:
        if not Path(stem + suffix).is_file():
            raise UsageError(f"no file {stem}{suffix}; a table is a .csv.gz and a .json beside it")
    meta = _Meta(f"{stem}.json")
    params = meta.params()
    codes, time_ms, cost_ms = _rows(f"{stem}.csv.gz", params)
    return Table(
        **{name: meta.word(name) for name in ("name", "kernel", "device", "device_name", "arch", "arch_group")},
        params=params,
        constraints=meta.each("constraints", str),
        problem_size=meta.sizes("problem_size"),
        codes=codes,
        time_ms=time_ms,
        cost_ms=cost_ms,
    )


class _Meta:
    """The JSON file, read with suspicion."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._values: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not JSON: {error}; write the table anew") from error
        if not isinstance(self._values, dict):
            raise UsageError(f"{path} is not a JSON object; a table's has name, kernel, device, params and more")

    def word(self, name: str) -> str:
        value = self._values.get(name)
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self._wrong(name, value, "text of one line")
        return value

    def each(self, name: str, kind: type[Any]) -> tuple[Any, ...]:
        values = self._values.get(name)
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise self._wrong(name, values, f"a list of {kind.__name__}")
        return tuple(values)

    def sizes(self, name: str) -> tuple[int, ...]:
        sizes = self.each(name, int)
        if not sizes or min(sizes) < 0:
            raise self._wrong(name, list(sizes), "one size at least, and none below 0")
        return sizes

    def params(self) -> dict[str, tuple[Value, ...]]:
        params = self._values.get("params")
        if not isinstance(params, dict) or not params or set(params) & set(_TIMES):
            raise self._wrong("params", params, f"an object of lists, none of them called {', '.join(_TIMES)}")
        for name, values in params.items():
            if not isinstance(values, list) or not values or len({str(value) for value in values}) < len(values):
                raise self._wrong(f"params.{name}", values, "a list of values, each given once")
            for value in values:
                try:
                    Config({name: value})
                except UsageError as error:
                    raise UsageError(f"{self._path}: {error}") from error
        return {name: tuple(values) for name, values in params.items()}

    def _wrong(self, name: str, value: object, rule: str) -> UsageError:
        return UsageError(f"{self._path}: {name} is {json.dumps(value)[:80]}; it must be {rule}")


def _rows(
    path: str, params: Mapping[str, tuple[Value, ...]]
) -> tuple[NDArray[numpy.int64], NDArray[numpy.float64], NDArray[numpy.float64]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
            header, *rows = list(csv.reader(stream, strict=True)) or [[]]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{path} can't be read: {error}; it must be comma-separated text, packed by gzip"
        ) from error
    wanted = [*params, *_TIMES]
    if sorted(header) != sorted(wanted):
        odd = sorted(set(header) ^ set(wanted)) or sorted(header)
        raise UsageError(f"{path}: unknown, missing or repeated columns {', '.join(odd)}; give {', '.join(wanted)}")
    short = next((line for line, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if not rows or short is not None:
        raise UsageError(f"{path}: line {short or 2} does not have the {len(header)} cells of its header")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    codes = numpy.array([_codes(path, name, columns[name], values) for name, values in params.items()]).T
    unique, first = numpy.unique(codes, axis=0, return_index=True)
    if len(unique) < len(codes):
        again = min(set(range(len(codes))) - set(first.tolist())) + 2
        raise UsageError(f"{path}: line {again} gives a config a second time; keep one line for each")
    return codes, _milliseconds(path, "time_ms", columns), _milliseconds(path, "cost_ms", columns)


def _codes(path: str, name: str, cells: tuple[str, ...], values: tuple[Value, ...]) -> list[int]:
    position = {str(value): code for code, value in enumerate(values)}
    try:
        return [position[cell] for cell in cells]
    except KeyError as error:
        line = cells.index(error.args[0]) + 2
        raise UsageError(
            f"{path}: line {line} has {name}={error.args[0]!r}; use one of {', '.join(position)}"
        ) from error


def _milliseconds(path: str, name: str, columns: Mapping[str, tuple[str, ...]]) -> NDArray[numpy.float64]:
    """A column of times; NaN where a cell is empty."""
    times = []
    for line, cell in enumerate(columns[name], start=2):
        try:
            time = float(cell) if cell else math.nan
        except ValueError:
            time = 0.0
        if cell and not 0 < time < math.inf:
            raise UsageError(
                f"{path}: line {line} has {name}={cell[:40]!r}; write milliseconds above 0, or nothing"
            )
        times.append(time)
    return numpy.array(times)
