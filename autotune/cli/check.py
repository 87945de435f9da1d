"""Commands that run kernels without searching: check, bench."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from autotune.cli.options import option_db, option_objective, option_target, refuse_unreadable
from autotune.data import AutotuneError, UsageError

if TYPE_CHECKING:
    from autotune.protocol import Objective


@click.command()
@click.argument("kernels", nargs=-1, metavar="[KERNEL]...")
@option_target
@click.option("--samples", type=int, default=4, show_default=True, help="Configs per problem beside the default.")
@click.option("--seed", type=int, default=0, show_default=True)
def check(kernels: tuple[str, ...], target: str, samples: int, seed: int) -> None:
    """Run kernels on their own test problems, the default and sampled configs, against the reference."""
    from autotune import checking, registry, tables
    from autotune.targets import open_machine

    loaded = [registry.load(name) for name in kernels or registry.entries()]
    if samples < 0:
        raise UsageError(f"--samples is {samples}; it must be 0 or more")
    with open_machine(target, seed) as opened:
        verdicts = checking.check(loaded, opened, samples=samples, seed=seed)
    tables.verdicts(verdicts)
    wrong = sum(len(verdict.failures) for verdict in verdicts)
    if wrong:
        raise AutotuneError(f"{wrong} configs failed; see above")


@click.command()
@click.argument("kernel", required=False)
@click.argument("problems", nargs=-1, metavar="[PROBLEM]...")
@option_target
@option_objective
@option_db
def bench(kernel: str | None, problems: tuple[str, ...], target: str, objective: Objective, db: str | None) -> None:
    """Tuned, default and torch side by side, measured in this run."""
    from autotune import checking, registry, tables
    from autotune.targets import open_machine

    loaded = [registry.load(kernel)] if kernel else [registry.load(name) for name in registry.entries()]
    parsed = [loaded[0].kernel.parse(problem) for problem in problems] if kernel else []
    refuse_unreadable(db)
    with open_machine(target, objective=objective) as opened:
        tables.comparison(checking.compare(loaded, parsed, opened, db, objective))


COMMANDS = (check, bench)
