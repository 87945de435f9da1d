"""Which structures and tiles ``grouped_gemm`` may use, by architecture.

Ranges from vLLM's fused_moe tables (BLOCK_M 16 for a few tokens a group to 128, BLOCK_N 32 to 256, GROUP_M up to
64), FBGEMM's grouped_gemm and torch inductor's triton_mm_grouped; the default is the closed form of triton_kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from autotune.arithmetic import cdiv, clamp, next_power_of_2
from autotune.data import ITEMSIZE, Config, Device, Problem, Value
from autotune.search_spaces._gemm_problem import Product, is_at_least
from autotune.search_spaces._gemm_resources import MAX_SCATTERED, MAX_UNROLLED, scattered_loads
from autotune.search_spaces._rules import (
    barrier_bytes,
    feeds_warps,
    fits_registers,
    fits_shared_memory,
    largest_up_to,
    little_padding,
    pipeline_buffers,
    smallest,
    worth_interpreting,
)
from autotune.space import Ranges, SearchSpace, by_arch

_TILES = (16, 32, 64, 128, 256)

RANGES: Mapping[str, Ranges] = {
    "sm_80": {
        "STRUCTURE": ("tiled", "persistent"),
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (16, 32, 64, 128),
        "GROUP_M": (1, 4, 16, 64),
        "num_warps": (2, 4, 8),
        "num_stages": (2, 3, 4, 5),
    },
    "sm_90": {
        "STRUCTURE": ("tiled", "persistent", "descriptor"),
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (16, 32, 64, 128),
        "GROUP_M": (1, 4, 16, 64),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4, 5),
    },
    "sm_100": {
        "STRUCTURE": ("tiled", "persistent", "descriptor"),
        "BLOCK_M": _TILES,
        "BLOCK_N": (32, 64, 128, 256),
        "BLOCK_K": (16, 32, 64, 128),
        "GROUP_M": (1, 4, 16, 64),
        "num_warps": (4, 8),
        "num_stages": (2, 3, 4),
    },
    "gfx942": {
        "STRUCTURE": ("tiled", "persistent"),
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (16, 32, 64, 128, 256),
        "GROUP_M": (1, 4, 16, 64),
        "num_warps": (4, 8),
        "num_stages": (1, 2),
        "waves_per_eu": (0, 2),
        "kpack": (1, 2),
    },
    # Tile order, warps and stages change nothing there, so they are no choice.
    "interpreter": {
        "STRUCTURE": ("tiled", "persistent", "descriptor"),
        "BLOCK_M": _TILES,
        "BLOCK_N": _TILES,
        "BLOCK_K": (16, 32, 64, 128, 256),
        "GROUP_M": (4,),
        "num_warps": (4,),
        "num_stages": (2,),
    },
}

#: Bytes in which a program adds up tiles over its warps to find its group.
_SEARCH = 1024
#: Barriers of descriptors' stages.
_BARRIERS = 256

#: STRUCTURE, BLOCK_M, BLOCK_N, BLOCK_K in 16 bits, GROUP_M, num_warps, num_stages.
_WINNERS: Sequence[tuple[str, int, int, int, int, int, int]] = (
    ("descriptor", 128, 256, 64, 4, 8, 3),
    ("descriptor", 128, 128, 64, 4, 4, 4),
    ("descriptor", 64, 128, 64, 1, 4, 4),
    ("tiled", 128, 256, 64, 16, 8, 4),
    ("tiled", 64, 128, 64, 4, 4, 4),
    ("persistent", 128, 128, 64, 4, 8, 3),
    ("tiled", 64, 64, 64, 1, 4, 4),
    ("tiled", 16, 128, 64, 1, 4, 4),
    ("tiled", 16, 64, 128, 1, 4, 4),
    ("tiled", 16, 32, 64, 1, 4, 3),
)


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


@lru_cache(maxsize=64)
def read(problem: Problem) -> Product:
    """As a plain product of all tokens, for the rules that plain products have."""
    dtype = str(problem["dtype"])
    return Product(
        batch=1,
        M=problem.integer("T"),
        N=problem.integer("N"),
        K=problem.integer("K"),
        dtype=dtype,
        itemsize=ITEMSIZE[dtype],
        out_itemsize=ITEMSIZE[dtype],
        layout=str(problem.get("layout", "nn")),
        aligned=bool(problem.get("aligned", True)),
        gated=problem.get("activation", "none") == "swiglu",
        finished=problem.get("activation", "none") != "none",
        tf32=False,
        batch_invariant=False,
    )


def _tile_rows(block_m: int, problem: Problem) -> int:
    """Rows of tiles that are expected: each group that has a token wastes half of one."""
    tokens, groups = problem.integer("T"), problem.integer("G")
    return min(tokens, cdiv(tokens, block_m) + cdiv(min(groups, tokens), 2))


def tiles(config: Mapping[str, Value], problem: Problem) -> int:
    return _tile_rows(int(config["BLOCK_M"]), problem) * cdiv(problem.integer("N"), int(config["BLOCK_N"]))


@lru_cache(maxsize=256)
def default(problem: Problem, device: Device) -> Config:
    """BLOCK_M of a group's mean tokens, and the widest BLOCK_N that fills the device; smaller until it fits."""
    ranges, product = params(problem, device), read(problem)
    most = 64 if product.on_plain_cores(device) else 128
    mean = cdiv(product.M, max(1, problem.integer("G")))
    rows = largest_up_to(clamp(next_power_of_2(mean), 16, most), ranges, "BLOCK_M")
    # Few rows are bound by memory: narrow tiles spread a weight over more of the device.
    widest = 256 if is_at_least(device, 90) and rows >= 64 and most == 128 else most
    sizes = {
        "BLOCK_M": rows,
        "BLOCK_N": largest_up_to(clamp(next_power_of_2(product.N), 16, widest), ranges, "BLOCK_N"),
        "BLOCK_K": largest_up_to(clamp(next_power_of_2(product.K), 16, 128 // product.itemsize), ranges, "BLOCK_K"),
        "num_stages": largest_up_to(4, ranges, "num_stages"),
    }
    while sizes["BLOCK_N"] > 64 and 2 * tiles(sizes, problem) <= device.sm_count:
        sizes["BLOCK_N"] //= 2
    while True:
        config = _completed(sizes, problem, device, ranges)
        if not any(rule(config, problem, device) for rule in _RULES):
            return config
        # What is given up first: pipelining, then what a tile holds.
        order = ("num_stages", "BLOCK_K", "BLOCK_N", "BLOCK_M")
        name = next(name for name in order if sizes[name] > smallest(ranges, name))
        sizes[name] = largest_up_to(sizes[name] - 1, ranges, name)


def _completed(sizes: Mapping[str, int], problem: Problem, device: Device, ranges: Ranges) -> Config:
    first = {name: values[0] for name, values in ranges.items()}
    outputs = sizes["BLOCK_M"] * sizes["BLOCK_N"]
    crowded = any(read(problem).scattered) or read(problem).finished
    warps = clamp(outputs // 4096, min(8 if crowded else 4, outputs // 256), 8)
    chosen: dict[str, Value] = {
        **first,
        **sizes,
        "GROUP_M": largest_up_to(4, ranges, "GROUP_M"),
        "num_warps": largest_up_to(warps, ranges, "num_warps"),
    }
    by_descriptor = Config({**chosen, "STRUCTURE": "descriptor"})
    many = tiles(sizes, problem) >= 2 * device.sm_count and device.arch != "interpreter"
    many = many and not read(problem).on_plain_cores(device)
    if many and "descriptor" in ranges["STRUCTURE"] and structure_serves(by_descriptor, problem, device) is None:
        return Config(SPACE.settle(by_descriptor, problem, device, ranges))
    return Config(SPACE.settle(chosen, problem, device, ranges))


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    """Wide tiles for many tokens a group, 16 rows for a few."""
    base, ranges = default(problem, device), params(problem, device)
    names = ("STRUCTURE", "BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "num_warps", "num_stages")
    found: dict[Config, None] = {}
    for values in _WINNERS:
        wanted: dict[str, Value] = {**base, **dict(zip(names, values, strict=True))}
        wanted["BLOCK_K"] = 2 * int(wanted["BLOCK_K"]) // read(problem).itemsize
        for name in ("GROUP_M", "num_warps", "num_stages"):
            wanted[name] = largest_up_to(int(wanted[name]), ranges, name)
        found[Config(SPACE.settle(wanted, problem, device, ranges))] = None
    return [config for config in found if SPACE.why_not(config, problem, device) is None]


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Pipelined operands, or the result on its way to another layout, or the search. Triton 3.9's figures."""
    product = read(problem)
    block_m, block_n, block_k = (config.integer(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    operands = pipeline_buffers(config, device) * (block_m + block_n) * block_k * product.itemsize
    outputs = block_m * block_n
    if device.arch.startswith("gfx"):
        return max(operands, 2 * outputs + outputs // 4, min(4 * outputs, 16384), _SEARCH)
    result = outputs * (2 if product.gated else product.out_itemsize)
    barriers = _BARRIERS if config["STRUCTURE"] == "descriptor" else barrier_bytes(device)
    return max(operands, result, _SEARCH) + barriers


def _outputs(config: Config, problem: Problem) -> int:
    return config.integer("BLOCK_M") * config.integer("BLOCK_N")


def structure_serves(config: Config, problem: Problem, device: Device) -> str | None:
    product, structure = read(problem), config["STRUCTURE"]
    if structure == "persistent" and tiles(config, problem) <= device.sm_count:
        return f"STRUCTURE=persistent is the tiled one: {tiles(config, problem)} tiles for {device.sm_count} SMs"
    if structure != "descriptor":
        return None
    x, w = product.layout[0], product.layout[1]
    rows = {"x": product.K, "w": product.N if w == "n" else product.K}
    if x != "n" or w == "s" or not product.aligned or not product.K:
        return (
            f"STRUCTURE=descriptor takes aligned rows of x, and rows or columns of w, not layout={product.layout}"
        )
    for name, length in rows.items():
        if length * product.itemsize % 16:
            return (
                f"STRUCTURE=descriptor takes rows of a multiple of 16 bytes, and {name}'s are "
                f"{length} x {product.itemsize}"
            )
    width = config.integer("BLOCK_N") // (2 if product.gated else 1)
    if w == "n" and width * product.itemsize < 16:
        return f"STRUCTURE=descriptor moves rows of 16 bytes or more, and a box of this tile has {width} elements"
    return None


def covers_groups(config: Config, problem: Problem, device: Device) -> str | None:
    """A group has at most all tokens; over twice the mean a tile is mostly padding, unless a group is hot."""
    mean = cdiv(problem.integer("T"), max(1, problem.integer("G")))
    most = max(16, smallest(params(problem, device), "BLOCK_M"), next_power_of_2(4 * mean))
    if config.integer("BLOCK_M") <= most:
        return None
    return f"BLOCK_M={config['BLOCK_M']} is mostly padding for {mean} tokens a group; {most} is enough"


def unrolls_little(config: Config, problem: Problem, device: Device) -> str | None:
    """Float32 products run on NVIDIA's plain cores, unrolled whole into every thread."""
    if not read(problem).on_plain_cores(device):
        return None
    products = _outputs(config, problem) * config.integer("BLOCK_K")
    per_thread = products // (device.warp_size * config.integer("num_warps"))
    if per_thread <= MAX_UNROLLED:
        return None
    return f"unrolls {per_thread} float32 multiply-adds a thread, over {MAX_UNROLLED}; use a smaller tile"


def scatters_little(config: Config, problem: Problem, device: Device) -> str | None:
    loads = scattered_loads(config, read(problem), device)
    if loads <= MAX_SCATTERED:
        return None
    return f"loads {loads} elements one by one a thread, over {MAX_SCATTERED}; use more warps or a smaller tile"


def _in_order(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    """One row or column of tiles has only one order."""
    one_row = _tile_rows(int(chosen["BLOCK_M"]), problem) <= 1
    return not one_row and problem.integer("N") > int(chosen["BLOCK_N"])


def steps(config: Config, problem: Problem) -> int:
    """Products of tiles that the interpreter takes; finding a tile's group costs it as much as eight."""
    return tiles(config, problem) * (8 + cdiv(problem.integer("K"), config.integer("BLOCK_K")))


_RULES = (
    structure_serves,
    covers_groups,
    little_padding({"BLOCK_N": "N", "BLOCK_K": "K"}, params),
    feeds_warps(_outputs, params),
    fits_registers(_outputs),
    unrolls_little,
    scatters_little,
    fits_shared_memory(shared_bytes),
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    matters={"GROUP_M": _in_order},
    seeds=seeds,
)
