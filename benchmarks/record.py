"""Record what a device does: kernels verified, spaces measured, tuned beside torch.

    python -m benchmarks.record --folder DIR [--minutes 25] [--configs 1000] [--refine 30] [--kernel gemm]
    python -m benchmarks.record --folder DIR --scaled --minutes 0.1 --refine 1 --samples 0          a dry run

1. Each kernel is verified on its own problems: ``checks.jsonl``.
2. Of each problem in the RECORDED of benchmarks/shapes.py and benchmarks/sparse_shapes.py, configs are measured in
   a random order, each in full, until there are ``--configs`` or its share of the minutes is spent; then
   ``--refine`` more that the search proposes from there, and a final of the fastest: ``trials.db``, and the same as
   JSON lines, ``trials.jsonl``.
3. Tuned, default and torch are timed in turns: ``comparison.jsonl``, and a table.

The same command goes on from where it was stopped: what the folder has is not measured again, but for step 3.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from autotune import checking, exchange, registry, tables
from autotune.cli.options import option_target
from autotune.data import AutotuneError, Config, Problem, Trial
from autotune.registry import Loaded
from autotune.store import Store
from autotune.targets import open_machine
from autotune.targets.target import Machine, TargetError
from benchmarks import shapes, sparse_shapes
from benchmarks._operators import append, chosen_of, compared, main, report, stamp, tune

RECORDED = {**shapes.RECORDED, **sparse_shapes.RECORDED}


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="For the files; made if missing.")
@click.option("--kernel", "names", multiple=True, type=click.Choice(tuple(RECORDED)), help="Only these; else all.")
@option_target
@click.option("--minutes", type=click.FloatRange(min=0), default=25, show_default=True, help="For random configs.")
@click.option("--configs", type=click.IntRange(1), default=1000, show_default=True, help="Random ones a problem.")
@click.option("--refine", type=click.IntRange(1), default=30, show_default=True, help="Searched ones a problem.")
@click.option("--samples", type=click.IntRange(0), default=2, show_default=True, help="Verified beside defaults.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--scaled", "small", is_flag=True, help="Sizes of the same class that the interpreter can run.")
def command(
    folder: Path,
    names: tuple[str, ...],
    target: str,
    minutes: float,
    configs: int,
    refine: int,
    samples: int,
    seed: int,
    small: bool,
) -> None:
    """See the module's docstring."""
    folder.mkdir(parents=True, exist_ok=True)
    database, rows = folder / "trials.db", []
    kernels = [registry.load(name) for name in names or RECORDED]
    jobs = [(one, problem) for one in kernels for problem in chosen_of(one, RECORDED[one.name], small=small)]
    with open_machine(target, seed) as machine, Store(database) as store:
        every = kernels if names else [registry.load(name) for name in registry.entries()]
        failures = check(every, machine, folder / "checks.jsonl", samples, seed)
        end = time.monotonic() + 60 * minutes
        for number, (loaded, problem) in enumerate(jobs):
            share_s = max(0.0, end - time.monotonic()) / (len(jobs) - number)
            known = record(loaded, problem, machine, store, configs, seed, time.monotonic() + share_s)
            click.echo(f"{loaded.name} {problem}: {known} configs known", err=True)
            tune(loaded, problem, machine, store, known + refine)
            exchange.export_to(database, folder / "trials.jsonl")
        for loaded, problem in jobs:
            rows.append(compared(loaded.name, loaded, problem, machine, database))
            append(folder / "comparison.jsonl", {**rows[-1].json(), **stamp(loaded, machine)})
        report(rows, machine)
    if failures:
        raise AutotuneError(
            f"{failures} failures on the kernels' own problems; {folder / 'checks.jsonl'} says of what"
        )


def check(kernels: Sequence[Loaded], machine: Machine, path: Path, samples: int, seed: int) -> int:
    """Verify the kernels whose present code has no row in ``path``; how many failures all their rows tell of."""
    before = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    failures = 0
    for loaded in kernels:
        where = stamp(loaded, machine)
        rows = [row for row in before if (row["kernel"], row["code"], row["device"]) == _key(loaded, where)]
        if not rows:
            rows = [{**row, **where} for row in _checked(loaded, machine, samples, seed)]
            for row in rows:
                append(path, row)
        failures += sum(len(row["failures"]) for row in rows)
    return failures


def _key(loaded: Loaded, where: Mapping[str, str]) -> tuple[str, str, str]:
    return loaded.name, where["code"], where["device"]


def _checked(loaded: Loaded, machine: Machine, samples: int, seed: int) -> list[dict[str, Any]]:
    """A row for each of the kernel's own problems, with what failed there by its config."""
    try:
        verdicts = checking.check([loaded], machine, samples=samples, seed=seed)
    except TargetError as error:
        return [{"kernel": loaded.name, "problem": "", "configs": 0, "failures": {"": str(error)}}]
    tables.verdicts(verdicts)
    return [
        {
            **{"kernel": verdict.kernel, "problem": str(verdict.problem), "configs": verdict.configs},
            "unsupported": verdict.unsupported,
            "failures": {str(config): asdict(failure) for config, failure in verdict.failures.items()},
        }
        for verdict in verdicts
    ]


def record(
    loaded: Loaded, problem: Problem, machine: Machine, store: Store, configs: int, seed: int, end: float
) -> int:
    """Measure configs in a random order until ``configs`` of them are known or time is up; how many are known."""
    if loaded.space.unsupported(problem, machine.device) is not None:
        return 0
    allowed = list(loaded.space.allowed(problem, machine.device))
    drawn = random.Random(seed).sample(allowed, min(configs, len(allowed)))
    known = store.trials(loaded.name, loaded.source, problem, machine.device.key, machine.protocol)
    wanted = [config for config in drawn if config not in known]
    for place, config in enumerate(wanted):
        if time.monotonic() >= end:
            break
        for upcoming in wanted[place + machine.ahead if place else 0 : place + machine.ahead + 1]:
            machine.announce(loaded.entry, problem, upcoming)
        try:
            known[config] = trial(loaded, problem, machine, config, seed)
        except TargetError as error:
            click.echo(f"{loaded.name} {problem}: {error}", err=True)
            break
        store.record(known[config])
    return sum(config.provider is None for config in known)


def trial(loaded: Loaded, problem: Problem, machine: Machine, config: Config, seed: int) -> Trial:
    """One config, measured in full however slow it is: a table must not be better known where it is fast."""
    measured = machine.evaluate(loaded.entry, problem, config)
    return Trial(
        kernel=loaded.name,
        source=loaded.source,
        problem=problem,
        device=machine.device.key,
        config=config,
        outcome=measured.outcome,
        target=machine.name,
        triton=machine.triton,
        torch=machine.torch,
        created_at=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        driver=machine.device.driver,
        provenance={"origin": "random", "seed": seed},
        rung=measured.rung,
        seconds=measured.seconds,
        resources=measured.resources,
        same_as=measured.same_as,
    )


if __name__ == "__main__":
    main(command)
