"""Which problems a model runs, and how often: recorded from the running model, kept as JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autotune import registry
from autotune.data import AutotuneError, Problem, UsageError
from autotune.summary import Job


class Workload:
    """Problems with call counts.

    ``calls`` counts (kernel, problem); ``skipped`` counts (torch call, why no kernel can serve it).
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, Problem]] = Counter()
        self.skipped: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        return len(self.calls)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Workload) and self.calls == other.calls

    __hash__ = None  # type: ignore[assignment]

    def save(self, path: str | Path) -> None:
        """One JSON object a line, ``{"kernel": ..., "problem": ..., "calls": ...}``, in sorted order."""
        lines = [
            json.dumps({"kernel": kernel, "problem": str(problem), "calls": count})
            for (kernel, problem), count in self.calls.items()
        ]
        Path(path).write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Workload:
        """:raises UsageError: if the file is missing or a line is not such an object; names the line."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"workload {path} can't be read: {error}; record one with autotune.record()"
            ) from error
        workload = cls()
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                kernel, problem, count = _parsed(line, f"workload {path}, line {number}")
                workload.calls[kernel, problem] += count
        if not workload.calls:
            raise UsageError(f"workload {path} names no problem; record one with autotune.record()")
        return workload

    def jobs(self) -> list[Job]:
        """What to tune, most total work (calls times floating-point operations) first."""
        from autotune.tuning import most_work_first

        return most_work_first(Job(kernel, problem, count) for (kernel, problem), count in self.calls.items())


def _parsed(line: str, where: str) -> tuple[str, Problem, int]:
    try:
        row = json.loads(line)
        kernel, problem, count = row["kernel"], row["problem"], row.get("calls", 1)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f'{where} is not {{"kernel": ..., "problem": ..., "calls": ...}}: {line.strip()[:80]}'
        ) from error
    if not isinstance(kernel, str):
        raise UsageError(f"{where}: kernel is {kernel!r}; it must be a name")
    if type(count) is not int or count < 1:
        raise UsageError(f"{where}: calls is {count!r}; it must be an integer of 1 or more")
    try:
        return kernel, registry.load(kernel).kernel.parse(str(problem)), count
    except AutotuneError as error:
        raise UsageError(f"{where}: {error}") from error


@contextmanager
def record() -> Iterator[Workload]:
    """Record the matmul-like and attention calls made within, of an unmodified model, on CPU or GPU.

    Calls are read where they are made (``torch.nn.functional.linear``), and what is called inside torch's C++
    where it comes down to ``aten`` operators: modules written in C++ and the backward pass too. Results are
    untouched. Calls that no kernel can serve are counted in ``workload.skipped``, with the reason.

    ::

        with autotune.record() as workload:
            model(batch)
        workload.save("model.jsonl")
    """
    from autotune._recorder import recording

    workload = Workload()
    with recording(workload):
        yield workload
