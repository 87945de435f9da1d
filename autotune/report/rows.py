"""The rows of a database as trials, checked on the way in."""

from __future__ import annotations

from pathlib import Path

from autotune.data import AutotuneError, Trial, UsageError
from autotune.protocol import is_native
from autotune.row import to_trial
from autotune.store import Store


def read(path: Path, kernel: str | None = None) -> list[Trial]:
    """The trials of a database, or of one kernel in it, in the order in which they were measured.

    Not what providers took beside an interpreted kernel: that compares with nothing.

    :raises AutotuneError: if the file can't be read, or holds a row that is no trial.
    """
    with Store(path, readonly=True) as store:
        rows = [row for row in store.rows() if kernel in (None, row["kernel"]) and not is_native(row["protocol"])]
    try:
        trials = [to_trial(row) for row in rows]
    except UsageError as error:
        raise AutotuneError(f"database {path} has a row that is no trial: {error}; remove it") from error
    return sorted(trials, key=_turn)


def _turn(trial: Trial) -> tuple[bool, int, str, str]:
    """By number where it has one: a finalist's date is that of its finals."""
    number = trial.provenance.get("trial")
    return isinstance(number, int), number if isinstance(number, int) else 0, trial.created_at, str(trial.config)
