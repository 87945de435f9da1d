"""A trial as a row of the table ``trials``, and back. Nothing read from a file is trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from autotune.data import Config, Failure, Outcome, Problem, Reason, Timing, Trial, UsageError
from autotune.rung import Resources, Rung

KEY = ("kernel", "source", "problem", "device", "config", "protocol")
#: Columns that every row has a text in; any other may be null.
REQUIRED = (*KEY, "target", "created_at")
#: Column -> what it holds, in the table's order.
KINDS: Mapping[str, type[str] | type[float] | type[int]] = {
    **dict.fromkeys(KEY, str),
    **{"median_ms": float, "p20_ms": float, "p80_ms": float, "n": int, "reason": str, "detail": str},
    **dict.fromkeys(("target", "triton", "torch", "driver", "provenance", "created_at"), str),
    **dict.fromkeys(("score_ms", "low_ms", "high_ms", "rank_ms"), float),
    **{"rung": str, "seconds": str, "shared_bytes": int, "registers": int, "spill_bytes": int, "same_as": str},
}
COLUMNS = tuple(KINDS)
_MILLISECONDS = tuple(name for name, kind in KINDS.items() if kind is float)
_RESOURCES = ("shared_bytes", "registers", "spill_bytes")


def to_row(trial: Trial) -> dict[str, Any]:
    return {
        **{"kernel": trial.kernel, "source": trial.source, "problem": str(trial.problem)},
        **{"device": trial.device, "config": str(trial.config), "protocol": trial.outcome.protocol},
        **_outcome_columns(trial.outcome),
        **{"target": trial.target, "triton": trial.triton, "torch": trial.torch, "driver": trial.driver},
        "provenance": json.dumps(dict(trial.provenance), sort_keys=True),
        "created_at": trial.created_at,
        "rung": None if trial.rung is None else trial.rung.value,
        "seconds": json.dumps({name: round(spent, 6) for name, spent in trial.seconds.items()}, sort_keys=True),
        **(dict.fromkeys(_RESOURCES) if trial.resources is None else asdict(trial.resources)),
        "same_as": None if trial.same_as is None else str(trial.same_as),
    }


def to_trial(row: Mapping[str, Any]) -> Trial:
    """:raises UsageError: naming the row, if a value is not what its column holds."""
    # A file that is only read may be older than the last columns.
    row = {**dict.fromkeys(COLUMNS), **row}
    try:
        return Trial(
            **{name: row[name] for name in ("kernel", "source", "device", "target", "created_at")},
            **{name: row[name] or "" for name in ("triton", "torch", "driver")},
            problem=Problem.parse(row["problem"]),
            config=Config.parse(row["config"]),
            outcome=to_outcome(row),
            provenance=dict(json.loads(row["provenance"] or "{}")),
            rung=None if row["rung"] is None else Rung(row["rung"]),
            seconds={name: float(spent) for name, spent in json.loads(row["seconds"] or "{}").items()},
            resources=None if row["shared_bytes"] is None else Resources(*(row[name] for name in _RESOURCES)),
            same_as=None if row["same_as"] is None else Config.parse(row["same_as"]),
        )
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"{row['kernel']} {row['problem']} {row['config']}: {error}") from error


def to_outcome(row: Mapping[str, Any]) -> Outcome:
    """:raises KeyError, TypeError, ValueError: if the row's columns are no outcome."""
    if row["median_ms"] is None:
        return Failure(Reason(row["reason"]), row["detail"] or "", row["protocol"])
    times: dict[str, Any] = {name: row.get(name) for name in _MILLISECONDS}
    return Timing(n=row["n"], protocol=row["protocol"], **times)


def _outcome_columns(outcome: Outcome) -> dict[str, Any]:
    columns: dict[str, Any] = dict.fromkeys((*_MILLISECONDS, "n", "reason", "detail"))
    if isinstance(outcome, Failure):
        return {**columns, "reason": outcome.reason.value, "detail": outcome.detail}
    return {**columns, **{name: getattr(outcome, name) for name in (*_MILLISECONDS, "n")}}


def checked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row from outside, in canonical spelling and with all columns.

    :raises UsageError: if it is not a trial.
    """
    try:
        for name in COLUMNS:
            _check_kind(name, row.get(name))
        known = {name: row.get(name) for name in COLUMNS}
        config, problem = Config.parse(row["config"]), Problem.parse(row["problem"])
        datetime.fromisoformat(row["created_at"])
        outcome = to_outcome(row)
        to_trial(known)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(str(error)) from error
    return {**known, "config": str(config), "problem": str(problem), **_outcome_columns(outcome)}


def _check_kind(name: str, value: Any) -> None:
    """:raises UsageError: if ``value`` is not of the column's kind."""
    if KINDS[name] is float:
        good, kind = value is None or type(value) in (int, float), "a number"
    elif KINDS[name] is int:
        good, kind = value is None or (type(value) is int and value < 2**63), "an integer"
    elif name in REQUIRED:
        good, kind = isinstance(value, str) and value != "", "text, and not empty"
    else:
        good, kind = value is None or isinstance(value, str), "text"
    if isinstance(value, str):
        good = (good and value.isprintable()) or name == "detail"
        value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    if not good:
        raise UsageError(f"{name} is {repr(value)[:80]}; it must be {kind}")
