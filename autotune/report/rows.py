"""The rows of a database as trials, checked on the way in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.data import AutotuneError, Config, Failure, Outcome, Problem, Reason, Timing, Trial
from autotune.rung import Resources, Rung
from autotune.store import Store

_MILLISECONDS = ("median_ms", "p20_ms", "p80_ms", "score_ms", "low_ms", "high_ms", "rank_ms")


def read(path: Path, kernel: str | None = None) -> list[Trial]:
    """The trials of a database, or of one kernel in it, in the order in which they were measured.

    :raises AutotuneError: if the file can't be read, or holds a row that is no trial.
    """
    with Store(path, readonly=True) as store:
        rows = [row for row in store.rows() if kernel in (None, row["kernel"])]
    return sorted((to_trial(row, path) for row in rows), key=lambda trial: (trial.created_at, str(trial.config)))


def to_trial(row: Mapping[str, Any], path: Path) -> Trial:
    """:raises AutotuneError: if a value of the row is not what its column holds."""
    try:
        return Trial(
            **{name: row[name] for name in ("kernel", "source", "device", "target", "created_at")},
            **{name: row[name] or "" for name in ("triton", "torch", "driver")},
            problem=Problem.parse(row["problem"]),
            config=Config.parse(row["config"]),
            outcome=_outcome(row),
            provenance=dict(json.loads(row["provenance"] or "{}")),
            # A file of the first schema has no such columns, and rows older than the ladder nothing in them.
            rung=Rung(row["rung"]) if row.get("rung") else None,
            seconds={name: float(spent) for name, spent in json.loads(row.get("seconds") or "{}").items()},
            resources=None
            if row.get("shared_bytes") is None
            else Resources(row["shared_bytes"], row["registers"], row["spill_bytes"]),
            same_as=Config.parse(row["same_as"]) if row.get("same_as") else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = f"{row['kernel']} {row['problem']} {row['config']}"
        raise AutotuneError(f"database {path} has a row that is no trial: {what}: {error}; remove it") from error


def _outcome(row: Mapping[str, Any]) -> Outcome:
    if row["median_ms"] is None:
        return Failure(Reason(row["reason"]), row["detail"] or "", row["protocol"])
    times: dict[str, Any] = {name: row.get(name) for name in _MILLISECONDS}
    return Timing(n=row["n"], protocol=row["protocol"], **times)
