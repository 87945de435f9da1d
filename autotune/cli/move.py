"""Commands that move trials between files, and the identity they are keyed by: merge, export, import, device."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from autotune import locate
from autotune.cli.options import option_db, option_format, option_target


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SRC...", type=click.Path())
@click.option("--into", required=True, type=click.Path(), help="The database that takes them in.")
def merge(sources: Sequence[str], into: str) -> None:
    """Copy the trials of databases into one. Idempotent; of two measurements the later stays."""
    from autotune import exchange

    changed = exchange.merge(sources, into)
    click.echo(f"{changed} rows new or later in {into}")


@click.command()
@click.argument("output", required=False, type=click.Path())
@option_db
def export(output: str | None, db: str | None) -> None:
    """Write every trial as JSON lines to OUTPUT, or to standard output."""
    from autotune import exchange

    source = locate.for_reading(db)
    if output is None:
        exchange.export(source, sys.stdout)
    else:
        click.echo(f"{exchange.export_to(source, output)} rows in {output}", err=True)


@click.command("import")
@click.argument("input", required=False, type=click.Path())
@option_db
def import_(input: str | None, db: str | None) -> None:
    """Take in what export wrote, from INPUT or from standard input; all of it or nothing."""
    from autotune import exchange

    target = locate.for_writing(db)
    if input is None:
        changed = exchange.import_(target, sys.stdin)
    else:
        with Path(input).open(encoding="utf-8-sig") as stream:
            changed = exchange.import_(target, stream)
    click.echo(f"{changed} rows new or later in {target}")


@click.command()
@option_target
@option_format("text", "json")
def device(target: str, form: str) -> None:
    """The facts of the target's device, and the identity that keys the database."""
    from dataclasses import asdict

    from autotune.targets import device_of

    seen = device_of(target)
    facts = {"key": seen.key, **asdict(seen)}
    if form == "json":
        click.echo(json.dumps(facts))
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in facts.items()))


COMMANDS = (merge, export, import_, device)
