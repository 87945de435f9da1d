"""Run kernels without searching: verify sampled configs, and compare tuned, default and torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autotune.data import Choice, Config, Failure, Outcome, Problem, Reason
from autotune.dispatch import Dispatcher
from autotune.protocol import Objective
from autotune.registry import Loaded
from autotune.targets.target import Machine, TargetError


@dataclass
class Verdict:
    """One problem of one kernel: how many configs were run, and those that failed."""

    kernel: str
    problem: Problem
    configs: int = 0
    failures: dict[Config, Failure] = field(default_factory=dict)
    #: Why the device can't run it at all.
    unsupported: str | None = None


def check(kernels: Sequence[Loaded], target: Machine, *, samples: int, seed: int = 0) -> list[Verdict]:
    """Verify the default and ``samples`` other allowed configs on each of the kernels' own problems."""
    drawn = random.Random(seed)
    verdicts = []
    for loaded in kernels:
        for text in loaded.kernel.problems:
            problem = loaded.kernel.parse(text)
            unsupported = loaded.space.unsupported(problem, target.device)
            if unsupported is not None:
                verdicts.append(Verdict(loaded.name, problem, unsupported=unsupported))
                continue
            default = loaded.space.default(problem, target.device)
            others = [config for config in loaded.space.allowed(problem, target.device) if config != default]
            verdict = Verdict(loaded.name, problem)
            for config in [default, *drawn.sample(others, min(samples, len(others)))]:
                try:
                    failure = target.verify(loaded.entry, problem, config)
                except TargetError:
                    if not verdict.failures:
                        raise
                    break  # they killed the worker too often; what they say is enough, and others are waiting
                verdict.configs += 1
                if failure is not None:
                    verdict.failures[config] = failure
            verdicts.append(verdict)
    return verdicts


@dataclass(frozen=True)
class Comparison:
    """Three times of one problem, taken one after the other."""

    kernel: str
    problem: Problem
    choice: Choice
    tuned: Outcome
    default: Outcome
    torch: Outcome


def compare(
    kernels: Sequence[Loaded],
    problems: Sequence[Problem],
    target: Machine,
    db: str | Path | None,
    objective: Objective,
) -> list[Comparison]:
    """What dispatch would serve, the default, and torch; on ``problems``, else on each kernel's own."""
    dispatcher = Dispatcher(None if db is None else Path(db), objective)
    rows = []
    for loaded in kernels:
        for problem in problems or [loaded.kernel.parse(text) for text in loaded.kernel.problems]:
            choice = dispatcher.explain(loaded, problem, target.device)
            unsupported = loaded.space.unsupported(problem, target.device)
            if unsupported is not None:
                none = Failure(Reason.RESOURCES, unsupported, target.protocol)
                torch = target.time_reference(loaded.entry, problem)
                rows.append(Comparison(loaded.name, problem, choice, none, none, torch))
                continue
            default = loaded.space.default(problem, target.device)
            timed = target.evaluate(loaded.entry, problem, default).outcome
            rows.append(
                Comparison(
                    kernel=loaded.name,
                    problem=problem,
                    choice=choice,
                    tuned=timed
                    if choice.config == default
                    else target.evaluate(loaded.entry, problem, choice.config).outcome,
                    default=timed,
                    torch=target.time_reference(loaded.entry, problem),
                )
            )
    return rows
