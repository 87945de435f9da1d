"""The benchmark of one operator, from lists of problems to a table: what benchmarks/matmul.py and its like run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Before numpy is loaded: threads of the search's small matrices take cores that compilers and the worker need.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click

from autotune import locate, registry, tuning
from autotune.cli.options import option_db, option_target, refuse_unreadable
from autotune.data import AutotuneError, Config, Failure, Outcome, Problem, Reason, UsageError
from autotune.dispatch import Dispatcher
from autotune.exits import end
from autotune.registry import Loaded
from autotune.store import Store
from autotune.summary import Job
from autotune.targets import open_machine
from autotune.targets.target import Machine, TargetError
from benchmarks._beside import time_beside
from benchmarks._peers import columns
from benchmarks._rows import Row, summary, table
from benchmarks._scaled import scaled
from benchmarks.shapes import Lists


def command(kernel: str, lists: Lists, about: str) -> click.Command:
    """:param about: what ``--help`` says"""

    @click.command(help=about, context_settings={"help_option_names": ["-h", "--help"]})
    @click.option("--list", "names", multiple=True, type=click.Choice(tuple(lists)), help="Only these; else all.")
    @click.option("--limit", type=click.IntRange(1), help="Problems of each list at most, spread over it.")
    @option_target
    @click.option("--tune", "trials", type=click.IntRange(1), help="Tune each problem for so many trials first.")
    @option_db
    @click.option("--output", type=click.Path(path_type=Path), help="File to append a JSON line a problem to.")
    @click.option("--scaled", "small", is_flag=True, help="Sizes of the same class that the interpreter can run.")
    def run(
        names: tuple[str, ...],
        limit: int | None,
        target: str,
        trials: int | None,
        db: str | None,
        output: Path | None,
        small: bool,
    ) -> None:
        loaded = registry.load(kernel)
        chosen = {name: chosen_of(loaded, lists[name], limit, small) for name in names or lists}
        if trials is None:
            refuse_unreadable(db)
        rows = []
        with open_machine(target) as machine:
            for name, problems in chosen.items():
                for problem in problems:
                    if trials is not None:
                        with Store(locate.for_writing(db)) as store:
                            tune(loaded, problem, machine, store, trials)
                    rows.append(compared(name, loaded, problem, machine, db))
                    click.echo(f"{name}: {problem}", err=True)
                    if output is not None:
                        append(output, {**rows[-1].json(), **stamp(loaded, machine)})
        report(rows, machine)

    return run


def main(run: Callable[[], Any]) -> None:
    """A command to its end: what the user can act on is one line."""
    try:
        run()
    except AutotuneError as error:
        end(str(error), 2 if isinstance(error, UsageError) else 1)


def chosen_of(loaded: Loaded, texts: Sequence[str], limit: int | None = None, small: bool = False) -> list[Problem]:
    """The problems of a list, ``limit`` at most, at even distances from its first on; ``small``: scaled."""
    problems: Iterable[Problem] = map(loaded.kernel.parse, texts)
    if small:
        problems = (loaded.kernel.make(**scaled(problem)) for problem in problems)
    each = list(dict.fromkeys(problems))
    count = len(each) if limit is None else min(limit, len(each))
    return [each[place * len(each) // count] for place in range(count)]


def tune(loaded: Loaded, problem: Problem, machine: Machine, store: Store, trials: int) -> None:
    """Until ``trials`` configs are known, and a final of the fastest."""
    for done in tuning.sweep([Job(loaded.name, problem)], machine, store, trials=trials):
        if done.trouble is not None:  # the others go on
            click.echo(done.trouble, err=True)


def compared(name: str, loaded: Loaded, problem: Problem, machine: Machine, db: str | Path | None) -> Row:
    """What dispatch serves, the default and the kernel's peers, in turns; a Failure for what does not run."""
    choice = Dispatcher(None if db is None else Path(db)).explain(loaded, problem, machine.device)
    default = loaded.space.default(problem, machine.device)
    found = _outcomes(loaded, problem, machine, [choice.config, default])
    return Row(
        name=name,
        kernel=loaded.name,
        problem=problem,
        work=loaded.kernel.work(problem),
        choice=choice,
        default_config=default,
        tuned=found[choice.config],
        default=found[default],
        peers={peer: found[peer] for peer in columns(loaded.name)},
    )


def _outcomes(
    loaded: Loaded, problem: Problem, machine: Machine, configs: Sequence[Config]
) -> dict[Config | str, Outcome]:
    peers = columns(loaded.name)
    unsupported = loaded.space.unsupported(problem, machine.device)
    try:
        found: dict[Config | str, Outcome] = {}
        for config in dict.fromkeys(configs):
            failure = (
                machine.verify(loaded.entry, problem, config)
                if unsupported is None
                else Failure(Reason.RESOURCES, unsupported, machine.protocol)
            )
            if failure is not None:
                found[config] = failure
        right = [config for config in dict.fromkeys(configs) if config not in found]
        return {**found, **time_beside(machine, loaded.entry, problem, right, peers)}
    except TargetError as error:  # one problem too large for this machine must not cost the others
        return dict.fromkeys((*configs, *peers), Failure(Reason.RESOURCES, str(error), machine.protocol))


def report(rows: Sequence[Row], machine: Machine) -> None:
    """The table, after a line that says what it was measured on."""
    versions = f"driver {machine.device.driver or 'none'}, triton {machine.triton}, torch {machine.torch}"
    click.echo(f"{machine.device.key}, {machine.protocol}, {versions}")
    if machine.name == "interpreter":
        click.echo("a dry run: the interpreter's times say nothing of a GPU's")
    click.echo(table(rows))
    click.echo(summary(rows))


def stamp(loaded: Loaded, machine: Machine) -> dict[str, str]:
    """Where a row is from."""
    return {
        **{"code": loaded.source, "device": machine.device.key, "driver": machine.device.driver},
        **{"protocol": machine.protocol, "triton": machine.triton, "torch": machine.torch, "target": machine.name},
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def append(path: Path, row: dict[str, Any]) -> None:
    """One JSON line: what was measured before a kill is kept."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
