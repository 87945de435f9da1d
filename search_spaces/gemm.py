"""Which tiles ``gemm`` may use, by architecture.

Ranges are the union of the lists that torch inductor, Triton's tutorials 03 and 09, tritonbench and FBGEMM
ship, for a kernel with pointer loads. Shared-memory arithmetic is held to the compiler by
``tests/test_compile.py``.
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
    smallest,
    worth_interpreting,
)
from autotune.space import Ranges, SearchSpace, by_arch

_TILES = (16, 32, 64, 128, 256)

RANGES: Mapping[str, Ranges] = {
    "sm_80": {
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (16, 32, 64, 128),
        "GROUP_M": (1, 4, 8, 16),
        "num_warps": (1, 2, 4, 8),
        "num_stages": (2, 3, 4, 5, 6),
    },
    "sm_90": {
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (32, 64, 128),
        "GROUP_M": (1, 4, 8, 16),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4, 5),
    },
    "sm_100": {
        "BLOCK_M": (64, 128, 256),
        "BLOCK_N": (64, 128, 256),
        "BLOCK_K": (32, 64, 128),
        "GROUP_M": (1, 4, 8, 16),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
    },
    "gfx942": {
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (16, 32, 64, 128, 256),
        "GROUP_M": (4, 8, 16),
        "num_warps": (4, 8),
        "num_stages": (1, 2),
        "waves_per_eu": (0, 2),
        "matrix_instr_nonkdim": (0, 16),
        "kpack": (1, 2),
    },
    # Tile order, warps and stages change nothing there, so they are no choice.
    "interpreter": {
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (16, 32, 64, 128, 256),
        "GROUP_M": (8,),
        "num_warps": (4,),
        "num_stages": (2,),
    },
}


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


def default(problem: Problem, device: Device) -> Config:
    """Tiles of the next power of two, up to 128, as in triton_kernels' rule, with a warp for 2048 outputs."""
    M, N, K = (problem.integer(name) for name in "MNK")
    ranges = params(problem, device)
    narrow = ITEMSIZE[str(problem["dtype"])] == 2
    # 32-bit products run on the plain cores (ieee, not tf32): small tiles keep them in registers.
    largest = 128 if narrow or device.arch == "interpreter" else 64
    chosen = {
        "BLOCK_M": clamp(next_power_of_2(M), 16, largest),
        "BLOCK_N": clamp(next_power_of_2(N), 16, largest),
        "BLOCK_K": clamp(next_power_of_2(K), 16, 64 if narrow else 32),
        "GROUP_M": 8,
        "num_stages": 3 if 3 in ranges["num_stages"] else 2,
        "waves_per_eu": 0,
        "matrix_instr_nonkdim": 0,
        "kpack": 1,
    }
    if device.arch == "interpreter":
        chosen["BLOCK_K"] = clamp(next_power_of_2(K), 16, 128)
    for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"):
        chosen[name] = max(chosen[name], smallest(ranges, name))
    chosen["num_warps"] = default_warps(chosen["BLOCK_M"] * chosen["BLOCK_N"], ranges)
    return Config({name: chosen[name] for name in ranges})


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    """Tiles that win in shipped lists: inductor's Hopper-class one first, then square, wide and decode ones."""
    base = default(problem, device)
    shapes = (
        (128, 256, 64, 8),
        (128, 128, 64, 4),
        (64, 128, 64, 4),
        (64, 64, 128, 4),
        (16, 64, 128, 4),
        (16, 32, 128, 4),
    )
    return [
        Config(
            {
                **base,
                "BLOCK_M": m,
                "BLOCK_N": n,
                "BLOCK_K": k,
                "num_warps": warps if "sm" in device.arch else base["num_warps"],
            }
        )
        for m, n, k, warps in shapes
    ]


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Shared memory of the pipelined operand tiles, or of the result on its way out, whichever is larger."""
    tile = (config.integer("BLOCK_M") + config.integer("BLOCK_N")) * config.integer("BLOCK_K")
    elements = max(pipeline_buffers(config, device) * tile, outputs(config, problem))
    return elements * ITEMSIZE[str(problem["dtype"])] + barrier_bytes(device)


def outputs(config: Config, problem: Problem) -> int:
    return config.integer("BLOCK_M") * config.integer("BLOCK_N")


def steps(config: Config, problem: Problem) -> int:
    tiles = [cdiv(problem.integer(size), config.integer(f"BLOCK_{size}")) for size in "MNK"]
    return problem.integer("B", 1) * tiles[0] * tiles[1] * tiles[2]


SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(
        little_padding({"BLOCK_M": "M", "BLOCK_N": "N", "BLOCK_K": "K"}, params),
        feeds_warps(outputs, params),
        fits_registers(outputs),
        fits_shared_memory(shared_bytes),
        worth_interpreting(steps, default),
    ),
    seeds=seeds,
)
