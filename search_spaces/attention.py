"""Which tiles ``attention`` may use, by architecture.

Ranges from Triton's tutorial 06 and torch inductor's flex attention; defaults in 16 bits are the ones inductor
ships for each architecture and head size (torch 2.13), in 32 bits what compiles without much spilling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from autotune.arithmetic import cdiv, clamp, next_power_of_2
from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces._attention_resources import (
    itemsize,
    limits_registers,
    live_elements,
    register_limit_pays,
    shared_bytes,
    unrolls_little,
    value_dim,
)
from autotune.search_spaces._rules import (
    fits_registers,
    fits_shared_memory,
    little_padding,
    worth_interpreting,
)
from autotune.space import Ranges, SearchSpace, by_arch

_OFF_OR_ON = (False, True)

_NVIDIA: Ranges = {
    "BLOCK_M": (16, 32, 64, 128, 256),
    "BLOCK_N": (16, 32, 64, 128),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 2, 3, 4, 5),
    "PACK_GQA": _OFF_OR_ON,
}

RANGES: Mapping[str, Ranges] = {
    "sm_80": _NVIDIA,
    "sm_90": {
        **_NVIDIA,
        "num_warps": (4, 8),
        "num_stages": (1, 2, 3, 4, 7),
        "DESCRIPTOR": _OFF_OR_ON,
        "maxnreg": (0, 128, 168),
    },
    "sm_100": {**_NVIDIA, "num_warps": (4, 8), "num_stages": (1, 2, 3, 4), "DESCRIPTOR": _OFF_OR_ON},
    "gfx942": {
        "BLOCK_M": (16, 32, 64, 128, 256),
        "BLOCK_N": (16, 32, 64, 128),
        "num_warps": (4, 8),
        "num_stages": (1, 2),
        "PACK_GQA": _OFF_OR_ON,
        "waves_per_eu": (0, 2, 3),
    },
    # Warps and stages change nothing there, so they are no choice.
    "interpreter": {**_NVIDIA, "num_warps": (4,), "num_stages": (2,), "DESCRIPTOR": _OFF_OR_ON},
}

#: A tile of one head's queries must be this full, relative to one of the whole group's, or they are packed
#: (flash-attention's rule).
_FULL_ENOUGH = 0.9

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
    wide = itemsize(problem) == 4
    # In 32 bits what counts is the unrolling of both products, in 16 the sums.
    by_head_dim, width = _DEFAULTS[family][wide], max(value_dim(problem), problem.integer("D") if wide else 0)
    most_m, block_n, stages, warps = by_head_dim[min((size for size in by_head_dim if size >= width), default=256)]
    rows, group = problem.integer("SQ"), problem.integer("H") // problem.integer("HKV")
    pack = _group_fits(problem) and _fullness(rows, most_m) < _FULL_ENOUGH * _fullness(rows * group, most_m)
    block_m = clamp(most_m, 16, max(16, next_power_of_2(rows * group if pack else rows)))
    block_n = clamp(block_n, 16, max(16, next_power_of_2(problem.integer("SK"))))
    # The tile of a few queries has work for fewer warps.
    warps = min(warps, 4) if block_m < most_m else warps
    while True:
        chosen: dict[str, Value] = {
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "num_warps": warps,
            "num_stages": stages,
            "PACK_GQA": pack,
        }
        config = Config({name: chosen.get(name, values[0]) for name, values in params(problem, device).items()})
        smallest_of_all = (block_m, block_n, stages) == (16, 16, 1)
        if smallest_of_all or all(rule(config, problem, device) is None for rule in _RULES):
            return config
        # The table is for the usual sizes; at the edges give up pipelining first, then width.
        block_m, block_n, stages = (
            (block_m, block_n, stages - 1)
            if stages > 1
            else (block_m, block_n // 2, 1)
            if block_n > 16
            else (block_m // 2, 16, 1)
        )


def _fullness(rows: int, block: int) -> float:
    return rows / (cdiv(rows, block) * block) if rows else 1.0


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    base = default(problem, device)
    shapes = ((128, 128), (128, 64), (64, 64), (64, 128), (64, 32), (16, 64))
    plain = [Config({**base, "BLOCK_M": m, "BLOCK_N": n}) for m, n in shapes]
    if "DESCRIPTOR" not in base:
        return plain
    # Without the arithmetic of addresses larger tiles keep within their registers.
    large = ((128, 128, 4), (128, 128, 8), (128, 64, 8), (64, 64, 4))
    described = [
        Config({**base, "BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "DESCRIPTOR": True})
        for m, n, warps in large
    ]
    return [*described, *plain]


def _group_fits(problem: Problem) -> bool:
    """Whether a tile can hold several heads' queries; rows are numbered in 32 bits."""
    group = problem.integer("H") // problem.integer("HKV")
    return group > 1 and group * problem.integer("SQ") < 2**31 - 512


def _packs(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    return _group_fits(problem)


def _describes(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    """Descriptors need rows of keys and values that begin at multiples of 16 bytes and have no gaps."""
    return (
        bool(problem.get("aligned", True))
        and problem.get("layout") != "s"
        and problem.integer("SK") > 0
        and all(width * itemsize(problem) % 16 == 0 for width in (problem.integer("D"), value_dim(problem)))
    )


def rows_fill_tile(config: Config, problem: Problem, device: Device) -> str | None:
    """A tile over twice the queries it covers only computes padding."""
    heads = problem.integer("H") // problem.integer("HKV") if config["PACK_GQA"] else 1
    rows = problem.integer("SQ") * heads
    most = max(16, next_power_of_2(rows))
    if config.integer("BLOCK_M") <= most:
        return None
    return f"BLOCK_M={config['BLOCK_M']} is mostly padding for {rows} queries; {most} covers them"


def steps(config: Config, problem: Problem) -> int:
    packed = bool(config["PACK_GQA"])
    heads = problem.integer("HKV" if packed else "H")
    rows = problem.integer("SQ") * (problem.integer("H") // heads)
    blocks = cdiv(problem.integer("SK"), config.integer("BLOCK_N"))
    return problem.integer("B") * heads * cdiv(rows, config.integer("BLOCK_M")) * blocks


_RULES = (
    rows_fill_tile,
    little_padding({"BLOCK_N": "SK"}, params),
    # Up to a quarter over still wins at times: the compiler reuses score registers for the weights.
    fits_registers(live_elements, limit=320),
    unrolls_little,
    fits_shared_memory(shared_bytes),
    register_limit_pays,
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    matters={"PACK_GQA": _packs, "DESCRIPTOR": _describes, "maxnreg": limits_registers},
    seeds=seeds,
)
