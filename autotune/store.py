"""``tuning.db``: every trial ever made, in SQLite. Winners are a view over the trials, not a second truth.

One row per (kernel, source, problem, device, config, protocol); of two measurements of one row the later
stays. That makes recording twice and merging two files idempotent, and merging independent of the order.

The journal is SQLite's rollback journal, not WAL: a WAL file can't be read from a read-only directory and
leaves two more files beside the one that people copy. Writes are a few small transactions a second.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from autotune import locate
from autotune.data import AutotuneError, Config, Outcome, Problem, Trial, UsageError
from autotune.protocol import is_native
from autotune.row import COLUMNS, KEY, KINDS, REQUIRED, checked, to_row, to_trial

#: How long a writer waits for another one's transaction before giving up.
BUSY_SECONDS = 30.0

#: Columns of the first schema; the others came with the ladder.
_FIRST = COLUMNS[: COLUMNS.index("score_ms")]

migrations = Migrations("autotune")


@migrations(name=locate.MIGRATIONS[0])
def _trials(db: Database) -> None:
    columns = {name: KINDS[name] for name in _FIRST}
    db["trials"].create(columns, pk=KEY, not_null=set(REQUIRED))  # type: ignore[union-attr]


@migrations(name=locate.MIGRATIONS[1])
def _best(db: Database) -> None:
    db.create_view("best", _winners(_FIRST, "median_ms"))


@migrations(name=locate.MIGRATIONS[2])
def _ladder(db: Database) -> None:
    for name in COLUMNS[len(_FIRST) :]:
        db["trials"].add_column(name, KINDS[name])  # type: ignore[union-attr]
    # What was timed in turns comes first: a time taken alone may have been lucky.
    rank = "rank_ms is null, coalesce(rank_ms, score_ms, median_ms), coalesce(score_ms, median_ms)"
    db.create_view("best", _winners(COLUMNS, rank), replace=True)


def _winners(columns: Sequence[str], rank: str) -> str:
    # Ties go to the smaller config text, so that every copy of a file names one winner.
    return f"""
        select {", ".join(columns)} from (
            select *, row_number() over (
                partition by kernel, source, problem, device, protocol order by {rank}, config
            ) as place
            from trials where median_ms is not null
        ) where place = 1
        """


@dataclass(frozen=True)
class Group:
    """What the trials of one sweep have in common, beside their kernel."""

    source: str
    problem: Problem
    device: str
    protocol: str


class StoreError(AutotuneError):
    """The database can't be opened, read or written. The message names the file and what to do."""


class Store:
    """An open database. Use as a context manager."""

    def __init__(self, path: str | Path, *, readonly: bool = False) -> None:
        """Open ``path``; unless ``readonly``, create and migrate it as needed.

        :raises StoreError: if it is missing (readonly), no SQLite file, newer than this version, or locked.
        """
        self.path = Path(path)
        if readonly and not self.path.is_file():
            raise StoreError(f"no database {self.path}; make one with `autotune tune`, or name another with --db")
        if not readonly and not self.path.parent.is_dir():
            raise StoreError(f"no folder {self.path.parent} for the database {self.path}; create it first")
        with self._explained():
            if readonly:
                connection = locate.open_readonly(self.path, BUSY_SECONDS)
            else:
                uri = f"{self.path.resolve().as_uri()}?mode=rwc"
                connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)
            self._db = Database(connection)
        try:
            with self._explained():
                self._refuse_newer() if readonly else self._migrate()
        except BaseException:
            self.close()
            raise

    def _migrate(self) -> None:
        # Exclusive from the first statement: of many processes that open a new file at once, one creates
        # the schema and the others find it there.
        self._db.conn.execute("begin immediate")
        with self._db.atomic():
            self._refuse_newer()
            migrations.apply(self._db)
        self._db.conn.execute("commit")

    def _refuse_newer(self) -> None:
        newer = [row.name for row in migrations.applied(self._db) if row.name not in locate.MIGRATIONS]
        if newer:
            raise StoreError(
                f"database {self.path} has the newer schema {newer[-1]}; upgrade autotune, or use another file"
            )
        tables = set(self._db.table_names()) - {migrations.migrations_table}
        if tables and not migrations.applied(self._db):
            raise StoreError(f"{self.path} is an SQLite database of something else; name another with --db")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"database {self.path}: {error}; check the file, or name another with --db") from error

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def record(self, trial: Trial) -> None:
        """Write one trial, in a transaction of its own."""
        self._write([to_row(trial)])

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Insert, or replace an older measurement of the same key. Returns how many rows changed."""
        assign = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name not in KEY)
        # The later measurement stays; of two of one instant the larger row, whatever the order of arrival.
        order = ("created_at", "median_ms", "p20_ms", "p80_ms", "n", "reason", "detail", "provenance", "rank_ms")
        newer = ", ".join(f"coalesce(excluded.{name}, '')" for name in order)
        older = ", ".join(f"coalesce(trials.{name}, '')" for name in order)
        statement = (
            f"insert into trials ({', '.join(COLUMNS)}) values ({', '.join(f':{name}' for name in COLUMNS)}) "
            f"on conflict ({', '.join(KEY)}) do update set {assign} where ({newer}) > ({older})"
        )
        with self._explained(), self._db.atomic():
            return sum(self._db.conn.execute(statement, row).rowcount for row in rows)

    def trials(self, kernel: str, source: str, problem: Problem, device: str, protocol: str) -> dict[Config, Trial]:
        """What is known of a problem, by config, in the order recorded."""
        where = "kernel = ? and source = ? and problem = ? and device = ? and protocol = ?"
        values = [kernel, source, str(problem), device, protocol]
        with self._explained():
            rows = list(self._db["trials"].rows_where(where, values, order_by="created_at, config"))
        return {trial.config: trial for trial in map(to_trial, rows)}

    def outcomes(
        self, kernel: str, source: str, problem: Problem, device: str, protocol: str
    ) -> dict[Config, Outcome]:
        """Like :meth:`trials`, without where they are from."""
        found = self.trials(kernel, source, problem, device, protocol)
        return {config: trial.outcome for config, trial in found.items()}

    def groups(self, kernel: str) -> dict[Group, int]:
        """The sweeps of a kernel: what their trials have in common -> how many of them have a time."""
        statement = (
            "select source, problem, device, protocol, count(median_ms) from trials where kernel = ? "
            "group by source, problem, device, protocol"
        )
        with self._explained():
            rows = self._db.execute(statement, [kernel]).fetchall()
        return {
            Group(source, Problem.parse(problem), device, protocol): timed
            for source, problem, device, protocol, timed in rows
        }

    def best(self, kernel: str | None = None) -> list[dict[str, Any]]:
        """The rows of the view ``best``, by kernel and problem, but for those that compare with no kernel's."""
        where, values = ("kernel = ?", [kernel]) if kernel else (None, None)
        with self._explained():
            rows = list(self._db["best"].rows_where(where, values, order_by="kernel, problem, device, protocol"))
        return [row for row in rows if not is_native(row["protocol"])]

    def stale_winners(self, kernel: str, source: str, problem: Problem, device: str) -> list[Config]:
        """Winners of a problem that were measured on other code than ``source``, newest first."""
        where = "kernel = ? and source <> ? and problem = ? and device = ?"
        values = [kernel, source, str(problem), device]
        with self._explained():
            rows = list(self._db["best"].rows_where(where, values, order_by="created_at desc, config"))
        return [Config.parse(row["config"]) for row in rows]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every trial as a plain dict, in an order that depends on nothing but the content."""
        with self._explained():
            # A file that is only read may be older than the last columns.
            there = [name for name in COLUMNS if name in self._db["trials"].columns_dict]
            yield from self._db["trials"].rows_where(order_by=", ".join(KEY), select=", ".join(there))

    def add(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Take in rows of another file, all or none. Returns how many were new or later than ours.

        :raises StoreError: if a row is not a trial; nothing is written then.
        """
        taken = []
        for number, row in enumerate(rows, start=1):
            try:
                taken.append(checked(row))
            except UsageError as error:
                raise StoreError(f"row {number} is not a trial: {error}; nothing was written") from error
        return self._write(taken)
