"""Progress of a sweep on the terminal: a bar with the best so far; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from autotune.data import Timing
from autotune.search import Step
from autotune.summary import Summary
from autotune.tuning import OnStep

#: Between two lines on an output that is no terminal.
LINE_SECONDS = 10.0


class Pace:
    """How far a sweep is, and how long it may take yet."""

    def __init__(self, jobs: int, trials: int | None, budget_s: float | None) -> None:
        """:param trials: configs wanted per problem; None if only the budget ends them"""
        self._jobs, self._trials, self._budget_s = jobs, trials, budget_s
        self._started = time.monotonic()
        self._summaries: dict[int, Summary] = {}

    def take(self, number: int, summary: Summary) -> None:
        self._summaries[number] = summary

    @property
    def done(self) -> int:
        """Trials of all problems that are known, those of the database included."""
        return sum(len(summary.outcomes) for summary in self._summaries.values())

    @property
    def total(self) -> int | None:
        return None if self._trials is None else self._jobs * self._trials

    @property
    def left_s(self) -> float | None:
        """Seconds: the rest of the budget, or what the trials that are left take at the pace so far."""
        spent = time.monotonic() - self._started
        measured = sum(summary.measured for summary in self._summaries.values())
        bounds = [] if self._budget_s is None else [max(0.0, self._budget_s - spent)]
        if self.total is not None and measured:
            bounds.append(spent / measured * max(0, self.total - self.done))
        return min(bounds, default=None)

    def trials(self, summary: Summary) -> str:
        wanted = "" if self._trials is None else f"/{self._trials}"
        return f"{len(summary.outcomes)}{wanted}"


@contextmanager
def shown(jobs: int, trials: int | None, budget_s: float | None) -> Iterator[OnStep]:
    """Gives the function to call after each candidate. Writes to standard error; results go to standard output."""
    console = Console(stderr=True)
    pace = Pace(jobs, trials, budget_s)
    if not console.is_terminal:
        yield _lines(jobs, pace)
        return
    columns = (
        TextColumn("{task.fields[job]}", style="bold"),
        BarColumn(bar_width=20),
        TextColumn("trial {task.fields[trials]}"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", style="dim"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=pace.total, job=f"problem 1/{jobs}", trials="1", state="starting", left="")

        def on_step(number: int, summary: Summary, step: Step) -> None:
            pace.take(number, summary)
            bars.update(
                task,
                completed=pace.done,
                job=f"problem {number + 1}/{jobs} {summary.kernel}",
                trials=pace.trials(summary),
                state=state(summary),
                left=left(pace.left_s),
            )

        yield on_step


def _lines(jobs: int, pace: Pace) -> OnStep:
    last = [-1, 0.0]  # the problem of the last line, and when it was written

    def on_step(number: int, summary: Summary, step: Step) -> None:
        pace.take(number, summary)
        now = time.monotonic()
        if number != last[0] or now - last[1] >= LINE_SECONDS:
            last[:] = [number, now]
            print(
                f"problem {number + 1}/{jobs} {summary.kernel} {summary.problem}: trial {pace.trials(summary)}, "
                f"{', '.join(part for part in (state(summary), left(pace.left_s)) if part)}",
                file=sys.stderr,
                flush=True,
            )

    return on_step


def left(seconds: float | None) -> str:
    """``40 s left``, ``12 min left``; nothing if it is not known."""
    if seconds is None:
        return ""
    return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"


def state(summary: Summary) -> str:
    """Best so far against the default, and failures by reason."""
    parts = []
    if summary.best is not None:
        parts.append(f"best {summary.best[1].score:.4g} ms")
        if isinstance(summary.default_outcome, Timing):
            parts.append(f"{summary.gain:.2f}x the default")
    parts += [f"{count} {reason.value}" for reason, count in sorted(summary.failures.items())]
    return ", ".join(parts) or "nothing ran yet"
