"""Progress of a sweep on the terminal: a bar with the best so far; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autotune.data import Timing
from autotune.search import Step
from autotune.tuning import OnStep, Summary

#: Between two lines on an output that is no terminal.
LINE_SECONDS = 10.0


@contextmanager
def shown(jobs: int, trials: int, budget_s: float | None) -> Iterator[OnStep]:
    """Gives the function to call after each candidate. Writes to standard error; results go to standard output."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(jobs, trials)
        return
    columns = (
        TextColumn("{task.fields[job]}", style="bold"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", style="dim"),
    )
    end = None if budget_s is None else time.monotonic() + budget_s
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=trials, job=f"problem 1/{jobs}", state="starting", left="")

        def on_step(number: int, summary: Summary, step: Step) -> None:
            left = "" if end is None else f"{max(0, round(end - time.monotonic()))} s left"
            bars.update(
                task,
                completed=len(summary.outcomes),
                job=f"problem {number + 1}/{jobs} {summary.kernel}",
                state=state(summary),
                left=left,
            )

        yield on_step


def _lines(jobs: int, trials: int) -> OnStep:
    last = [-1, 0.0]  # the problem of the last line, and when it was written

    def on_step(number: int, summary: Summary, step: Step) -> None:
        now = time.monotonic()
        if number != last[0] or now - last[1] >= LINE_SECONDS:
            last[:] = [number, now]
            done = f"trial {len(summary.outcomes)}/{trials}"
            print(
                f"problem {number + 1}/{jobs} {summary.kernel} {summary.problem}: {done}, {state(summary)}",
                file=sys.stderr,
                flush=True,
            )

    return on_step


def state(summary: Summary) -> str:
    """Best so far against the default, and failures by reason."""
    parts = []
    if summary.best is not None:
        parts.append(f"best {summary.best[1].median_ms:.4g} ms")
        if isinstance(summary.default_outcome, Timing):
            parts.append(f"{summary.default_outcome.median_ms / summary.best[1].median_ms:.2f}x the default")
    parts += [f"{count} {reason.value}" for reason, count in sorted(summary.failures.items())]
    return ", ".join(parts) or "nothing ran yet"
