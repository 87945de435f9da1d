"""Evaluations that a search takes on recorded spaces: ours beside random search and Optuna's TPE, in one run.

    python -m benchmarks.search --tables DIR [--searchers ours,random] [--seeds 10] [--budget 200] [--json FILE]

DIR holds tables as autotune/table.py reads them. A new config costs one evaluation, also when it failed. ert5 and
ert1 are the expected evaluations to within 5 % and 1 % of the optimum: those spent, at most the budget a seed, over
the number of seeds that got there (a lower bound where none did); hit5 and hit1 are the shares that did, x@B is the
best time after B evaluations over the optimum (a table's worst time before the first success). Over tables: the
geometric mean of ert and x@B, the mean of shares and of the milliseconds that a proposal takes, and the slowest.

Searchers: ``ours`` knows the space alone. ``ours-transfer`` learns from the same kernel's tables on other devices,
``ours-transfer-far`` from those of another arch_group (near copies prove nothing), ``ours-transfer-logged`` from
300 random trials of each, ``ours-transfer-shuffled`` from tables whose times are shuffled among their configs: what
a misleading source costs. ``random`` is without replacement, as its exact expectation. ``optuna-tpe`` is Optuna's
TPE with categorical values; what it repeats and what is not allowed costs it nothing, after 10 such in a row it
gets a random config.
"""

from __future__ import annotations

import os

# Before numpy is loaded: one thread a process, and as many processes as cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np
import optuna

from autotune.data import UsageError
from autotune.search.axes import Floats
from autotune.table import Table, read_table
from benchmarks.searchers import SEARCHERS, Make, Searcher, sources_of, told

Figures = dict[str, float]

DEFAULT = "ours,ours-transfer,random,optuna-tpe"
TOLERANCES = {"5": 0.05, "1": 0.01}
BUDGETS = (20, 50, 100, 200)


@cache
def table_at(path: Path) -> Table:
    return read_table(path)


def replay(searcher: Searcher, table: Table, budget: int) -> tuple[Floats, list[float]]:
    """(budget,) best time so far, in milliseconds, and how long each proposal took, in milliseconds."""
    best_ms, curve, ask_ms = float(np.nanmax(table.time_ms)), [], []
    for _ in range(min(budget, len(table))):
        start = time.perf_counter()
        row = searcher.ask()
        ask_ms.append((time.perf_counter() - start) * 1e3)
        time_ms = told(table.time_ms[row])
        best_ms = best_ms if time_ms is None else min(best_ms, time_ms)
        curve.append(best_ms)
        searcher.tell(time_ms)
    return np.array(curve + curve[-1:] * (budget - len(curve))), ask_ms


def replayed(make: Make, table: Table, tables: Sequence[Table], seeds: int, budget: int) -> Figures:
    """The figures of a searcher on one table."""
    curves, asks = zip(*(replay(make(table, tables, seed), table, budget) for seed in range(seeds)), strict=True)
    over = np.stack(curves) / np.nanmin(table.time_ms)
    figures: Figures = {}
    for name, tolerance in TOLERANCES.items():
        hit = over <= 1 + tolerance
        there = hit.any(1)
        spent = np.where(there, hit.argmax(1) + 1, budget).sum()
        figures |= {f"ert{name}": float(spent / max(there.sum(), 1)), f"hit{name}": float(there.mean())}
    figures |= {f"x@{b}": float(np.exp(np.log(over[:, b - 1]).mean())) for b in BUDGETS if b <= budget}
    all_ms = np.concatenate(asks)
    return figures | {"mean_ask_ms": float(all_ms.mean()), "worst_ask_ms": float(all_ms.max())}


def by_chance(table: Table, budget: int) -> Figures:
    """The figures that random search without replacement is expected to have."""
    over = np.sort(np.nan_to_num(table.time_ms, nan=np.nanmax(table.time_ms)) / np.nanmin(table.time_ms))
    drawn = np.arange(min(budget, len(over)))
    figures: Figures = {}
    for name, tolerance in TOLERANCES.items():
        good = int((over <= 1 + tolerance).sum())
        # missed[b]: that b draws hold no good one.
        missed = np.concatenate([[1.0], np.cumprod((len(over) - good - drawn) / (len(over) - drawn))])
        hit = 1 - float(missed[-1])
        figures |= {f"ert{name}": float(missed[:-1].sum()) / hit, f"hit{name}": hit}
    for b in BUDGETS:
        if b <= budget:
            figures[f"x@{b}"] = math.exp(float(_least(len(over), min(b, len(over))) @ np.log(over)))
    return figures


def _least(count: int, draws: int) -> Floats:
    """(count,): how likely the least of ``draws`` from 0 to count - 1 is each of them."""
    later = count - np.arange(count)
    beyond = np.cumprod(np.maximum(later - draws, 0) / later)  # that all draws are later ones
    least: Floats = -np.diff(beyond, prepend=1.0)
    return least


def measured(name: str, table: Path, tables: Sequence[Path], seeds: int, budget: int) -> Figures:
    """One searcher on one table, in whatever process."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make = SEARCHERS[name]
    if make is None:
        return by_chance(table_at(table), budget)
    return replayed(make, table_at(table), [table_at(path) for path in tables], seeds, budget)


def summary(rows: Sequence[Figures]) -> Figures:
    """Over tables."""
    joined = {}
    for key in rows[0]:
        values = np.array([row[key] for row in rows])
        geometric = key.startswith(("ert", "x@"))
        joined[key] = float(np.exp(np.log(values).mean()) if geometric else values.mean())
        if key == "worst_ask_ms":
            joined[key] = float(values.max())
    return joined


def print_rows(title: str, rows: Mapping[str, Figures]) -> None:
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    print(f"\n{title:26}" + "".join(f"{key:>{_width(key)}}" for key in keys))
    for name, row in rows.items():
        texts = {key: f"{row[key]:.{3 if key[0] == 'x' else 2 if key[0] == 'h' else 1}f}" for key in row}
        print(f"{name:26}" + "".join(f"{texts.get(key, '-'):>{_width(key)}}" for key in keys))


def _width(key: str) -> int:
    return max(len(key) + 2, 8)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0, such as 10")
    return int(text)


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in SEARCHERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no searcher {unknown[0]!r}; use some of {','.join(SEARCHERS)}")
    return names


def _tables(text: str) -> list[Path]:
    """The tables of a folder, each of them read once, so that a bad one is told of at once."""
    paths = sorted(Path(text).glob("*.csv.gz"))
    if not paths:
        raise argparse.ArgumentTypeError(
            f"no table in {text!r}: it holds no .csv.gz; give a folder of recorded spaces"
        )
    try:
        for path in paths:
            if np.isnan(table_at(path).time_ms).all():
                raise UsageError(f"{path}: no config has a time; remove the table")
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return paths


def _file(text: str) -> Path:
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"no folder {str(Path(text).parent)!r}; make it first")
    return Path(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _Parser("benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=_tables, required=True, metavar="DIR", help="folder of recorded spaces")
    parser.add_argument("--searchers", type=_names, default=DEFAULT, help="joined by commas; see above")
    parser.add_argument("--seeds", type=_number, default=10, help="runs of each searcher on each table")
    parser.add_argument("--budget", type=_number, default=200, help="evaluations of one run")
    parser.add_argument("--jobs", type=_number, default=os.cpu_count() or 1, help="processes; else one a core")
    parser.add_argument("--per-table", action="store_true", help="also print the figures of each table")
    parser.add_argument("--json", type=_file, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    figures = run(options.searchers, options.tables, options.seeds, options.budget, options.jobs)
    tables = [table_at(path) for path in options.tables]
    if options.per_table:
        for table in tables:
            print_rows(table.name, {name: figures[name][table.name] for name in figures})
    totals = {name: summary(list(rows.values())) for name, rows in figures.items()}
    print_rows(f"{len(tables)} tables, {options.seeds} seeds", totals)
    for name in figures:
        alone = [table.name for table in tables if not sources_of(table, tables, name == "ours-transfer-far")]
        if name.startswith("ours-transfer") and alone:
            print(f"{name} had no source and was as ours on {', '.join(alone)}")
    if options.json:
        whole_of_it = {name: {**totals[name], "tables": figures[name]} for name in figures}
        options.json.write_text(json.dumps(whole_of_it, indent=1), encoding="utf-8")


def run(
    searchers: Sequence[str], paths: Sequence[Path], seeds: int, budget: int, jobs: int
) -> dict[str, dict[str, Figures]]:
    """Searcher -> table -> figures."""
    tasks = [(name, path, paths, seeds, budget) for name in searchers for path in paths]
    figures: dict[str, dict[str, Figures]] = {name: {} for name in searchers}
    # Spawned, so that each process has an environment read before numpy was loaded.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        results = (pool.map if jobs > 1 else map)(measured, *zip(*tasks, strict=True))
        for (name, path, *_), row in zip(tasks, results, strict=True):
            figures[name][table_at(path).name] = row
            print(f"{name} on {table_at(path).name}: done", file=sys.stderr)
    return figures


if __name__ == "__main__":
    main()
