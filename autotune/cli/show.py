"""Commands that show what is known: list, best, explain, report."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotune import locate
from autotune.cli.options import option_db, option_format, option_objective, option_target, refuse_unreadable
from autotune.data import UsageError

if TYPE_CHECKING:
    from autotune.protocol import Objective


@click.command("list")
def list_() -> None:
    """Kernels, their problems' fields, their parameters and the size of their spaces."""
    from autotune import device, registry, tables

    shown = [*(device.profile(name) for name in ("a100", "h100", "b200", "mi300x")), device.INTERPRETER]
    tables.kernels([registry.load(name) for name in registry.entries()], shown)


@click.command()
@click.argument("kernel", required=False)
@option_db
@option_format("table", "json", "csv")
def best(kernel: str | None, db: str | None, form: str) -> None:
    """The winner of every tuned problem."""
    from autotune import registry, tables
    from autotune.store import Store

    if kernel is not None:
        registry.load(kernel)
    with Store(locate.for_reading(db), readonly=True) as store:
        rows = store.best(kernel)
    if form == "json":
        click.echo(json.dumps(rows, indent=2))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]) if rows else ["kernel"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        known = {row["kernel"] for row in rows} & registry.entries().keys()
        tables.winners(rows, {name: registry.load(name).source for name in known})


@click.command()
@click.argument("kernel")
@click.argument("problem", required=False)
@option_target
@option_objective
@option_db
@option_format("text", "json")
def explain(kernel: str, problem: str | None, target: str, objective: Objective, db: str | None, form: str) -> None:
    """Which config dispatch serves for PROBLEM on the target, where it comes from, and why.

    With --target replay:FILE and one problem recorded in FILE, PROBLEM may be left out.
    """
    from autotune import registry
    from autotune.dispatch import Dispatcher
    from autotune.targets import device_of, open_target, replays

    replay = open_target(target, objective=objective) if replays(target) else None
    loaded = registry.load(kernel) if replay is None else replay.load(kernel)
    if problem is None:
        if replay is None or len(loaded.kernel.problems) > 1:
            raise UsageError(f"no problem given for {kernel}; for example {loaded.kernel.problems[0]}")
        problem = loaded.kernel.problems[0]
    parsed = loaded.kernel.parse(problem)
    refuse_unreadable(db)
    where = device_of(target) if replay is None else replay.device
    served = loaded if replay is None else replay.load(kernel, parsed)
    choice = Dispatcher(None if db is None else Path(db), objective).explain_fully(served, parsed, where)
    if form == "json":
        click.echo(json.dumps({"config": dict(choice.config), "source": choice.source, "why": choice.why}))
    else:
        click.echo(f"{choice.source}: {choice.config}\n{choice.why}")


@click.command()
@click.argument("kernel", required=False)
@option_db
@click.option("--output", type=click.Path(), default="report.html", show_default=True, help="The page to write.")
@click.option(
    "--png", type=click.Path(), help="Folder for the plots as PNG files.  [default: OUTPUT's name + _plots]"
)
def report(kernel: str | None, db: str | None, output: str, png: str | None) -> None:
    """One HTML page of a database: what tuning gained, how sure that is, where the time went."""
    from autotune.report.write import write

    folder = write(locate.for_reading(db), Path(output), None if png is None else Path(png), kernel)
    click.echo(f"{output}, and its plots in {folder}")


COMMANDS = (list_, best, explain, report)
