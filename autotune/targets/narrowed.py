"""A kernel cut down to what was recorded of it: its problems, and for each the configs of one source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from autotune.data import Config, Device, Problem, Trial, UsageError
from autotune.kernel import Kernel
from autotune.registry import Loaded
from autotune.space import Ranges, SearchSpace

#: Recorded problems that a message names.
_NAMED = 3


class Narrowed:
    """One kernel of the file: for each problem, the trials made with one source."""

    def __init__(
        self,
        base: Loaded,
        device: Device,
        file: str,
        trials: Mapping[Problem, Mapping[str, Mapping[Config, Trial]]],
    ) -> None:
        self._base, self._device, self._file = base, device, file
        self._sources: dict[Problem, str] = {}
        self._trials: dict[Problem, Mapping[Config, Trial]] = {}
        self._spaces: dict[Problem, _Part] = {}
        for problem, sources in trials.items():
            source = max(sources, key=lambda name: (name == base.source, len(sources[name]), name))
            if self._usable(problem, sources[source]):
                self._sources[problem], self._trials[problem] = source, sources[source]
        if not self._trials:
            raise UsageError(f"{base.name} has no trial in {file} that its present code takes; tune it anew")
        self._kernel = replace(
            base.kernel,
            problems=tuple(map(str, self._trials)),
            rule=self._rule,
            providers={
                name: replace(provider, unavailable=partial(self._not_recorded, Config(provider=name)))
                for name, provider in base.kernel.providers.items()
            },
        )
        self._space = SearchSpace(
            params=lambda problem, device: self._part(problem).ranges,
            default=lambda problem, device: self._part(problem).default,
            constraints=(*base.space.constraints, self._not_recorded),
            seeds=base.space.seeds,
        )

    def loaded(self, problem: Problem | None) -> Loaded:
        if problem is None:
            used = list(self._sources.values())
            source = max(used, key=lambda name: (used.count(name), name))
        else:
            self.trials(problem)
            source = self._sources[problem]
        return replace(self._base, kernel=self._kernel, space=self._space, source=source)

    def trials(self, problem: Problem) -> Mapping[Config, Trial]:
        if problem not in self._trials:
            raise UsageError(f"{self._base.name} {problem} {self._missing(problem)}")
        return self._trials[problem]

    def _usable(self, problem: Problem, trials: Iterable[Config]) -> bool:
        """Whether the present kernel takes the problem, and its space one of the configs at least."""
        try:
            known = self._base.kernel.parse(str(problem)) == problem
        except UsageError:  # it was one for an older version of the kernel
            return False
        return known and any(self._base.space.why_not(config, problem, self._device) is None for config in trials)

    def _rule(self, problem: Problem) -> str | None:
        return self._base.kernel.rule(problem) or (None if problem in self._trials else self._missing(problem))

    def _missing(self, problem: Problem) -> str:
        closest = sorted(self._trials, key=partial(_apart, self._base.kernel, problem))[:_NAMED]
        named = "; ".join(map(str, closest))
        return f"has no trial in {self._file} that the present code takes; the closest there: {named}"

    def _not_recorded(self, config: Config, problem: Problem, device: Device) -> str | None:
        return None if config in self.trials(problem) else f"was not recorded in {self._file}"

    def _part(self, problem: Problem) -> _Part:
        if problem not in self._spaces:
            self._spaces[problem] = self._narrow(problem)
        return self._spaces[problem]

    def _narrow(self, problem: Problem) -> _Part:
        space, device = self._base.space, self._device
        allowed = [config for config in self.trials(problem) if space.why_not(config, problem, device) is None]
        recorded = {(name, type(value), value) for config in allowed for name, value in config.items()}
        ranges = {
            name: tuple(value for value in values if (name, type(value), value) in recorded)
            for name, values in space.params(problem, device).items()
        }
        # The space's own start; where that is not among the recorded, one of its seeds; else the first one ever
        # measured, which is where the recorded sweep began. Never the best: that would give the answer away.
        starts = (space.default(problem, device), *space.seeds(problem, device), allowed[0])
        return _Part(ranges, next(config for config in starts if config in allowed))


@dataclass(frozen=True)
class _Part:
    """What is left of a space for one problem."""

    ranges: Ranges
    default: Config


def _apart(kernel: Kernel, one: Problem, other: Problem) -> tuple[int, float, str]:
    """How far apart two problems are: the fields that differ beside sizes, then the sizes' ratios, in doublings."""
    fields, doublings = 0, 0.0
    for field in kernel.fields:
        a, b = (problem.get(field.name, field.default) for problem in (one, other))
        if field.kind != "size":
            fields += a != b
        elif isinstance(a, int) and isinstance(b, int):
            doublings += abs(math.log2(max(1, a) / max(1, b)))
    return fields, doublings, str(other)
