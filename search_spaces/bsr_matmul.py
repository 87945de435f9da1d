"""Which structures and tiles ``bsr_matmul`` may use, by architecture.

Ranges from the peers' kernels: torch's ``bsr_dense_addmm`` (stages, warps, row groups) and stk (steps inside a
block). A tile is at most as wide as the weight's blocks are. ``_bsr_resources.py`` has shared memory and registers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from autotune.arithmetic import cdiv, clamp, next_power_of_2
from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces._bsr_resources import (
    Sizes,
    keeps_few,
    outputs,
    shared_bytes,
    sizes,
    unrolls_little,
)
from autotune.search_spaces._rules import (
    default_warps,
    feeds_warps,
    fits_shared_memory,
    largest_up_to,
    little_padding,
    worth_interpreting,
)
from autotune.space import Ranges, SearchSpace, by_arch

_STRUCTURES = ("row", "ordered", "persistent", "split")
#: Most blocks of a chunk.
_SPLITS = (2, 4, 8, 16, 32, 64, 128)
_TILES = (16, 32, 64, 128, 256)
_SHARED: Ranges = {
    "STRUCTURE": _STRUCTURES,
    "SPLIT": _SPLITS,
    # Programs of a persistent kernel that share a multiprocessor.
    "PER_SM": (1, 2, 4),
    "BLOCK_M": _TILES,
    "BLOCK_N": _TILES,
    "BLOCK_K": _TILES,
    "GROUP_M": (1, 2, 4, 8),
}
_NVIDIA: Ranges = {**_SHARED, "num_warps": (1, 2, 4, 8), "num_stages": (1, 2, 3, 4, 5)}

RANGES: Mapping[str, Ranges] = {
    "sm_80": _NVIDIA,
    "sm_90": _NVIDIA,
    "sm_100": {**_NVIDIA, "num_warps": (4, 8), "num_stages": (1, 2, 3, 4)},
    "gfx942": {
        **_SHARED,
        "num_warps": (1, 2, 4, 8),
        "num_stages": (1, 2),
        "waves_per_eu": (0, 2),
        "kpack": (1, 2),
    },
    # Tile order, warps and stages change nothing there, so they are no choice.
    "interpreter": {**_SHARED, "PER_SM": (1,), "GROUP_M": (4,), "num_warps": (4,), "num_stages": (2,)},
}

#: Chunks that a row may be cut into.
MAX_CHUNKS = 32
#: Of the sums that wait for the second launch.
MAX_PARTIAL_BYTES = 2**30


@lru_cache(maxsize=1024)
def params(problem: Problem, device: Device) -> Ranges:
    """Those of the architecture, but for tiles over the problem's blocks, and chunks over its rows."""
    ranges, known = by_arch(RANGES, device.arch), sizes(problem)
    splits = tuple(split for split in _SPLITS if cuts(split, known))
    return {
        **ranges,
        "STRUCTURE": _STRUCTURES if splits else _STRUCTURES[:-1],
        "SPLIT": splits or _SPLITS[:1],
        "BLOCK_N": tuple(size for size in _TILES if size <= known.outputs),
        "BLOCK_K": tuple(size for size in _TILES if size <= known.inner),
    }


def cuts(split: int, known: Sizes) -> bool:
    """Whether chunks of so many blocks cut the longest row, but not into too many, nor leave too large sums."""
    partial_bytes = known.blocks // split * known.rows_of_x * known.outputs * 4
    return 1 < cdiv(known.longest, split) <= MAX_CHUNKS and partial_bytes <= MAX_PARTIAL_BYTES


def default(problem: Problem, device: Device) -> Config:
    """Whole blocks where they fit, and four stages: on an H100 torch's fall-back of one costs a fifth.

    Made smaller until the device holds it: stages first, then what a tile holds.
    """
    ranges, known = params(problem, device), sizes(problem)
    narrow = known.itemsize == 2
    chosen: dict[str, Value] = {name: values[0] for name, values in ranges.items()}
    chosen |= _structure(known, ranges)
    chosen["BLOCK_N"] = min(known.outputs, 128 if narrow else 64)
    chosen["BLOCK_M"] = clamp(next_power_of_2(known.M), 16, 128 if narrow else 64)
    chosen["BLOCK_K"] = min(known.inner, 64 if narrow else 32)
    chosen["num_stages"] = largest_up_to(4, ranges, "num_stages")
    chosen["GROUP_M"] = largest_up_to(4, ranges, "GROUP_M")
    while True:
        tile = int(chosen["BLOCK_M"]) * int(chosen["BLOCK_N"])
        chosen["num_warps"] = default_warps(tile, ranges)
        config = Config(SPACE.settle(chosen, problem, device, ranges))
        if not any(rule(config, problem, device) for rule in _RULES):
            return config
        names = ("num_stages", "BLOCK_K", "BLOCK_M", "BLOCK_N")
        name = next(name for name in names if int(chosen[name]) > int(ranges[name][0]))
        chosen[name] = largest_up_to(int(chosen[name]) - 1, ranges, name)


def _structure(known: Sizes, ranges: Ranges) -> dict[str, Value]:
    """Rows that are several times the mean in chunks of about twice that; somewhat longer ones first."""
    if known.imbalance < 2:
        return {"STRUCTURE": "row"}
    if known.imbalance == 2 or "split" not in ranges["STRUCTURE"]:
        return {"STRUCTURE": "ordered"}
    return {"STRUCTURE": "split", "SPLIT": largest_up_to(2 * known.mean, ranges, "SPLIT")}


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    """Other tiles first, then other structures with the default's."""
    base, ranges, known = default(problem, device), params(problem, device), sizes(problem)
    whole = largest_up_to(known.inner, ranges, "BLOCK_K")
    changes: list[dict[str, Value]] = [{"BLOCK_M": m, "BLOCK_K": k} for m in (64, 128, 32, 16) for k in (whole, 32)]
    changes += [{"STRUCTURE": "persistent", "PER_SM": count} for count in ranges["PER_SM"]]
    changes += [{"STRUCTURE": "split", "SPLIT": largest_up_to(known.mean // 2, ranges, "SPLIT")}]
    found = {Config(SPACE.settle({**base, **change}, problem, device, ranges)): None for change in changes}
    return [config for config in found if SPACE.why_not(config, problem, device) is None]


def steps(config: Config, problem: Problem) -> int:
    """Tile products, and programs that have none."""
    known = sizes(problem)
    tiles = problem.integer("B", 1) * cdiv(known.M, config.integer("BLOCK_M"))
    tiles *= known.outputs // config.integer("BLOCK_N")
    return tiles * (known.rows + known.blocks * (known.inner // config.integer("BLOCK_K")))


_RULES = (
    little_padding({"BLOCK_M": "M"}, params),
    feeds_warps(outputs, params),
    keeps_few,
    unrolls_little,
    fits_shared_memory(shared_bytes),
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    matters={
        "SPLIT": lambda config, problem, device: config["STRUCTURE"] == "split",
        "PER_SM": lambda config, problem, device: config["STRUCTURE"] == "persistent",
        "GROUP_M": lambda config, problem, device: config["STRUCTURE"] == "row",
    },
    seeds=seeds,
)
