"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def option_db(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--db", type=click.Path(), help="Database; else AUTOTUNE_DB, ./tuning.db, the shipped one."
    )(function)


def option_target(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--target",
        default="auto",
        show_default=True,
        help="auto (a GPU, else the interpreter), cuda:N, interpreter, replay:FILE.",
    )(function)


def option_objective(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--objective",
        type=click.Choice(("throughput", "latency")),
        default="throughput",
        show_default=True,
        help="throughput: median time, cold cache; latency: 95 % quantile of single launches, their cost included.",
    )(function)


def option_format(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--format", "form", type=click.Choice(formats), default=formats[0], show_default=True)


def refuse_unreadable(db: str | None) -> None:
    """Dispatch makes do without a database that it can't read; a person who named one wants to know."""
    from autotune.store import Store

    if db is not None:
        Store(db, readonly=True).close()
