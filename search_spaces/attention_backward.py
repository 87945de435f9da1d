"""Which tiles ``attention_backward`` may use, by architecture.

BLOCK_N1 keys are summed over steps of BLOCK_M1 queries, then BLOCK_M2 queries over steps of BLOCK_N2 keys. Ranges
from Triton's tutorial 06 and torch inductor's flex attention (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from autotune.arithmetic import cdiv, clamp, next_power_of_2
from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces._attention_backward_resources import (
    limits_registers,
    live_elements,
    register_limit_pays,
    shared_bytes,
    unrolls_little,
)
from autotune.search_spaces._attention_resources import itemsize, value_dim
from autotune.search_spaces._rules import fits_registers, fits_shared_memory, little_padding, worth_interpreting
from autotune.space import Ranges, SearchSpace, by_arch

_TILES: Ranges = dict.fromkeys(("BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2"), (16, 32, 64, 128))

RANGES: Mapping[str, Ranges] = {
    "sm_80": {**_TILES, "num_warps": (4, 8), "num_stages": (1, 2, 3, 4)},
    "sm_90": {**_TILES, "num_warps": (4, 8), "num_stages": (1, 2, 3), "maxnreg": (0, 128)},
    "sm_100": {**_TILES, "num_warps": (4, 8), "num_stages": (1, 2, 3)},
    "gfx942": {**_TILES, "num_warps": (4, 8), "num_stages": (1, 2), "waves_per_eu": (0, 1, 2)},
    # Warps and stages change nothing there, so they are no choice.
    "interpreter": {**_TILES, "num_warps": (4,), "num_stages": (2,)},
}

#: BLOCK_M1, BLOCK_N1, BLOCK_M2, BLOCK_N2, num_stages, num_warps.
_Tile: TypeAlias = tuple[int, int, int, int, int, int]

_FULL_PRECISION: Mapping[int, _Tile] = {
    64: (32, 32, 32, 32, 2, 4),
    128: (16, 32, 32, 16, 2, 4),
    256: (16, 32, 32, 16, 2, 8),
}

#: Tiles by the largest head dimension they are for; 16-bit, then 32-bit. Inductor's spill up to 2104 B a thread
#: here, these at most 392 B (Triton 3.9). Up to 255 most of a tile is padding, which loads through masks.
_DEFAULTS: Mapping[str, tuple[Mapping[int, _Tile], Mapping[int, _Tile]]] = {
    "sm_80": (
        {
            64: (32, 64, 64, 32, 3, 4),
            128: (32, 64, 64, 32, 2, 4),
            255: (16, 32, 32, 16, 2, 4),
            256: (32, 64, 64, 32, 2, 8),
        },
        _FULL_PRECISION,
    ),
    "sm_90": (
        {
            64: (64, 128, 128, 64, 3, 8),
            128: (32, 128, 128, 64, 2, 8),
            255: (16, 32, 32, 16, 2, 4),
            256: (16, 64, 64, 32, 2, 8),
        },
        _FULL_PRECISION,
    ),
    "sm_100": (
        {
            # With window and soft cap it compiles in 12 s, with a third stage in 17 and spills 168 B.
            64: (32, 128, 128, 32, 2, 8),
            128: (32, 64, 128, 64, 2, 8),
            255: (16, 32, 32, 16, 2, 4),
            256: (32, 32, 64, 32, 2, 8),
        },
        _FULL_PRECISION,
    ),
    "gfx942": (
        {64: (64, 64, 64, 64, 1, 4), 128: (32, 64, 64, 32, 1, 8), 256: (16, 32, 32, 16, 1, 4)},
        {64: (32, 32, 32, 32, 1, 4), 256: (16, 32, 32, 16, 1, 4)},
    ),
    "interpreter": ({256: (64, 64, 64, 64, 2, 4)}, {256: (64, 64, 64, 64, 2, 4)}),
}


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


def default(problem: Problem, device: Device) -> Config:
    family = next(arch for arch, ranges in RANGES.items() if ranges is params(problem, device))
    by_width = _DEFAULTS[family][itemsize(problem) == 4]
    width = max(problem.integer("D"), value_dim(problem))
    m1, n1, m2, n2, stages, warps = by_width[min((size for size in by_width if size >= width), default=256)]
    rows, columns = (max(16, next_power_of_2(problem.integer(name))) for name in ("SQ", "SK"))
    tiles = {
        **{"BLOCK_M1": clamp(m1, 16, rows), "BLOCK_N1": clamp(n1, 16, columns)},
        **{"BLOCK_M2": clamp(m2, 16, rows), "BLOCK_N2": clamp(n2, 16, columns)},
    }
    while True:
        chosen: dict[str, Value] = {**tiles, "num_warps": warps, "num_stages": stages}
        config = Config({name: chosen.get(name, values[0]) for name, values in params(problem, device).items()})
        smallest_of_all = stages == 1 and max(tiles.values()) == 16
        if smallest_of_all or all(rule(config, problem, device) is None for rule in _RULES):
            return config
        # The table is for the usual devices; on smaller ones give up pipelining first, then width.
        if stages > 1:
            stages -= 1
        else:
            tiles = {name: max(16, size // 2) for name, size in tiles.items()}


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    base = default(problem, device)
    # Inductor's of sm_90 and sm_100, of sm_80, and what tutorial 06 has.
    shapes = ((64, 128, 128, 64), (64, 64, 64, 64), (32, 128, 128, 32), (32, 64, 64, 32), (32, 32, 32, 32))
    return [Config({**base, **dict(zip(_TILES, shape, strict=True))}) for shape in shapes]


def steps(config: Config, problem: Problem) -> int:
    rows, columns = problem.integer("SQ"), problem.integer("SK")
    products = sum(
        cdiv(rows, config.integer(block_m)) * cdiv(columns, config.integer(block_n))
        for block_m, block_n in (("BLOCK_M1", "BLOCK_N1"), ("BLOCK_M2", "BLOCK_N2"))
    )
    return problem.integer("B") * problem.integer("H") * products


_RULES = (
    little_padding({"BLOCK_M1": "SQ", "BLOCK_N1": "SK", "BLOCK_M2": "SQ", "BLOCK_N2": "SK"}, params),
    fits_registers(live_elements),
    unrolls_little,
    fits_shared_memory(shared_bytes),
    register_limit_pays,
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    matters={"maxnreg": limits_registers},
    seeds=seeds,
)
