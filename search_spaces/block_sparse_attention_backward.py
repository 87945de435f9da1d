"""Which tiles ``block_sparse_attention_backward`` may use: those of ``attention_backward`` that blocks hold.

BLOCK_N1 keys are summed over steps of BLOCK_M1 queries, then BLOCK_M2 queries over steps of BLOCK_N2 keys. Steps go
from one listed block to the next, so each tile lies within one; blocks of 16 and 32 leave work for few warps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.arithmetic import cdiv
from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces import attention_backward
from autotune.search_spaces._attention_backward_resources import (
    limits_registers,
    live_elements,
    register_limit_pays,
    unrolls_little,
)
from autotune.search_spaces._attention_backward_resources import shared_bytes as unlisted_bytes
from autotune.search_spaces._attention_resources import block_d, block_dv
from autotune.search_spaces._rules import (
    barrier_bytes,
    feeds_warps,
    fits_registers,
    fits_shared_memory,
    little_padding,
    pipeline_buffers,
    worth_interpreting,
)
from autotune.space import Ranges, SearchSpace, by_arch

#: The side of a mask's block that each tile lies along.
_SIDES = {"BLOCK_M1": "BLOCK_Q", "BLOCK_N1": "BLOCK_KV", "BLOCK_M2": "BLOCK_Q", "BLOCK_N2": "BLOCK_KV"}


def _of_lists(ranges: Ranges, warps: tuple[int, ...]) -> Ranges:
    return {**ranges, "num_warps": warps, "LONGEST_FIRST": (False, True)}


RANGES: Mapping[str, Ranges] = {
    arch: _of_lists(ranges, (4,) if arch == "interpreter" else (2, 4, 8))
    for arch, ranges in attention_backward.RANGES.items()
}


def params(problem: Problem, device: Device) -> Ranges:
    ranges = by_arch(RANGES, device.arch)
    within = {
        tile: tuple(size for size in ranges[tile] if int(size) <= problem.integer(side))
        for tile, side in _SIDES.items()
    }
    return {**ranges, **within}


def _lists_differ(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    """Whether some rows may list more blocks than others."""
    return not problem.get("plain", False) or bool(problem.get("causal", False))


def default(problem: Problem, device: Device) -> Config:
    dense = attention_backward.default(problem, device)
    tiles = {tile: min(dense.integer(tile), problem.integer(side)) for tile, side in _SIDES.items()}
    stages, warps = dense.integer("num_stages"), dense.integer("num_warps")
    ranges, unequal = params(problem, device), _lists_differ({}, problem, device)
    while True:
        chosen: dict[str, Value] = {**tiles, "num_warps": warps, "num_stages": stages, "LONGEST_FIRST": unequal}
        config = Config({name: chosen.get(name, values[0]) for name, values in ranges.items()})
        smallest_of_all = stages == 1 and warps == int(ranges["num_warps"][0]) and max(tiles.values()) == 16
        if smallest_of_all or all(rule(config, problem, device) is None for rule in _RULES):
            return config
        # Blocks smaller than the usual tiles feed fewer warps; what lists need more of shared memory costs a stage.
        if _feeds(config, problem, device) is not None:
            warps //= 2
        elif stages > 1:
            stages -= 1
        else:
            tiles = {tile: max(16, size // 2) for tile, size in tiles.items()}


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    base, tried = default(problem, device), attention_backward.seeds(problem, device)
    seeds = [
        {**base, **{tile: min(seed.integer(tile), problem.integer(_SIDES[tile])) for tile in _SIDES}}
        for seed in tried
    ]
    return [Config(seed) for seed in seeds]


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Those of ``attention_backward``; of the documents of queries and of keys a vector a step, and barriers."""
    documents = config.integer("BLOCK_M1") + config.integer("BLOCK_N2") if problem.get("documents", False) else 0
    of_lists = 4 * pipeline_buffers(config, device) * documents + barrier_bytes(device)
    return unlisted_bytes(config, problem, device) + of_lists


def steps(config: Config, problem: Problem) -> int:
    """Four products for each pair of tiles of keys and queries, and three of queries and keys."""
    rows, columns = problem.integer("BLOCK_Q"), problem.integer("BLOCK_KV")
    blocks = cdiv(problem.integer("SQ"), rows) * cdiv(problem.integer("SK"), columns)
    m1, n1, m2, n2 = (config.integer(tile) for tile in _SIDES)
    products = 4 * (rows // m1) * (columns // n1) + 3 * (rows // m2) * (columns // n2)
    return problem.integer("B") * problem.integer("H") * blocks * problem.integer("density") * products // 100


def _outputs(config: Config, problem: Problem) -> int:
    """Of the smaller of the two launches: its sums or its scores."""
    width = block_d(problem)
    m1, n1, m2, n2 = (config.integer(tile) for tile in _SIDES)
    return min(n1 * max(m1, width), m2 * max(n2, width))


def _of_two_warps(config: Config, problem: Problem) -> int:
    """Where there are but two, the tiles that stay fill their registers too: at 416 values a thread 656 B spill."""
    if config.integer("num_warps") > 2:
        return 0
    held = max(config.integer("BLOCK_N1"), config.integer("BLOCK_M2")) * (block_d(problem) + block_dv(problem))
    return live_elements(config, problem) + held


_feeds = feeds_warps(_outputs, params)

_RULES = (
    little_padding({"BLOCK_M1": "SQ", "BLOCK_N1": "SK", "BLOCK_M2": "SQ", "BLOCK_N2": "SK"}, params),
    _feeds,
    fits_registers(live_elements),
    fits_registers(_of_two_warps),
    unrolls_little,
    fits_shared_memory(shared_bytes),
    register_limit_pays,
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    matters={"maxnreg": limits_registers, "LONGEST_FIRST": _lists_differ},
    seeds=seeds,
)
