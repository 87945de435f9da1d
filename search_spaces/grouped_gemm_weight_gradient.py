"""Which tiles ``grouped_gemm_weight_gradient`` may use, by architecture: those of plain products, over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from autotune.arithmetic import cdiv, clamp, next_power_of_2
from autotune.data import ITEMSIZE, Config, Device, Problem, Value
from autotune.search_spaces._gemm_problem import Product
from autotune.search_spaces._gemm_resources import MAX_SCATTERED, MAX_UNROLLED, scattered_loads
from autotune.search_spaces._rules import (
    barrier_bytes,
    default_warps,
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

_NVIDIA: Ranges = {
    "BLOCK_K": (16, 32, 64, 128, 256),
    "BLOCK_N": (16, 32, 64, 128, 256),
    "BLOCK_T": (16, 32, 64, 128),
    "GROUP_K": (1, 4, 8),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3, 4, 5),
}

RANGES: Mapping[str, Ranges] = {
    "sm_80": _NVIDIA,
    "sm_90": {**_NVIDIA, "num_warps": (4, 8)},
    "sm_100": {**_NVIDIA, "num_warps": (4, 8), "num_stages": (2, 3, 4)},
    "gfx942": {**_NVIDIA, "num_warps": (4, 8), "num_stages": (1, 2), "waves_per_eu": (0, 2), "kpack": (1, 2)},
    # Tile order, warps and stages change nothing there, so they are no choice.
    "interpreter": {**_NVIDIA, "GROUP_K": (4,), "num_warps": (4,), "num_stages": (2,)},
}

#: BLOCK_K, BLOCK_N, BLOCK_T in 16 bits, num_warps, num_stages: what wins for plain products.
_WINNERS = (
    (128, 256, 64, 8, 3),
    (128, 128, 64, 4, 4),
    (128, 128, 64, 8, 3),
    (128, 128, 32, 4, 4),
    (64, 128, 32, 4, 4),
    (64, 64, 64, 4, 3),
    (32, 64, 32, 2, 3),
)


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


@lru_cache(maxsize=64)
def read(problem: Problem) -> Product:
    """As a plain product (K, T) @ (T, N), for the rules that plain products have."""
    dtype, layout = str(problem["dtype"]), str(problem.get("layout", "nn"))
    return Product(
        batch=1,
        M=problem.integer("K"),
        N=problem.integer("N"),
        K=problem.integer("T"),
        dtype=dtype,
        itemsize=ITEMSIZE[dtype],
        out_itemsize=ITEMSIZE[dtype],
        layout={"n": "t", "t": "n", "s": "s"}[layout[0]] + layout[1],
        aligned=bool(problem.get("aligned", True)),
        gated=False,
        finished=False,
        tf32=False,
        batch_invariant=False,
    )


@lru_cache(maxsize=256)
def default(problem: Problem, device: Device) -> Config:
    """128 x 128, in full float32 on NVIDIA 64 x 64, smaller until the device holds it."""
    ranges, product = params(problem, device), read(problem)
    most = 64 if product.on_plain_cores(device) else 128
    mean = cdiv(problem.integer("T"), max(1, problem.integer("G")))
    sizes = {
        "BLOCK_K": clamp(next_power_of_2(product.M), 16, most),
        "BLOCK_N": clamp(next_power_of_2(product.N), 16, most),
        "BLOCK_T": clamp(next_power_of_2(mean), 16, 128 // product.itemsize),
        "num_stages": largest_up_to(4, ranges, "num_stages"),
    }
    while True:
        chosen: dict[str, Value] = {name: values[0] for name, values in ranges.items()}
        chosen |= sizes
        chosen["GROUP_K"] = 4
        chosen["num_warps"] = _warps(sizes, product, ranges)
        config = Config(SPACE.settle(chosen, problem, device, ranges))
        if not any(rule(config, problem, device) for rule in _RULES):
            return config
        # What is given up first: pipelining, then what a tile holds.
        order = ("num_stages", "BLOCK_T", "BLOCK_N", "BLOCK_K")
        name = next(name for name in order if sizes[name] > smallest(ranges, name))
        sizes[name] = largest_up_to(sizes[name] - 1, ranges, name)


def _warps(sizes: Mapping[str, int], product: Product, ranges: Ranges) -> int:
    outputs = sizes["BLOCK_K"] * sizes["BLOCK_N"]
    if any(product.scattered):
        return largest_up_to(min(8, outputs // 256), ranges, "num_warps")
    return default_warps(outputs, ranges)


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    base, ranges = default(problem, device), params(problem, device)
    found: dict[Config, None] = {}
    for block_k, block_n, block_t, warps, stages in _WINNERS:
        wanted: dict[str, Value] = {
            **base,
            "BLOCK_K": block_k,
            "BLOCK_N": block_n,
            "BLOCK_T": 2 * block_t // read(problem).itemsize,
            "num_warps": largest_up_to(warps, ranges, "num_warps"),
            "num_stages": largest_up_to(stages, ranges, "num_stages"),
        }
        found[Config(SPACE.settle(wanted, problem, device, ranges))] = None
    return [config for config in found if SPACE.why_not(config, problem, device) is None]


def _outputs(config: Config, problem: Problem) -> int:
    return config.integer("BLOCK_K") * config.integer("BLOCK_N")


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Pipelined operands, or the result on its way to another layout. Read off Triton 3.9's figures."""
    itemsize, outputs = read(problem).itemsize, _outputs(config, problem)
    tile = (config.integer("BLOCK_K") + config.integer("BLOCK_N")) * config.integer("BLOCK_T")
    operands = pipeline_buffers(config, device) * tile * itemsize
    if device.arch.startswith("gfx"):
        return max(operands, 2 * outputs + outputs // 4, min(4 * outputs, 16384))
    return max(operands, outputs * itemsize) + barrier_bytes(device)


def covers_tokens(config: Config, problem: Problem, device: Device) -> str | None:
    """A step over twice the mean group mostly reads nothing, unless a group is hot."""
    mean = cdiv(problem.integer("T"), max(1, problem.integer("G")))
    most = max(16, next_power_of_2(4 * mean))
    if config.integer("BLOCK_T") <= most:
        return None
    return f"BLOCK_T={config['BLOCK_T']} is mostly padding for {mean} tokens a group; {most} is enough"


def unrolls_little(config: Config, problem: Problem, device: Device) -> str | None:
    """Float32 products run on NVIDIA's plain cores, unrolled whole into every thread."""
    if not read(problem).on_plain_cores(device):
        return None
    products = _outputs(config, problem) * config.integer("BLOCK_T")
    per_thread = products // (device.warp_size * config.integer("num_warps"))
    if per_thread <= MAX_UNROLLED:
        return None
    return f"unrolls {per_thread} float32 multiply-adds a thread, over {MAX_UNROLLED}; use a smaller tile"


def scatters_little(config: Config, problem: Problem, device: Device) -> str | None:
    named = {"STRUCTURE": "tiled", "BLOCK_M": config["BLOCK_K"], "BLOCK_N": config["BLOCK_N"]}
    inner = {"BLOCK_K": config["BLOCK_T"], "num_warps": config["num_warps"]}
    loads = scattered_loads({**named, **inner}, read(problem), device)
    if loads <= MAX_SCATTERED:
        return None
    return f"loads {loads} elements one by one a thread, over {MAX_SCATTERED}; use more warps or a smaller tile"


def _in_order(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    """One row or column of tiles has only one order."""
    return problem.integer("K") > int(chosen["BLOCK_K"]) and problem.integer("N") > int(chosen["BLOCK_N"])


def steps(config: Config, problem: Problem) -> int:
    """Products of tiles that the interpreter takes, and as much as four for each program."""
    tiles = cdiv(problem.integer("K"), config.integer("BLOCK_K")) * cdiv(
        problem.integer("N"), config.integer("BLOCK_N")
    )
    return tiles * (4 * problem.integer("G") + cdiv(problem.integer("T"), config.integer("BLOCK_T")))


_RULES = (
    covers_tokens,
    little_padding({"BLOCK_K": "K", "BLOCK_N": "N"}, params),
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
    matters={"GROUP_K": _in_order},
    seeds=seeds,
)
