"""Which tiles ``attention`` may use, by architecture.

Ranges from Triton's tutorial 06 and torch inductor's flex attention; defaults are the ones inductor ships for
each architecture and head size (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.arithmetic import cdiv, clamp, next_power_of_2
from autotune.data import ITEMSIZE, Config, Device, Problem
from autotune.search_spaces._rules import (
    fits_registers,
    fits_shared_memory,
    little_padding,
    pipeline_buffers,
    worth_interpreting,
)
from autotune.space import Ranges, SearchSpace, by_arch

_NVIDIA: Ranges = {
    "BLOCK_M": (16, 32, 64, 128, 256),
    "BLOCK_N": (16, 32, 64, 128),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 2, 3, 4, 5),
}

RANGES: Mapping[str, Ranges] = {
    "sm_80": _NVIDIA,
    "sm_90": {**_NVIDIA, "num_warps": (4, 8), "num_stages": (1, 2, 3, 4, 7)},
    "sm_100": {**_NVIDIA, "num_warps": (4, 8), "num_stages": (1, 2, 3, 4)},
    "gfx942": {
        "BLOCK_M": (16, 32, 64, 128, 256),
        "BLOCK_N": (16, 32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (1, 2),
        "waves_per_eu": (0, 2, 3),
    },
    # Warps and stages change nothing there, so they are no choice.
    "interpreter": {**_NVIDIA, "num_warps": (4,), "num_stages": (2,)},
}

#: (BLOCK_M, BLOCK_N, num_stages, num_warps) by the largest head size they are for; 16-bit, then 32-bit. Inductor
#: has 4 warps where head sizes up to 64 have 8 here: this kernel spills 96 to 776 B a thread with 4, none with 8.
_DEFAULTS = {
    "sm_80": ({64: (128, 64, 3, 8), 128: (128, 64, 3, 8), 256: (32, 64, 3, 4)}, (32, 32, 2, 4)),
    "sm_90": ({64: (128, 128, 3, 8), 128: (128, 64, 3, 8), 256: (64, 32, 3, 4)}, (32, 64, 3, 4)),
    "sm_100": ({64: (128, 128, 3, 8), 128: (128, 64, 3, 8), 256: (64, 32, 3, 4)}, (32, 64, 3, 4)),
    "gfx942": ({128: (64, 64, 2, 8), 256: (32, 64, 2, 8)}, (32, 32, 1, 4)),
    "interpreter": ({256: (64, 64, 2, 4)}, (64, 64, 2, 4)),
}


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


def default(problem: Problem, device: Device) -> Config:
    family = next(arch for arch, ranges in RANGES.items() if ranges is params(problem, device))
    by_head_dim, full_precision = _DEFAULTS[family]
    head_dim, narrow = problem.integer("D"), _itemsize(problem) == 2
    tile = full_precision
    if narrow:
        tile = by_head_dim[min((size for size in by_head_dim if size >= head_dim), default=256)]
    block_m, block_n, stages, warps = tile
    block_m = clamp(block_m, 16, max(16, next_power_of_2(problem.integer("SQ"))))
    block_n = clamp(block_n, 16, max(16, next_power_of_2(problem.integer("SK"))))
    warps = min(warps, 4) if block_m * head_dim < 128 * 64 else warps
    while True:
        chosen = {
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "num_warps": warps,
            "num_stages": stages,
            "waves_per_eu": 0,
        }
        config = Config({name: chosen[name] for name in params(problem, device)})
        smallest_of_all = (block_m, block_n, stages) == (16, 16, 1)
        if smallest_of_all or shared_bytes(config, problem, device) <= device.shared_bytes_per_block:
            return config
        # The table is for the usual sizes; at the edges give up pipelining first, then width.
        block_m, block_n, stages = (
            (block_m, block_n, stages - 1)
            if stages > 1
            else (block_m, block_n // 2, 1)
            if block_n > 16
            else (block_m // 2, 16, 1)
        )


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    base = default(problem, device)
    shapes = ((128, 128), (128, 64), (64, 64), (64, 128), (64, 32), (16, 64))
    return [Config({**base, "BLOCK_M": m, "BLOCK_N": n}) for m, n in shapes]


def block_d(problem: Problem) -> int:
    return max(16, next_power_of_2(problem.integer("D")))


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Shared memory of the tiles and of what the softmax passes on; read off Triton 3.9's compiled code.

    NVIDIA: the query tile, the pipelined key and value tiles, and scratch for maxima and sums of rows. The
    weights stay in registers between the two products where each warp owns 16 rows or more of them; else, and
    in float32, they go through shared memory. AMD: the query tile only passes through, its memory is used
    again; without pipelining so is that of the keys.
    """
    block_m, block_n, itemsize = config.integer("BLOCK_M"), config.integer("BLOCK_N"), _itemsize(problem)
    queries, keys = block_m * block_d(problem), block_n * block_d(problem)
    if device.arch.startswith("gfx"):
        buffers = 2 * (config.integer("num_stages") - 1) or 1
        return max(queries, buffers * keys + (block_m * block_n if block_m >= 64 else 0)) * itemsize
    hopper = pipeline_buffers(Config(num_stages=2), device) == 2
    in_registers = hopper and itemsize == 2 and block_m >= 64 and 16 * config.integer("num_warps") <= block_m
    through_memory = not in_registers or block_n == 16
    passed_on = block_m * block_n if through_memory else 0
    scratch = 16 * block_m + 64
    return (queries + 2 * pipeline_buffers(config, device) * keys + passed_on) * itemsize + scratch


def _itemsize(problem: Problem) -> int:
    return ITEMSIZE[str(problem["dtype"])]


def live_elements(config: Config, problem: Problem) -> int:
    """The output accumulator and the score tile are live together."""
    return config.integer("BLOCK_M") * (block_d(problem) + config.integer("BLOCK_N"))


def steps(config: Config, problem: Problem) -> int:
    tiles = cdiv(problem.integer("SQ"), config.integer("BLOCK_M"))
    blocks = cdiv(problem.integer("SK"), config.integer("BLOCK_N"))
    return problem.integer("B") * problem.integer("H") * tiles * blocks


SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(
        little_padding({"BLOCK_M": "SQ", "BLOCK_N": "SK"}, params),
        # Up to a quarter over still wins at times: the compiler reuses score registers for the weights.
        fits_registers(live_elements, limit=320),
        fits_shared_memory(shared_bytes),
        worth_interpreting(steps, default),
    ),
    seeds=seeds,
)
