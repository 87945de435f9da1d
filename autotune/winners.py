"""The winners in a database: read once, with the standard library, and believed only where they are in order."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from autotune import locate
from autotune.data import Config, Device, Problem, UsageError
from autotune.protocol import Objective, objective_of, preference
from autotune.registry import Loaded

#: How long the one read of the database may wait for a writer's commit.
BUSY_SECONDS = 0.25
#: How long it may take altogether; 100,000 winners take 1.3 s.
READ_SECONDS = 5.0


@dataclass(frozen=True)
class Winner:
    """A row of the view ``best``, as read."""

    problem: Problem
    source: str
    config: Config
    score_ms: float
    protocol: str
    triton: str


#: (kernel, device) -> its rows of the view ``best``, in a fixed order.
Rows: TypeAlias = Mapping[tuple[str, str], list[tuple[Any, ...]]]


def read_rows(path: Path) -> Rows:
    """The view ``best``, as it is.

    :raises sqlite3.Error, OSError, ValueError: if the file is missing or can't be read in READ_SECONDS.
    """
    found: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    with closing(locate.open_readonly(path, BUSY_SECONDS)) as connection:
        end = time.monotonic() + READ_SECONDS
        # A hostile view may never end: look at the clock every so many steps of SQLite's machine.
        connection.set_progress_handler(lambda: time.monotonic() > end, 100_000)
        applied = connection.execute("select name from _sqlite_migrations where migration_set = 'autotune'")
        newer = sorted({str(name) for (name,) in applied} - set(locate.MIGRATIONS))
        if newer:
            raise ValueError(f"it has the newer schema {newer[-1]}; upgrade autotune")
        # A file that is only read may be older than the column.
        there = {row[1] for row in connection.execute("pragma table_info(best)")}
        time_ms = "coalesce(score_ms, median_ms)" if "score_ms" in there else "median_ms"
        rows = connection.execute(
            f"select kernel, device, problem, source, config, {time_ms}, protocol, triton from best "
            "order by kernel, device, problem, protocol"
        )
        for kernel, device, *row in rows:
            found.setdefault((kernel, device), []).append(tuple(row))
    return found


def winners_of(loaded: Loaded, device: Device, rows: Rows, objective: Objective) -> tuple[Winner, ...]:
    """The rows of one kernel on one device that are in order; nothing read from a file is trusted.

    Of several for one problem the newest protocol's comes first.
    """
    winners = []
    for problem, source, config, score_ms, protocol, triton in rows.get((loaded.name, device.key), ()):
        # Not rows that this version writes.
        with suppress(UsageError, TypeError, ValueError, AttributeError, RecursionError):
            known = loaded.kernel.parse(problem)
            if 0 < score_ms < math.inf and objective_of(protocol) == objective:
                winners.append(Winner(known, str(source), Config.parse(config), score_ms, protocol, str(triton)))
    return tuple(sorted(winners, key=lambda winner: (str(winner.problem), preference(winner.protocol))))
