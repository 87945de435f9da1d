"""How ``embedding_bag`` may gather: columns, bags and rows at once, and splits of long bags, by architecture.

Untuned, a thread has four loads of 16 bytes on the way; neither ranges nor default have been measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces import _embedding_bag as shared
from autotune.search_spaces._rules import fits_registers, largest_up_to, worth_interpreting
from autotune.space import Ranges, SearchSpace, by_arch

_SHARED: Ranges = {
    "BLOCK_D": (16, 32, 64, 128, 256, 512),
    "BAGS": (1, 2, 4, 8, 16),
    # Rows of a bag at once.
    "UNROLL": (1, 2, 4, 8, 16, 32),
    "SPLIT": (1, 2, 4, 8, 16, 32),
}
_GPU: Ranges = {
    **_SHARED,
    # Rows past the first-level cache, which indices and hot rows then have to themselves.
    "CACHE": ("", ".cg"),
    "num_warps": (1, 2, 4, 8),
}

RANGES: Mapping[str, Ranges] = {
    "sm_80": _GPU,
    "gfx942": _GPU,
    "interpreter": {**_SHARED, "CACHE": ("",), "num_warps": (4,)},
}


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


def default(problem: Problem, device: Device) -> Config:
    ranges, bags, length = params(problem, device), shared.bags_of(problem), problem.integer("L")
    unroll = min(8, next_power_of_2(length))
    tile = shared.default_tile("BAGS", bags, unroll, problem, device, ranges)
    programs = cdiv(bags, tile["BAGS"]) * cdiv(problem.integer("D"), tile["BLOCK_D"])
    # Four programs a multiprocessor, each with several steps.
    split = min(4 * device.sm_count // max(1, programs), length // (4 * tile["UNROLL"]))
    chosen: dict[str, Value] = {**tile, "SPLIT": largest_up_to(max(1, split), ranges, "SPLIT"), "CACHE": ""}
    return Config({name: chosen[name] for name in ranges})


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    """Fewer and more rows in flight, then more programs."""
    base = default(problem, device)
    unroll, bags, split = (base.integer(name) for name in ("UNROLL", "BAGS", "SPLIT"))
    return [
        *(Config({**base, "UNROLL": rows}) for rows in (2 * unroll, max(1, unroll // 2))),
        *(Config({**base, "BAGS": each}) for each in (2 * bags, max(1, bags // 2))),
        *(Config({**base, "num_warps": warps}) for warps in (1, 2, 4)),
        Config({**base, "SPLIT": 2 * split}),
        Config({**base, "CACHE": ".cg"}),
    ]


def covers_bags(config: Config, problem: Problem, device: Device) -> str | None:
    most = next_power_of_2(shared.bags_of(problem))
    if config.integer("BAGS") <= most:
        return None
    return f"BAGS={config['BAGS']} is over the {shared.bags_of(problem)} bags there are"


def covers_lengths(config: Config, problem: Problem, device: Device) -> str | None:
    """Of ragged bags, some are longer than the mean."""
    length = problem.integer("L") * (4 if problem.get("ragged") else 1)
    rows = config.integer("UNROLL") * config.integer("SPLIT")
    most = next_power_of_2(length)
    return (
        None if rows <= most else f"UNROLL and SPLIT make {rows} rows of a bag; L={problem['L']} has up to {most}"
    )


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    return shared.shared_bytes(config, "BAGS", config.integer("SPLIT") > 1)


def steps(config: Config, problem: Problem) -> int:
    """Programs, each with its gathers, in the time that a tile product takes the interpreter."""
    bags, split = shared.bags_of(problem), config.integer("SPLIT")
    blocks = cdiv(problem.integer("D"), config.integer("BLOCK_D"))
    # The longest of several bags decides.
    length = problem.integer("L") * (2 if problem.get("ragged") else 1)
    each = 10 + 4 * cdiv(length, split * config.integer("UNROLL"))
    second = bags * cdiv(problem.integer("D"), shared.SECOND_LAUNCH_COLUMNS) if split > 1 else 0
    return cdiv(bags, config.integer("BAGS")) * split * blocks * each + 4 * second


_RULES = (
    shared.covers_columns,
    covers_bags,
    covers_lengths,
    shared.feeds_threads("BAGS"),
    fits_registers(lambda config, problem: shared.live_elements(config, problem, "BAGS")),
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    seeds=seeds,
)
