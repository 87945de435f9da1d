"""``autotune tune``."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from autotune import locate
from autotune.cli.options import option_db, option_objective, option_target
from autotune.data import AutotuneError, UsageError
from autotune.exits import end

if TYPE_CHECKING:
    from autotune.protocol import Objective
    from autotune.summary import Job, Summary
    from autotune.targets.replay import Replay

_BUDGET = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h)?")


@click.command()
@click.argument("kernel", required=False)
@click.argument("problems", nargs=-1, metavar="[PROBLEM]...")
@click.option("--workload", type=click.Path(), help="Tune the problems of this file, most total work first.")
@option_target
@click.option(
    "--trials",
    type=int,
    help="Configs wanted per problem, known ones included.  [default: 50; with --budget, all that promise a gain]",
)
@click.option("--budget", help="Wall time for the command, but for the trial under way at its end: 90s, 10m, 1.5h.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--again", is_flag=True, help="Measure anew what the database already knows.")
@option_objective
@click.option("--eager", is_flag=True, help="On a GPU, time single launches instead of CUDA graphs.")
@option_db
def tune(
    kernel: str | None,
    problems: tuple[str, ...],
    workload: str | None,
    target: str,
    trials: int | None,
    budget: str | None,
    seed: int,
    again: bool,
    objective: Objective,
    eager: bool,
    db: str | None,
) -> None:
    """Search for the fastest config of each PROBLEM, for example M=64,N=64,K=64,dtype=float16.

    With --target replay:FILE and no PROBLEM, of each one recorded in FILE (of KERNEL, if given).
    """
    from autotune import progress, tables, tuning
    from autotune.store import Store
    from autotune.targets import open_replay, open_target, replays

    started = time.monotonic()
    budget_s = None if budget is None else _seconds(budget)
    if trials is not None and trials < 1:
        raise UsageError(f"--trials is {trials}; it must be at least 1")
    wanted = tuning.TRIALS if trials is None and budget_s is None else trials
    # What a file has recorded is the file's to tell; else all is known before a worker starts.
    replay = open_replay(target, objective) if replays(target) else None
    jobs = tuning.merged(_jobs(kernel, problems, workload, replay))
    summaries: list[Summary] = []
    try:
        with (
            replay or open_target(target, seed, objective, eager) as opened,
            Store(locate.for_writing(db)) as store,
            progress.shown(len(jobs), wanted, budget_s) as on_step,
        ):
            if budget_s is not None:  # what starting the target took is part of it
                budget_s = max(1e-3, budget_s - (time.monotonic() - started))
            options: dict[str, Any] = {"trials": wanted, "budget_s": budget_s, "seed": seed, "again": again}
            tuning.sweep(jobs, opened, store, **options, on_step=on_step, summaries=summaries)
    except KeyboardInterrupt:
        tables.summaries(summaries)
        tables.ladder(summaries)
        end("stopped; every finished trial is recorded, the same command goes on from here", 130)
    tables.summaries(summaries)
    tables.ladder(summaries)
    if len(summaries) < len(jobs):
        click.echo(
            f"{len(jobs) - len(summaries)} of {len(jobs)} problems were not reached; raise --budget", err=True
        )
    troubles = [summary.trouble for summary in summaries if summary.trouble is not None]
    if troubles:
        raise AutotuneError("; ".join(troubles))
    if summaries and all(summary.best is None for summary in summaries):
        raise AutotuneError("no candidate of any problem ran; the failures above say why")


def _jobs(kernel: str | None, problems: Sequence[str], workload: str | None, replay: Replay | None) -> list[Job]:
    from autotune import registry
    from autotune.summary import Job
    from autotune.workload import Workload

    load = registry.load if replay is None else replay.load
    if replay is not None and not problems and workload is None:
        # All that is recorded.
        loaded = [load(name) for name in (replay.kernels if kernel is None else [kernel])]
        return [Job(one.name, one.kernel.parse(problem)) for one in loaded for problem in one.kernel.problems]
    chosen = None if kernel is None else load(kernel)
    jobs = [Job(chosen.name, chosen.kernel.parse(problem)) for problem in problems] if chosen is not None else []
    if workload is not None:
        jobs += [job for job in Workload.load(workload).jobs() if kernel in (None, job.kernel)]
    if jobs:
        return jobs
    if workload is not None:
        raise UsageError(f"workload {workload} has no problem of {kernel}; leave the kernel out to tune all of it")
    if chosen is not None:
        raise UsageError(f"no problem given for {kernel}; for example {chosen.kernel.problems[0]}")
    raise UsageError("nothing to tune; give KERNEL PROBLEM ..., or --workload FILE")


def _seconds(text: str) -> float:
    match = _BUDGET.fullmatch(text.strip())
    seconds = float(match.group(1)) * {"s": 1, "m": 60, "h": 3600}[match.group(2) or "s"] if match else 0.0
    if not seconds > 0:
        raise UsageError(f"--budget is {text!r}; write a time above zero: 90s, 10m or 1.5h")
    return seconds


COMMANDS = (tune,)
