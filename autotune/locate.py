"""Which database: ``--db`` or :func:`autotune.use`, ``AUTOTUNE_DB``, ``./tuning.db``, the copy in the package."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

#: The schema this version reads and writes: the names of store.py's migrations, in order.
MIGRATIONS = ("0001_trials", "0002_best", "0003_ladder")

SHIPPED = Path(__file__).parent / "tuning.db"


def for_reading(path: str | Path | None = None) -> Path:
    """The file to read winners from; it need not exist if it was named."""
    named = path or os.environ.get("AUTOTUNE_DB")
    if named:
        return Path(named)
    here = Path("tuning.db")
    return here if here.exists() else SHIPPED


def for_writing(path: str | Path | None = None) -> Path:
    """The file to record trials in. Never the package's copy: an upgrade would take them away."""
    return Path(path or os.environ.get("AUTOTUNE_DB") or "tuning.db")


def open_readonly(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A connection that writes nothing of its own.

    A writer that was killed in mid-commit leaves a journal, which SQLite must roll back before anybody can
    read, and which a strictly read-only connection may not: then, and only then, it is allowed that.

    :raises sqlite3.Error, OSError, ValueError: if the file is missing or can't be read.
    """
    if not path.is_file():
        raise FileNotFoundError("no such file")
    uri = path.resolve().as_uri()
    connection = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=timeout_s)
    try:
        connection.execute("select 1 from sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if "readonly" not in str(error):
            raise
        connection = sqlite3.connect(f"{uri}?mode=rw", uri=True, timeout=timeout_s)
        connection.execute("pragma query_only = 1")
    except BaseException:
        connection.close()
        raise
    return connection
