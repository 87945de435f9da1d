"""Which tiles ``attention`` may use, by architecture.

Ranges from Triton's tutorial 06 and torch inductor's flex attention; defaults in 16 bits are the ones inductor
ships for each architecture and head size (torch 2.13), in 32 bits what compiles without much spilling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

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

#: Fused multiply-adds of one product that float32 may unroll into each thread. On h100, a100 and b200 (Triton 3.9)
#: all 13 configs tried with 2048 or more spill over 1 KiB a thread, the worst 15 KiB and 40 s to compile; with 1024
#: it is 0 to 2912 B, with 512 at most 384 B.
MAX_UNROLLED = 1024

#: BLOCK_M, BLOCK_N, num_stages, num_warps.
_Tile: TypeAlias = tuple[int, int, int, int]


def _full_precision(stages: int) -> Mapping[int, _Tile]:
    """At most 512 multiply-adds a thread. Inductor's 32 x 64 on 4 warps spills 480 B for head size 64, 7 KiB for
    128 and 15 KiB for 256; these at most 8 B up to 128, and 152 B up to 256."""
    return {64: (32, 32, stages, 4), 128: (32, 16, stages, 4), 256: (32, 16, stages, 8)}


_FROM_SM_90 = (
    {63: (128, 64, 3, 8), 64: (128, 128, 3, 8), 128: (128, 64, 3, 8), 255: (32, 32, 3, 4), 256: (64, 32, 3, 4)},
    _full_precision(3),
)

#: Tiles by the largest head size they are for; 16-bit, then 32-bit. Two differences from inductor, for what this
#: kernel spills: on NVIDIA 8 warps up to head size 64, where 4 spill 96 to 776 B a thread; and smaller tiles up to
#: 63 and 255, most of which are padded and load through masks: inductor's spill 536 to 1288 B for head sizes 40 and
#: 200, these 368 B at most.
_DEFAULTS: Mapping[str, tuple[Mapping[int, _Tile], Mapping[int, _Tile]]] = {
    "sm_80": ({128: (128, 64, 3, 8), 255: (32, 16, 3, 4), 256: (32, 64, 3, 4)}, _full_precision(2)),
    "sm_90": _FROM_SM_90,
    "sm_100": _FROM_SM_90,
    "gfx942": (
        {64: (64, 64, 2, 4), 128: (64, 64, 2, 8), 255: (32, 32, 2, 8), 256: (32, 64, 2, 8)},
        {256: (32, 32, 1, 4)},
    ),
    "interpreter": ({256: (64, 64, 2, 4)}, {256: (64, 64, 2, 4)}),
}


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


def default(problem: Problem, device: Device) -> Config:
    family = next(arch for arch, ranges in RANGES.items() if ranges is params(problem, device))
    by_head_dim, head_dim = _DEFAULTS[family][_itemsize(problem) == 4], problem.integer("D")
    most_m, block_n, stages, warps = by_head_dim[
        min((size for size in by_head_dim if size >= head_dim), default=256)
    ]
    block_m = clamp(most_m, 16, max(16, next_power_of_2(problem.integer("SQ"))))
    block_n = clamp(block_n, 16, max(16, next_power_of_2(problem.integer("SK"))))
    # The tile of a few queries has work for fewer warps.
    warps = min(warps, 4) if block_m < most_m else warps
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


def unrolls_little(config: Config, problem: Problem, device: Device) -> str | None:
    """Float32 products run on NVIDIA's plain cores (ieee, not tf32), unrolled whole into every thread."""
    if _itemsize(problem) == 2 or not device.arch.startswith("sm_"):
        return None
    products = config.integer("BLOCK_M") * config.integer("BLOCK_N") * block_d(problem)
    per_thread = products // (device.warp_size * config.integer("num_warps"))
    if per_thread <= MAX_UNROLLED:
        return None
    return (
        f"unrolls {per_thread} float32 multiply-adds a thread, over {MAX_UNROLLED}; "
        "use more warps or a smaller tile"
    )


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
        unrolls_little,
        fits_shared_memory(shared_bytes),
        worth_interpreting(steps, default),
    ),
    seeds=seeds,
)
