"""How ``decode_attention`` may split and tile the keys, by architecture.

Ranges from torch inductor's flex decoding (torch 2.13), vLLM and flash-attention. What decides is the number of
splits: inductor's by default, two programs a multiprocessor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.arithmetic import cdiv, clamp, next_power_of_2
from autotune.data import ITEMSIZE, Config, Device, Problem
from autotune.search_spaces._rules import (
    fits_registers,
    fits_shared_memory,
    largest_up_to,
    little_padding,
    pipeline_buffers,
    smallest,
    worth_interpreting,
)
from autotune.space import Ranges, SearchSpace, by_arch

_SHARED: Ranges = {
    "SPLIT_KV": (1, 2, 4, 8, 16, 32, 64, 128),
    # Query heads a program; in 16 bits, 16 at least fill a tensor core's tile.
    "BLOCK_H": (16, 32, 64, 128),
    "BLOCK_N": (16, 32, 64, 128),
}
_NVIDIA: Ranges = {
    **_SHARED,
    "num_warps": (1, 2, 4, 8),
    "num_stages": (1, 2, 3, 4, 5),
    "maxnreg": (0, 64, 128),
}

RANGES: Mapping[str, Ranges] = {
    "sm_80": _NVIDIA,
    "gfx942": {**_SHARED, "num_warps": (1, 2, 4, 8), "num_stages": (1, 2), "waves_per_eu": (0, 2, 3)},
    # Warps and stages change nothing there, so they are no choice.
    "interpreter": {**_SHARED, "num_warps": (4,), "num_stages": (2,)},
}

#: In 32 bits NVIDIA multiplies on plain cores, where a row that is only padding costs as much as another.
_HEADS_32_BIT = (1, 2, 4, 8, 16, 32)

#: Fused multiply-adds of one product that float32 may unroll into each thread, as for ``attention``.
MAX_UNROLLED = 1024


def params(problem: Problem, device: Device) -> Ranges:
    ranges = by_arch(RANGES, device.arch)
    return ranges if _itemsize(problem) == 2 else {**ranges, "BLOCK_H": _HEADS_32_BIT}


def default(problem: Problem, device: Device) -> Config:
    ranges, narrow = params(problem, device), _itemsize(problem) == 2
    block_h = clamp(next_power_of_2(_group(problem)), smallest(ranges, "BLOCK_H"), 64 if narrow else 16)
    block_n = clamp(next_power_of_2(problem.integer("SK")), 16, 64 if narrow else 32)
    stages = largest_up_to(3, ranges, "num_stages") if device.arch.startswith("sm_") else 1
    stages = max(stages, smallest(ranges, "num_stages"))
    while True:
        config = _default_of(block_h, block_n, stages, problem, device)
        smallest_of_all = (block_h, block_n) == (smallest(ranges, "BLOCK_H"), 16) and stages <= 1
        if smallest_of_all or all(rule(config, problem, device) is None for rule in _RULES):
            return config
        # The tiles are for the usual devices; on smaller ones give up pipelining first, then keys, then heads.
        if stages > 1:
            stages -= 1
        elif block_n > 16:
            block_n //= 2
        else:
            block_h //= 2


def _default_of(block_h: int, block_n: int, stages: int, problem: Problem, device: Device) -> Config:
    ranges, narrow = params(problem, device), _itemsize(problem) == 2
    programs = problem.integer("B") * problem.integer("HKV") * cdiv(_group(problem), block_h)
    wanted = 2 * device.sm_count // max(1, programs)
    # Over 128 outputs or 512 unrolled multiply-adds a thread, 4 warps spill: 5504 B for D=256 in float32.
    widest = max(_block_d(problem, "D"), _block_d(problem, "DV"))
    outputs, products = block_h * (widest + block_n), block_h * block_n * widest
    wide = outputs > 128 * 4 * device.warp_size or (not narrow and products > 512 * 4 * device.warp_size)
    chosen = {
        "SPLIT_KV": largest_up_to(min(wanted, _blocks(block_n, problem)), ranges, "SPLIT_KV"),
        "BLOCK_H": block_h,
        "BLOCK_N": block_n,
        "num_warps": largest_up_to(8 if wide else 4, ranges, "num_warps"),
        "num_stages": stages,
        "maxnreg": 0,
        "waves_per_eu": 0,
    }
    return Config({name: chosen[name] for name in ranges})


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    """The number of splits first, then blocks of keys and warps."""
    base = default(problem, device)
    splits = base.integer("SPLIT_KV")
    return [
        *(Config({**base, "SPLIT_KV": max(1, splits * times // 4)}) for times in (8, 2, 16, 1)),
        *(Config({**base, "BLOCK_N": keys, "num_warps": warps}) for keys, warps in ((128, 4), (32, 4), (32, 2))),
    ]


def _group(problem: Problem) -> int:
    return problem.integer("H") // problem.integer("HKV")


def _itemsize(problem: Problem) -> int:
    return ITEMSIZE[str(problem["dtype"])]


def _blocks(block_n: int, problem: Problem) -> int:
    """The most blocks of keys that a sequence may see."""
    keys, window = problem.integer("SK"), problem.integer("window", 0)
    # A window that is not aligned to blocks touches one more.
    return cdiv(min(keys, window + block_n - 1) if window else keys, block_n)


def _block_d(problem: Problem, name: str) -> int:
    return max(16, next_power_of_2(problem.integer(name, 0) or problem.integer("D")))


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Shared memory of the query tile, the pipelined key and value tiles, and the weights between the products,
    and scratch for reductions and looked-up offsets; read off Triton 3.9's compiled code.

    On NVIDIA one stage less than asked for is in flight, but for tiles of 64 heads from sm_90 on, whose products
    read shared memory. On AMD the queries only pass through.
    """
    block_h, block_n, stages = (config.integer(name) for name in ("BLOCK_H", "BLOCK_N", "num_stages"))
    keys, values = (block_n * _block_d(problem, name) for name in ("D", "DV"))
    queries, weights = block_h * _block_d(problem, "D"), block_h * block_n
    page = problem.integer("page", 0)
    looked_up = 8 * block_n if page and page % block_n else 0
    scratch = 16 * block_h + 64 + looked_up
    if device.arch.startswith("gfx"):
        tiles = max(queries, weights + (max(keys, values) if stages == 1 else (stages - 1) * (keys + values)))
    else:
        whole = block_h >= 64 and config.integer("num_warps") >= 4
        buffers = pipeline_buffers(config, device) if whole else max(1, stages - 1)
        tiles = queries + buffers * (keys + values) + weights
    return tiles * _itemsize(problem) + scratch


def live_elements(config: Config, problem: Problem) -> int:
    """Accumulator and scores, and a 64-bit address for each 16 bytes of keys and values."""
    block_n, widths = config.integer("BLOCK_N"), [_block_d(problem, name) for name in ("D", "DV")]
    addresses = block_n * sum(widths) * _itemsize(problem) // 16
    return config.integer("BLOCK_H") * (widths[1] + block_n) + 2 * addresses


def covers_group(config: Config, problem: Problem, device: Device) -> str | None:
    most = max(smallest(params(problem, device), "BLOCK_H"), next_power_of_2(_group(problem)))
    if config.integer("BLOCK_H") <= most:
        return None
    return (
        f"BLOCK_H={config['BLOCK_H']} is mostly padding for {_group(problem)} heads a kv head; {most} covers them"
    )


def feeds_splits(config: Config, problem: Problem, device: Device) -> str | None:
    splits, blocks = config.integer("SPLIT_KV"), _blocks(config.integer("BLOCK_N"), problem)
    if splits <= max(1, blocks):
        return None
    return f"SPLIT_KV={splits} is over the {blocks} blocks of {config['BLOCK_N']} keys there are"


def unrolls_little(config: Config, problem: Problem, device: Device) -> str | None:
    if _itemsize(problem) == 2 or not device.arch.startswith("sm_"):
        return None
    widest = max(_block_d(problem, "D"), _block_d(problem, "DV"))
    products = config.integer("BLOCK_H") * config.integer("BLOCK_N") * widest
    per_thread = products // (device.warp_size * config.integer("num_warps"))
    if per_thread <= MAX_UNROLLED:
        return None
    return f"unrolls {per_thread} float32 multiply-adds a thread, over {MAX_UNROLLED}; use a smaller tile"


def steps(config: Config, problem: Problem) -> int:
    """Tile products, and programs that have none."""
    tiles = cdiv(_group(problem), config.integer("BLOCK_H"))
    blocks = max(_blocks(config.integer("BLOCK_N"), problem), config.integer("SPLIT_KV"))
    return problem.integer("B") * problem.integer("HKV") * tiles * blocks


_RULES = (
    feeds_splits,
    little_padding({"BLOCK_N": "SK"}, params),
    covers_group,
    fits_registers(live_elements),
    unrolls_little,
    fits_shared_memory(shared_bytes),
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    seeds=seeds,
)
