"""The winners in a database: read once, with the standard library, and believed only where they are in order."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from autotune import locate
from autotune.data import Config, Device, Problem, UsageError
from autotune.protocol import Objective, is_native, objective_of, preference
from autotune.registry import Loaded

#: How long the one read of the database may wait for a writer's commit.
BUSY_SECONDS = 0.25
#: How long it may take altogether; 100,000 winners take 1.3 s.
READ_SECONDS = 5.0


#: The kernel's own best where a provider won, in the order of the view ``best``.
_OWN = """
    select config, coalesce(score_ms, median_ms), protocol, triton from trials
    where kernel = ? and device = ? and problem = ? and source = ? and protocol = ?
        and median_ms is not null and config not like '{"provider":%'
    order by rank_ms is null, coalesce(rank_ms, score_ms, median_ms), coalesce(score_ms, median_ms), config limit 1
    """


@dataclass(frozen=True)
class Winner:
    """A row of the view ``best``, or the second of a problem that a provider won."""

    problem: Problem
    source: str
    config: Config
    score_ms: float
    protocol: str
    triton: str


#: (kernel, device) -> its rows of the view ``best``, in a fixed order.
Rows: TypeAlias = Mapping[tuple[str, str], list[tuple[Any, ...]]]


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that is to read for READ_SECONDS at most.

    :raises sqlite3.Error, OSError, ValueError: if the file is missing or newer than this version.
    """
    with closing(locate.open_readonly(path, BUSY_SECONDS)) as connection:
        end = time.monotonic() + READ_SECONDS
        # A hostile view may never end: look at the clock every so many steps of SQLite's machine.
        connection.set_progress_handler(lambda: time.monotonic() > end, 100_000)
        applied = connection.execute("select name from _sqlite_migrations where migration_set = 'autotune'")
        newer = sorted({str(name) for (name,) in applied} - set(locate.MIGRATIONS))
        if newer:
            raise ValueError(f"it has the newer schema {newer[-1]}; upgrade autotune")
        yield connection


def read_rows(path: Path) -> Rows:
    """The view ``best``; after a provider's row the kernel's own best, for where the provider can't serve.

    :raises sqlite3.Error, OSError, ValueError: if the file is missing or can't be read in READ_SECONDS.
    """
    found: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    with reading(path) as connection:
        # A file that is only read may be older than the column.
        there = {row[1] for row in connection.execute("pragma table_info(best)")}
        time_ms = "coalesce(score_ms, median_ms)" if "score_ms" in there else "median_ms"
        rows = connection.execute(
            f"select kernel, device, problem, source, config, {time_ms}, protocol, triton from best "
            "order by kernel, device, problem, protocol"
        )
        for kernel, device, *row in rows:
            mine = found.setdefault((kernel, device), [])
            mine.append(tuple(row))
            problem, source, config, _, protocol, _ = row
            if "score_ms" in there and str(config).startswith('{"provider":'):
                own = connection.execute(_OWN, (kernel, device, problem, source, protocol))
                mine += [(problem, source, *rest) for rest in own]
    return found


def winners_of(loaded: Loaded, device: Device, rows: Rows, objective: Objective) -> tuple[Winner, ...]:
    """The rows of one kernel on one device that are in order; nothing read from a file is trusted.

    Of several for one problem the newest protocol's comes first. What a provider took beside an interpreted kernel
    is no winner.
    """
    winners = []
    for problem, source, config, score_ms, protocol, triton in rows.get((loaded.name, device.key), ()):
        # Not rows that this version writes.
        with suppress(UsageError, TypeError, ValueError, AttributeError, RecursionError):
            known = loaded.kernel.parse(problem)
            fair = objective_of(protocol) == objective and not is_native(protocol)
            if fair and 0 < score_ms < math.inf:
                winners.append(Winner(known, str(source), Config.parse(config), score_ms, protocol, str(triton)))
    return tuple(sorted(winners, key=lambda winner: (str(winner.problem), preference(winner.protocol))))
