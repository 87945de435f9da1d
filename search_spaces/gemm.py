"""Which structures and tiles ``gemm`` may use.

The default is the closed form of triton_kernels, seeds are what wins in the lists of torch inductor, Triton's
tutorial 09 and tritonbench. ``_gemm_ranges.py`` has the ranges, ``_gemm_rules.py`` the rules and
``_gemm_resources.py`` shared memory and registers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from autotune.arithmetic import cdiv, clamp, next_power_of_2
from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces._gemm_problem import Product, is_at_least, read
from autotune.search_spaces._gemm_ranges import block_k_of, params, warps_for
from autotune.search_spaces._gemm_resources import (
    MAX_SCATTERED,
    registers_hold,
    scattered_loads,
    scatters_little,
    shared_bytes,
    unrolls_little,
)
from autotune.search_spaces._gemm_rules import (
    LEAST_STEPS_A_PART,
    MATTERS,
    band_fits,
    feeds_warps,
    lacks_dtype,
    pads_little,
    register_limit_binds,
    rows_of_skinny,
    split_pays,
    structure_serves,
    warp_groups_fit,
)
from autotune.search_spaces._rules import fits_shared_memory, largest_up_to, worth_interpreting
from autotune.space import Ranges, SearchSpace

#: Structure, BLOCK_M, BLOCK_N, BLOCK_K in 16 bits, num_warps, num_stages, and what else differs from the default.
_WINNERS: Sequence[tuple[str, int, int, int, int, int, Mapping[str, Value]]] = (
    ("descriptor", 128, 256, 64, 8, 3, {}),
    ("descriptor", 128, 128, 64, 4, 4, {}),
    ("descriptor", 128, 256, 64, 8, 4, {"EPILOGUE_SUBTILE": 2, "FLATTEN": True}),
    ("descriptor", 128, 128, 128, 8, 3, {"FLATTEN": True}),
    ("tiled", 128, 256, 64, 8, 4, {}),
    ("tiled", 128, 128, 64, 4, 3, {}),
    ("persistent", 128, 128, 64, 8, 3, {}),
    ("tiled", 64, 128, 64, 4, 4, {}),
    ("tiled", 64, 64, 128, 4, 3, {}),
    ("tiled", 32, 64, 64, 4, 4, {}),
    ("tiled", 16, 64, 128, 4, 4, {"SPLIT_K": 4}),
    ("tiled", 16, 32, 128, 4, 5, {"SPLIT_K": 2}),
    ("skinny", 16, 32, 128, 4, 2, {"SPLIT_K": 4}),
    ("skinny", 16, 16, 128, 4, 2, {"SPLIT_K": 1}),
)

#: What shrinks, in this order, until a default fits its device.
_SHRINKING = ("num_stages", "BLOCK_K", "BLOCK_N", "BLOCK_M")


@lru_cache(maxsize=256)
def default(problem: Problem, device: Device) -> Config:
    """The closed form of triton_kernels, made smaller until the device holds it.

    Allowed for every problem of a dtype that the device compiles.
    """
    product, ranges = read(problem), params(problem, device)
    skinny = _skinny_pays(product, device)
    sizes = _skinny_sizes(product, ranges) if skinny else _tile_sizes(product, device, ranges)
    while True:
        structure = "skinny" if skinny else _structure(sizes, problem, device, ranges)
        wanted = _completed({**sizes, "STRUCTURE": structure}, product, device, ranges)
        config = Config(SPACE.settle(wanted, problem, device, ranges))
        loads, shortest = scattered_loads(config, product, device), int(ranges["BLOCK_K"][0])
        crowded = loads > MAX_SCATTERED or (loads > MAX_SCATTERED // 2 and int(sizes["BLOCK_K"]) > shortest)
        if not crowded and not any(rule(config, problem, device) for rule in _RULES):
            return config
        # Pipelining is given up first, then what a tile holds; but fewer stages make no thread load less.
        order = _SHRINKING[1:] if crowded else _SHRINKING
        name = next(name for name in order if int(sizes[name]) > int(ranges[name][0]))
        sizes[name] = largest_up_to(int(sizes[name]) - 1, ranges, name)


def _skinny_pays(product: Product, device: Device) -> bool:
    """Up to four multiply-adds an element of 16 bits the plain cores keep up with memory."""
    few = 0 < product.M <= 2 * product.itemsize and product.K > 0
    return few and not product.batch_invariant and device.arch != "interpreter"


def _skinny_sizes(product: Product, ranges: Ranges) -> dict[str, Value]:
    """Up to 32 elements of b a thread, of which 128 products with the rows of a are summed up; long rows first."""
    warps = largest_up_to(4, ranges, "num_warps")
    elements = 32 * warps * min(32, 128 // rows_of_skinny(product))
    long, wide = ("BLOCK_N", "BLOCK_K") if product.layout[1] == "n" else ("BLOCK_K", "BLOCK_N")
    sizes = {"BLOCK_N": product.N, "BLOCK_K": product.K}
    block = largest_up_to(min(128, max(16, next_power_of_2(sizes[long]))), ranges, long)
    other = largest_up_to(min(elements // block, max(16, next_power_of_2(sizes[wide]))), ranges, wide)
    stages = largest_up_to(4, ranges, "num_stages")
    return {"BLOCK_M": ranges["BLOCK_M"][0], long: block, wide: other, "num_stages": stages}


def _tile_sizes(product: Product, device: Device, ranges: Ranges) -> dict[str, Value]:
    """128 x 256 from sm_90 on and 128 x 128 before, narrower while the tiles still fit the device at once."""
    stages = largest_up_to(4, ranges, "num_stages")
    if product.batch_invariant:
        fixed = {name: ranges[name][0] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")}
        return {**fixed, "num_stages": stages}
    # Products of full float32 are unrolled into the threads: 64 x 64 keeps them few.
    most = 64 if product.on_plain_cores(device) else 128
    widest = 256 if is_at_least(device, 90) and most == 128 else most
    block_m = largest_up_to(clamp(next_power_of_2(product.M), 16, most), ranges, "BLOCK_M")
    block_n = largest_up_to(clamp(next_power_of_2(product.N), 16, widest), ranges, "BLOCK_N")
    block_k = block_k_of(product, ranges)
    if device.arch == "interpreter":
        # There a product of tiles takes a millisecond, whatever their size.
        block_k = largest_up_to(clamp(next_power_of_2(product.K), 16, 128), ranges, "BLOCK_K")
    rows = product.batch * cdiv(product.M, block_m)
    while block_n > 64 and 2 * rows * cdiv(product.N, block_n) <= device.sm_count:
        block_n //= 2
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_stages": stages}


def _least_warps(product: Product, device: Device, outputs: int) -> int:
    """Eight where a thread of four would hold too many addresses, bytes that mma.sync wants in another order, or
    128 outputs and what finishing them takes: with a bias, gelu and a residual a100 spills 536 B, of eight none.
    """
    turned = product.itemsize == 1 and product.layout != "nt" and not is_at_least(device, 90)
    full = product.finished and outputs >= 128 * 4 * device.warp_size
    return 8 if turned or full or any(product.scattered) else 4


def _structure(sizes: dict[str, Value], problem: Problem, device: Device, ranges: Ranges) -> str:
    """Descriptors where they serve and programs have a second tile; in 8 bits where K is not to be split."""
    product = read(problem)
    if "descriptor" not in ranges["STRUCTURE"] or device.arch == "interpreter" or product.on_plain_cores(device):
        return "tiled"
    tried: dict[str, Value] = {**sizes, "STRUCTURE": "descriptor", "EPILOGUE_SUBTILE": _pieces(product, ranges)}
    tiles = product.tiles(tried)
    if product.batch_invariant:  # whose tile is not to be made smaller until it fits
        least = Config({**tried, "num_stages": ranges["num_stages"][0]})
        if shared_bytes(least, problem, device) > device.shared_bytes_per_block:
            return "tiled"
    pays = tiles >= 2 * device.sm_count or (product.itemsize == 1 and 2 * tiles > device.sm_count)
    return "descriptor" if pays and structure_serves(Config(tried), problem, device) is None else "tiled"


def _pieces(product: Product, ranges: Ranges) -> int:
    """Half of a result of 32 bits at a time leaves room for a third stage, half of a finished one registers: h100
    spills 344 B a thread of a whole one with a bias, gelu and a residual, and none of a half.
    """
    return largest_up_to(2 if product.out_itemsize == 4 or product.finished else 1, ranges, "EPILOGUE_SUBTILE")


def _completed(chosen: dict[str, Value], product: Product, device: Device, ranges: Ranges) -> dict[str, Value]:
    """A config of these sizes: its parts of K, its order of tiles, its warps; all else off."""
    block_m, block_n, block_k = (int(chosen[name]) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    tiles, rows = product.tiles(chosen), cdiv(product.M, block_m)
    skinny = chosen["STRUCTURE"] == "skinny"
    outputs = block_n * (block_k if skinny else block_m)
    # Skinny programs are small: two of them share a multiprocessor.
    room = 1 if device.arch == "interpreter" else device.sm_count * (2 if skinny else 1)
    parts = min(room // max(1, tiles), cdiv(product.K, block_k) // LEAST_STEPS_A_PART)
    band = 4 if device.arch.startswith("gfx") else 8
    return {
        **{name: values[0] for name, values in ranges.items()},
        **({"EPILOGUE_SUBTILE": _pieces(product, ranges)} if "EPILOGUE_SUBTILE" in ranges else {}),
        **chosen,
        "SPLIT_K": largest_up_to(parts, ranges, "SPLIT_K"),
        "GROUP_M": min((value for value in ranges["GROUP_M"] if rows <= int(value) <= band), default=band),
        "num_warps": warps_for(outputs, ranges, _least_warps(product, device, outputs)),
    }


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    """What wins in shipped lists: wide and square tiles for many rows; 16 rows, parts of K and no tiles for few."""
    base, ranges = default(problem, device), params(problem, device)
    found: dict[Config, None] = {}
    for structure, block_m, block_n, block_k, warps, stages, more in _WINNERS:
        changes: dict[str, Value] = {
            "STRUCTURE": structure,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": 2 * block_k // read(problem).itemsize,
            "num_warps": largest_up_to(warps, ranges, "num_warps"),
            "num_stages": largest_up_to(stages, ranges, "num_stages"),
            **more,
        }
        wanted = {name: changes.get(name, value) for name, value in base.items()}
        found[Config(SPACE.settle(wanted, problem, device, ranges))] = None
    return [config for config in found if SPACE.why_not(config, problem, device) is None]


def steps(config: Config, problem: Problem) -> int:
    """Products of tiles that the interpreter takes one after another."""
    product = read(problem)
    return product.tiles(config) * cdiv(product.K, config.integer("BLOCK_K"))


_RULES = (
    structure_serves,
    pads_little(params),
    feeds_warps(params),
    split_pays,
    band_fits(params),
    warp_groups_fit,
    register_limit_binds,
    registers_hold,
    unrolls_little,
    scatters_little,
    fits_shared_memory(shared_bytes),
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    matters=MATTERS,
    unsupported=lacks_dtype,
    seeds=seeds,
)
