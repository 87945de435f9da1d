"""Which tiles ``bsr_matmul`` may use, by architecture.

Ranges from the peers' kernels: torch's ``bsr_dense_addmm`` (stages, warps, row groups) and stk (steps inside a
block). The tile's width is the weight's block, so it is no parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.arithmetic import cdiv, clamp, next_power_of_2
from autotune.data import ITEMSIZE, Config, Device, Problem
from autotune.search_spaces._rules import (
    barrier_bytes,
    default_warps,
    feeds_warps,
    fits_registers,
    fits_shared_memory,
    little_padding,
    pipeline_buffers,
    worth_interpreting,
)
from autotune.space import Ranges, SearchSpace, by_arch

_NVIDIA: Ranges = {
    "BLOCK_M": (16, 32, 64, 128, 256),
    "BLOCK_K": (16, 32, 64, 128, 256),
    "GROUP_M": (1, 2, 4, 8),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (1, 2, 3, 4, 5),
}

RANGES: Mapping[str, Ranges] = {
    "sm_80": _NVIDIA,
    "sm_90": _NVIDIA,
    "sm_100": {**_NVIDIA, "num_warps": (4, 8), "num_stages": (1, 2, 3, 4)},
    "gfx942": {**_NVIDIA, "num_stages": (1, 2), "waves_per_eu": (0, 2), "kpack": (1, 2)},
    # Tile order, warps and stages change nothing there, so they are no choice.
    "interpreter": {**_NVIDIA, "GROUP_M": (4,), "num_warps": (4,), "num_stages": (2,)},
}


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


def default(problem: Problem, device: Device) -> Config:
    """Whole blocks where they fit, and four stages: on an H100 torch's fall-back of one costs a fifth."""
    ranges = params(problem, device)
    narrow = ITEMSIZE[str(problem["dtype"])] == 2
    block_rows = problem.integer("BLOCK_ROWS")
    block_m = clamp(next_power_of_2(problem.integer("M")), 16, 128 if narrow and block_rows <= 128 else 64)
    chosen = {
        "BLOCK_M": block_m,
        "BLOCK_K": min(problem.integer("BLOCK_COLUMNS"), 64 if narrow else 32),
        "GROUP_M": 4,
        "num_warps": default_warps(block_m * block_rows, ranges),
        "num_stages": 4 if 4 in ranges["num_stages"] else 2,
        "waves_per_eu": 0,
        "kpack": 1,
    }
    return Config({name: chosen[name] for name in ranges})


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    base = default(problem, device)
    whole = problem.integer("BLOCK_COLUMNS")
    return [Config({**base, "BLOCK_M": m, "BLOCK_K": k}) for m in (128, 64, 32, 16) for k in (whole, 32)]


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Shared memory of the pipelined tiles of x and of the weight, or of the result on its way out.

    The load of a block's column must finish before those of its tiles can start: it takes half of the stages,
    two on AMD. Read off Triton 3.9: 1 to 5 stages give 1, 2, 2, 2, 3 buffers on sm_90.
    """
    tile = (config.integer("BLOCK_M") + problem.integer("BLOCK_ROWS")) * config.integer("BLOCK_K")
    stages = config.integer("num_stages")
    left = max(1, stages - 1) if device.arch.startswith("gfx") else max(min(stages, 2), (stages + 1) // 2)
    buffers = pipeline_buffers(Config(num_stages=left), device)
    return max(buffers * tile, outputs(config, problem)) * ITEMSIZE[str(problem["dtype"])] + barrier_bytes(device)


def outputs(config: Config, problem: Problem) -> int:
    return config.integer("BLOCK_M") * problem.integer("BLOCK_ROWS")


def divides_block(config: Config, problem: Problem, device: Device) -> str | None:
    whole = problem.integer("BLOCK_COLUMNS")
    if whole % config.integer("BLOCK_K") == 0:
        return None
    return f"BLOCK_K={config['BLOCK_K']} does not divide the weight's blocks of {whole} columns"


def steps(config: Config, problem: Problem) -> int:
    tiles = cdiv(problem.integer("M"), config.integer("BLOCK_M"))
    block_rows = problem.integer("N") // problem.integer("BLOCK_ROWS")
    stored_columns = cdiv(problem.integer("K") * problem.integer("density"), 100)
    return tiles * block_rows * cdiv(stored_columns, config.integer("BLOCK_K"))


SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(
        little_padding({"BLOCK_M": "M"}, params),
        divides_block,
        feeds_warps(outputs, params),
        fits_registers(outputs),
        fits_shared_memory(shared_bytes),
        worth_interpreting(steps, default),
    ),
    seeds=seeds,
)
