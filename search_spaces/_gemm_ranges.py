"""The values each parameter of ``gemm`` may take, by architecture, dtype and whether M may change the bits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from autotune.arithmetic import clamp, next_power_of_2
from autotune.data import Device, Problem, Value
from autotune.search_spaces._gemm_problem import Product, read
from autotune.search_spaces._rules import barrier_bytes, largest_up_to
from autotune.space import Ranges, by_arch

_TILES = (16, 32, 64, 128, 256)

#: BLOCK_K in 16 bits; other widths in ``_BLOCK_K``.
RANGES: Mapping[str, Ranges] = {
    "sm_80": {
        "STRUCTURE": ("tiled", "persistent", "skinny"),
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (16, 32, 64, 128),
        "SPLIT_K": (1, 2, 4, 8, 16),
        "GROUP_M": (1, 4, 8, 16),
        "num_warps": (1, 2, 4, 8),
        "num_stages": (2, 3, 4, 5, 6),
    },
    "sm_90": {
        "STRUCTURE": ("tiled", "persistent", "descriptor", "skinny"),
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (32, 64, 128),
        "SPLIT_K": (1, 2, 4, 8, 16),
        "GROUP_M": (1, 4, 8, 16),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4, 5),
        "EPILOGUE_SUBTILE": (1, 2),
        "FLATTEN": (False, True),
        "WARP_SPECIALIZE": (False, True),
        "maxnreg": (0, 128, 168, 232),
    },
    "sm_100": {
        "STRUCTURE": ("tiled", "persistent", "descriptor", "skinny"),
        "BLOCK_M": (64, 128, 256),
        "BLOCK_N": (64, 128, 256),
        "BLOCK_K": (32, 64, 128),
        "SPLIT_K": (1, 2, 4, 8, 16),
        "GROUP_M": (8,),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
        "EPILOGUE_SUBTILE": (1, 2, 4),
        "FLATTEN": (False, True),
        "WARP_SPECIALIZE": (False, True),
    },
    "gfx942": {
        "STRUCTURE": ("tiled", "persistent", "skinny"),
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (16, 32, 64, 128, 256),
        "SPLIT_K": (1, 2, 4, 8, 16),
        "GROUP_M": (4, 8, 16),
        "num_warps": (4, 8),
        "num_stages": (1, 2),
        "waves_per_eu": (0, 2),
        "matrix_instr_nonkdim": (0, 16),
        "kpack": (1, 2),
    },
    # Tile order, warps and stages change nothing there, so they are no choice.
    "interpreter": {
        "STRUCTURE": ("tiled", "persistent", "descriptor", "skinny"),
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (16, 32, 64, 128, 256),
        "SPLIT_K": (1, 2, 4),
        "GROUP_M": (8,),
        "num_warps": (4,),
        "num_stages": (2,),
        "EPILOGUE_SUBTILE": (1, 2),
        "FLATTEN": (False, True),
    },
}

_BLOCK_K: Mapping[tuple[str, int], tuple[int, ...]] = {
    ("sm_80", 1): (32, 64, 128),
    ("sm_90", 1): (64, 128, 256),
    ("sm_100", 1): (128, 256),
    ("gfx942", 1): (64, 128, 256),
    ("interpreter", 1): (32, 64, 128, 256),
    ("sm_80", 4): (16, 32, 64),
    ("sm_90", 4): (16, 32, 64),
    ("sm_100", 4): (16, 32, 64),
}


@lru_cache(maxsize=256)
def params(problem: Problem, device: Device) -> Ranges:
    """The architecture's ranges, with BLOCK_K for the dtype; batch-invariant, of one tile and one order of sums."""
    found = by_arch(RANGES, device.arch)
    family = next(arch for arch, ranges in RANGES.items() if ranges is found)
    product = read(problem)
    ranges = {**found, "BLOCK_K": _BLOCK_K.get((family, product.itemsize), found["BLOCK_K"])}
    return _invariant(ranges, product, device) if product.batch_invariant else ranges


def _invariant(ranges: Ranges, product: Product, device: Device) -> Ranges:
    """One tile, whatever M is, and nothing free that chooses the matrix instruction and its order of sums."""
    # 128 x 128 sums of 32 bits are 64 KiB on their way out.
    small = product.on_plain_cores(device) or device.shared_bytes_per_block < 2**16 + barrier_bytes(device)
    largest = 64 if small else 128
    block_n = largest_up_to(min(next_power_of_2(product.N), largest), ranges, "BLOCK_N")
    fixed: Mapping[str, Value] = {
        "BLOCK_M": largest,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k_of(product, ranges),
        "SPLIT_K": 1,
        "num_warps": warps_for(largest * block_n, ranges, least=8),
        "matrix_instr_nonkdim": 0,
        "kpack": 1,
    }
    structures = tuple(name for name in ranges["STRUCTURE"] if name != "skinny")
    return {
        **{name: (fixed[name],) if name in fixed else values for name, values in ranges.items()},
        "STRUCTURE": structures,
    }


def block_k_of(product: Product, ranges: Ranges) -> int:
    """A cache line of 128 bytes, which is also the widest swizzle of shared memory."""
    return largest_up_to(min(128 // product.itemsize, max(16, next_power_of_2(product.K))), ranges, "BLOCK_K")


def warps_for(outputs: int, ranges: Ranges, least: int = 4) -> int:
    """A warp for 4096 outputs, and ``least`` where each has 256."""
    return largest_up_to(clamp(outputs // 4096, min(least, outputs // 256), 8), ranges, "num_warps")
