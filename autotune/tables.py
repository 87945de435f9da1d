"""What the commands print: tables that read as well in a pipe as on a terminal."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from autotune.checking import Comparison, Verdict
from autotune.data import Config, Device, Outcome, Timing
from autotune.registry import Loaded
from autotune.rung import Rung
from autotune.source import TABLE, is_stale
from autotune.spelling import short
from autotune.summary import Summary


def _console(width: int | None = None) -> Console:
    # Text is text: a problem or a failure's message may hold square brackets.
    return Console(width=width, markup=False, highlight=False, emoji=False)


def _print(table: Table) -> None:
    console = _console()
    if console.is_terminal:
        console.print(table)
        return
    # In a pipe nothing may be cut off at 80 columns, and nobody needs the padding.
    wide = _console(width=400)
    with wide.capture() as captured:
        wide.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n"))


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def time_of(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    return f"{outcome.score:.4g} ms" if isinstance(outcome, Timing) else outcome.reason.value


def summaries(rows: Sequence[Summary]) -> None:
    provided = ("providers",) if any(row.providers for row in rows) else ()
    table = _table(
        *("kernel", "problem", "default", "time", "best", "time", "gain", "ties", "trials", "new", "failures"),
        *(*provided, "target", "ended"),
        right=("time", "gain", "ties", "trials", "new"),
    )
    for row in rows:
        config, outcome = row.best if row.best is not None else (None, None)
        failures = ", ".join(f"{count} {reason.value}" for reason, count in sorted(row.failures.items()))
        table.add_row(
            *(row.kernel, str(row.problem), short(row.default), time_of(row.default_outcome)),
            *("-" if config is None else short(config), time_of(outcome)),
            *("-" if row.gain is None else f"{row.gain:.2f}x", str(row.ties)),
            *(str(len(row.outcomes)), str(row.measured), failures or "none"),
            *((_providers(row),) if provided else ()),
            *(row.target, row.ended or "stopped"),
        )
    _print(table)


def _providers(row: Summary) -> str:
    """What the other roads to the result took, and by which protocol where that is another one."""
    parts = [
        f"{config.provider} {time_of(outcome)}"
        + (f" ({outcome.protocol})" if outcome.protocol != row.protocol and isinstance(outcome, Timing) else "")
        for config, outcome in row.providers.items()
    ]
    return ", ".join(parts) or "none"


#: What it means that a candidate ended on a rung.
_RUNGS = {
    Rung.COMPILE: "did not compile",
    Rung.RESOURCES: "need too much memory, or spill",
    Rung.DUPLICATE: "same code as another config",
    Rung.VERIFY: "wrong, or failed in the attempt",
    Rung.SCREEN: "far from the best after a few runs",
    Rung.TIMING: "timed in full",
    Rung.FINAL: "timed again in turns",
}


def ladder(rows: Sequence[Summary]) -> None:
    """How many of the candidates measured now ended on each rung, and the time spent there by all."""
    settled: Counter[Rung] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    for row in rows:
        settled.update(row.settled)
        for name, spent in row.seconds.items():
            seconds[name] += spent
    if not settled.total():
        return
    # A replay's seconds are those of its record.
    seconds_of = "seconds, as recorded" if all(row.target.startswith("replay:") for row in rows) else "seconds"
    table = _table("rung", "ended there", "that is", seconds_of, right=("ended there", seconds_of))
    for rung, meaning in _RUNGS.items():
        if settled[rung] or seconds[rung.value]:
            table.add_row(rung.value, str(settled[rung]), meaning, f"{seconds[rung.value]:.1f}")
    _print(table)


def winners(rows: Sequence[Mapping[str, Any]], sources: Mapping[str, str]) -> None:
    """``sources``: the hash of each known kernel's present code."""
    table = _table("kernel", "problem", "config", "time", "device", "protocol", "triton", "code", right=("time",))
    for row in rows:
        source, score_ms = row["source"], row.get("score_ms") or row["median_ms"]
        table.add_row(
            *(row["kernel"], row["problem"], short(Config.parse(row["config"])), f"{score_ms:.4g} ms"),
            *(row["device"], row["protocol"], row["triton"]),
            "recorded table"
            if source.startswith(TABLE)
            else "other: tune again"
            if is_stale(source, sources.get(row["kernel"]))
            else "present",
        )
    _print(table)


def kernels(loaded: Sequence[Loaded], devices: Sequence[Device]) -> None:
    """Sizes are of the allowed part of each space, for the kernel's first test problem."""
    columns = [f"configs on {device.arch}" for device in devices]
    table = _table("kernel", "problem (fields in brackets have defaults)", "parameters", *columns, right=columns)
    for one in loaded:
        example = one.kernel.parse(one.kernel.problems[0])
        fields = [known.name if known.default is None else f"[{known.name}]" for known in one.kernel.fields]
        counts = [sum(1 for _ in one.space.allowed(example, device)) for device in devices]
        table.add_row(
            one.name, ",".join(fields), " ".join(one.space.params(example, devices[0])), *map(str, counts)
        )
    _print(table)


def verdicts(rows: Sequence[Verdict]) -> None:
    table = _table("kernel", "problem", "configs", "verdict", right=("configs",))
    for row in rows:
        details = [
            f"{short(config)}: {failure.reason.value} {failure.detail}" for config, failure in row.failures.items()
        ]
        verdict = "\n".join(details) or row.unsupported or "right"
        table.add_row(row.kernel, str(row.problem), str(row.configs), verdict)
    _print(table)


def comparison(rows: Sequence[Comparison]) -> None:
    table = _table(
        *("kernel", "problem", "served", "from", "time", "default", "torch"), right=("time", "default", "torch")
    )
    for row in rows:
        table.add_row(
            *(row.kernel, str(row.problem), short(row.choice.config), row.choice.source),
            *(time_of(row.tuned), time_of(row.default), time_of(row.torch)),
        )
    _print(table)
