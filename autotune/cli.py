"""The command line: a thin face over the library."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune import locate
from autotune.data import AutotuneError, UsageError
from autotune.exits import Group, end

if TYPE_CHECKING:
    from autotune.tuning import Job

_BUDGET = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h)?")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="autotune")
def main() -> None:
    """Tune Triton kernels for the problems a model runs; keep every trial; serve the winners."""


def _option_db(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--db", type=click.Path(), help="Database; else AUTOTUNE_DB, ./tuning.db, the shipped one."
    )(function)


def _option_target(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--target",
        default="auto",
        show_default=True,
        help="auto (a GPU, else the interpreter), cuda:N, interpreter.",
    )(function)


def _option_format(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--format", "form", type=click.Choice(formats), default=formats[0], show_default=True)


@main.command("list")
def list_() -> None:
    """Kernels, their problems' fields, their parameters and the size of their spaces."""
    from autotune import device, registry, tables

    shown = [*(device.profile(name) for name in ("a100", "h100", "b200", "mi300x")), device.INTERPRETER]
    tables.kernels([registry.load(name) for name in registry.entries()], shown)


@main.command()
@click.argument("kernel", required=False)
@click.argument("problems", nargs=-1, metavar="[PROBLEM]...")
@click.option("--workload", type=click.Path(), help="Tune the problems of this file, most total work first.")
@_option_target
@click.option("--trials", type=int, help="Configs wanted per problem, known ones included.  [default: 50]")
@click.option("--budget", help="Wall time for the whole command: 90s, 10m, 1.5h.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--again", is_flag=True, help="Measure anew what the database already knows.")
@_option_db
def tune(
    kernel: str | None,
    problems: tuple[str, ...],
    workload: str | None,
    target: str,
    trials: int | None,
    budget: str | None,
    seed: int,
    again: bool,
    db: str | None,
) -> None:
    """Search for the fastest config of each PROBLEM, for example M=64,N=64,K=64,dtype=float16."""
    from autotune import progress, tables, tuning
    from autotune.store import Store
    from autotune.targets import open_target

    budget_s = None if budget is None else _seconds(budget)
    wanted = tuning.TRIALS if trials is None else trials
    if wanted < 1:
        raise UsageError(f"--trials is {wanted}; it must be at least 1")
    jobs = _jobs(kernel, problems, workload)
    summaries: list[tuning.Summary] = []
    try:
        with (
            open_target(target, seed) as opened,
            Store(locate.for_writing(db)) as store,
            progress.shown(len(jobs), wanted, budget_s) as on_step,
        ):
            options: dict[str, Any] = {"trials": wanted, "budget_s": budget_s, "seed": seed, "again": again}
            tuning.sweep(jobs, opened, store, **options, on_step=on_step, summaries=summaries)
    except KeyboardInterrupt:
        tables.summaries(summaries)
        end("stopped; every finished trial is recorded, the same command goes on from here", 130)
    tables.summaries(summaries)
    if len(summaries) < len(jobs):
        click.echo(
            f"{len(jobs) - len(summaries)} of {len(jobs)} problems were not reached; raise --budget", err=True
        )
    troubles = [summary.trouble for summary in summaries if summary.trouble is not None]
    if troubles:
        raise AutotuneError("; ".join(troubles))
    if summaries and all(summary.best is None for summary in summaries):
        raise AutotuneError("no candidate of any problem ran; the failures above say why")


def _jobs(kernel: str | None, problems: Sequence[str], workload: str | None) -> list[Job]:
    from autotune import registry
    from autotune.tuning import Job
    from autotune.workload import Workload

    loaded = None if kernel is None else registry.load(kernel)
    jobs = [Job(loaded.name, loaded.kernel.parse(problem)) for problem in problems] if loaded is not None else []
    if workload is not None:
        jobs += [job for job in Workload.load(workload).jobs() if kernel in (None, job.kernel)]
    if jobs:
        return jobs
    if workload is not None:
        raise UsageError(f"workload {workload} has no problem of {kernel}; leave the kernel out to tune all of it")
    if loaded is not None:
        raise UsageError(f"no problem given for {kernel}; for example {loaded.kernel.problems[0]}")
    raise UsageError("nothing to tune; give KERNEL PROBLEM ..., or --workload FILE")


def _seconds(text: str) -> float:
    match = _BUDGET.fullmatch(text.strip())
    seconds = float(match.group(1)) * {"s": 1, "m": 60, "h": 3600}[match.group(2) or "s"] if match else 0.0
    if not seconds > 0:
        raise UsageError(f"--budget is {text!r}; write a time above zero: 90s, 10m or 1.5h")
    return seconds


@main.command()
@click.argument("kernel", required=False)
@_option_db
@_option_format("table", "json", "csv")
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


@main.command()
@click.argument("kernel")
@click.argument("problem")
@_option_target
@_option_db
@_option_format("text", "json")
def explain(kernel: str, problem: str, target: str, db: str | None, form: str) -> None:
    """Which config dispatch serves for PROBLEM on the target, where it comes from, and why."""
    from autotune import device, dispatch, registry
    from autotune.targets import resolve

    registry.load(kernel).kernel.parse(problem)
    name = resolve(target)
    where = device.INTERPRETER if name == "interpreter" else device.present(int(name.partition(":")[2]))
    _readable(db)
    dispatch.use(db)
    choice = dispatch.explain(kernel, problem, device=where)
    if form == "json":
        click.echo(json.dumps({"config": dict(choice.config), "source": choice.source, "why": choice.why}))
    else:
        click.echo(f"{choice.source}: {choice.config}\n{choice.why}")


@main.command()
@click.argument("kernels", nargs=-1, metavar="[KERNEL]...")
@_option_target
@click.option("--samples", type=int, default=4, show_default=True, help="Configs per problem beside the default.")
@click.option("--seed", type=int, default=0, show_default=True)
def check(kernels: tuple[str, ...], target: str, samples: int, seed: int) -> None:
    """Run kernels on their own test problems, the default and sampled configs, against the reference."""
    from autotune import checking, registry, tables
    from autotune.targets import open_target

    loaded = [registry.load(name) for name in kernels or registry.entries()]
    if samples < 0:
        raise UsageError(f"--samples is {samples}; it must be 0 or more")
    with open_target(target, seed) as opened:
        verdicts = checking.check(loaded, opened, samples=samples, seed=seed)
    tables.verdicts(verdicts)
    wrong = sum(len(verdict.failures) for verdict in verdicts)
    if wrong:
        raise AutotuneError(f"{wrong} configs failed; see above")


@main.command()
@click.argument("kernel", required=False)
@click.argument("problems", nargs=-1, metavar="[PROBLEM]...")
@_option_target
@_option_db
def bench(kernel: str | None, problems: tuple[str, ...], target: str, db: str | None) -> None:
    """Tuned, default and torch side by side, measured in this run."""
    from autotune import checking, registry, tables
    from autotune.targets import open_target

    loaded = [registry.load(kernel)] if kernel else [registry.load(name) for name in registry.entries()]
    parsed = [loaded[0].kernel.parse(problem) for problem in problems] if kernel else []
    _readable(db)
    with open_target(target) as opened:
        tables.comparison(checking.compare(loaded, parsed, opened, db))


def _readable(db: str | None) -> None:
    """Dispatch makes do without a database that it can't read; a person who named one wants to know."""
    from autotune.store import Store

    if db is not None:
        Store(db, readonly=True).close()


@main.command()
@click.argument("sources", nargs=-1, required=True, metavar="SRC...", type=click.Path())
@click.option("--into", required=True, type=click.Path(), help="The database that takes them in.")
def merge(sources: Sequence[str], into: str) -> None:
    """Copy the trials of databases into one. Idempotent; of two measurements the later stays."""
    from autotune import exchange

    changed = exchange.merge(sources, into)
    click.echo(f"{changed} rows new or later in {into}")


@main.command()
@click.argument("output", required=False, type=click.Path())
@_option_db
def export(output: str | None, db: str | None) -> None:
    """Write every trial as JSON lines to OUTPUT, or to standard output."""
    from autotune import exchange

    source = locate.for_reading(db)
    if output is None:
        exchange.export(source, sys.stdout)
    else:
        click.echo(f"{exchange.export_to(source, output)} rows in {output}", err=True)


@main.command("import")
@click.argument("input", required=False, type=click.Path())
@_option_db
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


@main.command()
@_option_target
@_option_format("text", "json")
def device(target: str, form: str) -> None:
    """The facts of the target's device, and the identity that keys the database."""
    from dataclasses import asdict

    from autotune import device as devices
    from autotune.targets import resolve

    name = resolve(target)
    seen = devices.INTERPRETER if name == "interpreter" else devices.present(int(name.partition(":")[2]))
    facts = {"key": seen.key, **asdict(seen)}
    if form == "json":
        click.echo(json.dumps(facts))
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in facts.items()))


if __name__ == "__main__":
    main(prog_name="autotune")
