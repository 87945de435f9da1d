"""A search space: which configs may be tried for a problem on a device, and why not the others.

Spaces are leaves: they know the nouns and arithmetic, and take facts of the device as an argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from autotune.data import Config, Device, Problem, Value

#: The values each parameter may take, in ascending order.
Ranges: TypeAlias = Mapping[str, tuple[Value, ...]]
#: None if the config may run, else why not: "needs 196608 B of shared memory, sm_80 has 166912 B".
Constraint: TypeAlias = Callable[[Config, Problem, Device], str | None]
#: Whether a parameter changes anything, given those before it in the ranges.
Effect: TypeAlias = Callable[[Mapping[str, Value], Problem, Device], bool]


def _no_seeds(problem: Problem, device: Device) -> Sequence[Config]:
    return ()


def _runs_everywhere(problem: Problem, device: Device) -> str | None:
    return None


@dataclass(frozen=True)
class SearchSpace:
    """The one statement of what is allowed, shared by search, dispatch, the compile matrix and the tests."""

    #: Parameter ranges for a problem on a device.
    params: Callable[[Problem, Device], Ranges]
    #: A config that is allowed for every problem the device can run, and sensible untuned.
    default: Callable[[Problem, Device], Config]
    constraints: tuple[Constraint, ...] = ()
    #: Parameter -> where it has an effect. Elsewhere it must be the first of its range, so that two configs that
    #: come to the same thing are one.
    matters: Mapping[str, Effect] = field(default_factory=dict)
    #: None, or why no config can run the problem on the device: a dtype that its tensor cores lack.
    unsupported: Callable[[Problem, Device], str | None] = _runs_everywhere
    #: Configs worth trying right after the default. Those not allowed here are skipped.
    seeds: Callable[[Problem, Device], Sequence[Config]] = _no_seeds

    def why_not(self, config: Config, problem: Problem, device: Device) -> str | None:
        """None if ``config`` is allowed, else the first rule it breaks, in words."""
        why = self.unsupported(problem, device)
        if why is not None:
            return why
        ranges = self.params(problem, device)
        if config.keys() != ranges.keys():
            return f"has parameters {', '.join(sorted(config))}; this space has {', '.join(sorted(ranges))}"
        for name, value in config.items():
            if not any(value == known and type(value) is type(known) for known in ranges[name]):
                return f"{name}={value} is not one of {', '.join(map(str, ranges[name]))} on {device.arch}"
        settled = self.settle(config, problem, device, ranges)
        for name, value in config.items():
            if value != settled[name]:
                return f"{name}={value} has no effect here; write {name}={settled[name]}"
        return self.broken_rule(config, problem, device)

    def settle(
        self, config: Mapping[str, Value], problem: Problem, device: Device, ranges: Ranges | None = None
    ) -> dict[str, Value]:
        """``config`` with every parameter that has no effect at the first of its range.

        :param ranges: :attr:`params` of the problem and device, if at hand
        """
        ranges = self.params(problem, device) if ranges is None else ranges
        settled: dict[str, Value] = {}
        for name, values in ranges.items():
            idle = name in self.matters and not self.matters[name](settled, problem, device)
            settled[name] = values[0] if idle else config[name]
        return settled

    def broken_rule(self, config: Config, problem: Problem, device: Device) -> str | None:
        """Like :meth:`why_not`, for a config that was drawn from the ranges and settled."""
        for constraint in self.constraints:
            why = constraint(config, problem, device)
            if why is not None:
                return why
        return None

    def size(self, problem: Problem, device: Device) -> int:
        """How many configs the ranges span before constraints."""
        total = 1
        for values in self.params(problem, device).values():
            total *= len(values)
        return total

    def allowed(self, problem: Problem, device: Device) -> Iterator[Config]:
        """Every allowed config, in the order of the ranges. A few microseconds per settled config."""
        if self.unsupported(problem, device) is not None:
            return
        for values in self._settled(problem, device):
            config = Config(values)
            if self.broken_rule(config, problem, device) is None:
                yield config

    def _settled(self, problem: Problem, device: Device) -> Iterator[dict[str, Value]]:
        ranges = self.params(problem, device)
        names, chosen = tuple(ranges), dict[str, Value]()

        def choose(place: int) -> Iterator[dict[str, Value]]:
            if place == len(names):
                yield dict(chosen)
                return
            name = names[place]
            idle = name in self.matters and not self.matters[name](chosen, problem, device)
            for value in ranges[name][:1] if idle else ranges[name]:
                chosen[name] = value
                yield from choose(place + 1)
            del chosen[name]

        return choose(0)


def by_arch(table: Mapping[str, Ranges], arch: str) -> Ranges:
    """The ranges published for ``arch``, else those of the newest older one of the same vendor.

    >>> by_arch({"sm_80": {"A": (1,)}, "sm_90": {"A": (2,)}}, "sm_89")
    {'A': (1,)}
    """
    if arch in table:
        return table[arch]
    family = "gfx" if arch.startswith("gfx") else "sm_"
    known = sorted((_generation(name), name) for name in table if name.startswith(family))
    if not known:
        raise ValueError(f"no ranges for {arch}; this space knows {', '.join(sorted(table))}")
    older = [name for generation, name in known if generation <= _generation(arch)]
    return table[older[-1] if older else known[0][1]]


def _generation(arch: str) -> int:
    digits = re.search(r"[0-9a-f]+$", arch.removeprefix("gfx").removeprefix("sm_"))
    return int(digits.group(), 16) if digits else 0
