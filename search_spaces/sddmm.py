"""Which tiles ``sddmm`` may use, by architecture.

A tile is as tall as a block or a part of one, and as wide as some blocks of a row or a part of one: small blocks
share rows of a that way. Ranges of stages and warps are those of ``gemm``, whose main loop this is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import ITEMSIZE, Config, Device, Problem, Value
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
    "BLOCK_M": (16, 32, 64, 128, 256),
    "BLOCK_N": (16, 32, 64, 128, 256),
    "BLOCK_K": (16, 32, 64, 128),
    "SPLIT_K": (1, 2, 4, 8, 16),
    # Block rows whose blocks go in order of columns.
    "GROUP_ROWS": (1, 4, 16),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (1, 2, 3, 4, 5),
}

RANGES: Mapping[str, Ranges] = {
    "sm_80": _NVIDIA,
    "sm_100": {**_NVIDIA, "num_warps": (4, 8), "num_stages": (1, 2, 3, 4)},
    "gfx942": {**_NVIDIA, "num_stages": (1, 2), "waves_per_eu": (0, 2), "kpack": (1, 2)},
    # Tile order, warps and stages change nothing there, but the order is computed.
    "interpreter": {**_NVIDIA, "BLOCK_K": (16, 32, 64, 128, 256), "num_warps": (4,), "num_stages": (2,)},
}

#: Steps of BLOCK_K that a part of K keeps, and waves of programs from which splitting only adds traffic, as gemm.
LEAST_STEPS_A_PART = 4
MOST_WAVES_TO_SPLIT = 2
#: Multiply-adds of one step that full float32 may unroll into each thread, as gemm.
MAX_UNROLLED = 1024
#: Elements that a thread may load one by one in a step, as gemm.
MAX_SCATTERED = 64


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


def default(problem: Problem, device: Device) -> Config:
    """Whole blocks where they fit, small ones side by side, and parts of K until the device is full."""
    ranges, narrow = params(problem, device), _itemsize(problem) == 2
    most = 128 if narrow or not device.arch.startswith("sm_") else 64
    height, width = (min(problem.integer(name), most) for name in ("BLOCK_ROWS", "BLOCK_COLUMNS"))
    # Up to 64 columns, while no more than a quarter of a row's last tile is padding on average.
    while width < 64 and 4 * width <= _columns_a_row(problem):
        width *= 2
    depth = 256 if device.arch == "interpreter" else 64 if narrow else 32
    sizes = {
        "BLOCK_M": height,
        "BLOCK_N": width,
        "BLOCK_K": largest_up_to(min(depth, max(16, next_power_of_2(problem.integer("K")))), ranges, "BLOCK_K"),
        "num_stages": largest_up_to(4, ranges, "num_stages"),
    }
    while True:
        config = _completed(sizes, problem, device)
        if not any(rule(config, problem, device) for rule in _RULES):
            return config
        # Pipelining is given up first, then what a tile holds.
        name = next(name for name in ("num_stages", "BLOCK_K", "BLOCK_N", "BLOCK_M") if sizes[name] > _least(name))
        sizes[name] = largest_up_to(sizes[name] - 1, ranges, name)


def _least(name: str) -> int:
    return 1 if name == "num_stages" else 16


def _completed(sizes: Mapping[str, int], problem: Problem, device: Device) -> Config:
    ranges = params(problem, device)
    tiles = _tiles(sizes["BLOCK_M"], sizes["BLOCK_N"], problem)
    room = 1 if device.arch == "interpreter" else device.sm_count
    parts = min(room // max(1, tiles), cdiv(problem.integer("K"), sizes["BLOCK_K"]) // LEAST_STEPS_A_PART)
    chosen = {
        **{name: values[0] for name, values in ranges.items()},
        **sizes,
        "SPLIT_K": largest_up_to(parts, ranges, "SPLIT_K"),
        "num_warps": _warps(sizes, problem, device),
    }
    return Config({name: chosen[name] for name in ranges})


def _warps(sizes: Mapping[str, int], problem: Problem, device: Device) -> int:
    """As for any tile; in full float32, or where elements are loaded one by one, all that have something to do."""
    ranges, outputs = params(problem, device), sizes["BLOCK_M"] * sizes["BLOCK_N"]
    busy = largest_up_to(max(smallest(ranges, "num_warps"), outputs // 256), ranges, "num_warps")
    crowded = any(_scattered(problem)) or _on_plain_cores(problem, device)
    return busy if crowded else default_warps(outputs, ranges)


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    """Other orders of blocks, depths and widths, then parts of K."""
    base = default(problem, device)
    changes: Sequence[Mapping[str, Value]] = (
        {"GROUP_ROWS": 4},
        {"BLOCK_K": 32},
        {"BLOCK_K": 128, "num_stages": 3},
        {"BLOCK_N": max(16, base.integer("BLOCK_N") // 2)},
        {"BLOCK_N": min(256, base.integer("BLOCK_N") * 2)},
        {"num_warps": 8},
        {"SPLIT_K": 4},
    )
    return [Config({**base, **change}) for change in changes]


def _itemsize(problem: Problem) -> int:
    return ITEMSIZE[str(problem["dtype"])]


def _on_plain_cores(problem: Problem, device: Device) -> bool:
    return _itemsize(problem) == 4 and device.arch.startswith("sm_")


def _columns_a_row(problem: Problem) -> int:
    """Stored columns of the mean block row."""
    return problem.integer("N") * problem.integer("density") // 100


def _stored(problem: Problem) -> int:
    places = problem.integer("M") // problem.integer("BLOCK_ROWS")
    places *= problem.integer("N") // problem.integer("BLOCK_COLUMNS")
    return cdiv(places * problem.integer("density"), 100)


def _tiles(block_m: int, block_n: int, problem: Problem) -> int:
    """Programs of one part of K, about: the last of a row may have fewer blocks."""
    tall = problem.integer("BLOCK_ROWS") // block_m
    return cdiv(_stored(problem) * problem.integer("BLOCK_COLUMNS"), block_n) * tall


def outputs(config: Config, problem: Problem) -> int:
    return config.integer("BLOCK_M") * config.integer("BLOCK_N")


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Shared memory of the pipelined operands, or of the result on its way to another layout; as for gemm."""
    itemsize = _itemsize(problem)
    tile = (config.integer("BLOCK_M") + config.integer("BLOCK_N")) * config.integer("BLOCK_K")
    operands = pipeline_buffers(config, device) * tile * itemsize
    result = outputs(config, problem)
    if device.arch.startswith("gfx"):
        return max(operands, 2 * result + result // 4, min(4 * result, 16384))
    return max(operands, result * (4 if config["SPLIT_K"] != 1 else itemsize)) + barrier_bytes(device)


def tile_fits_blocks(config: Config, problem: Problem, device: Device) -> str | None:
    rows, columns = problem.integer("BLOCK_ROWS"), problem.integer("BLOCK_COLUMNS")
    if config.integer("BLOCK_M") > rows:
        return f"BLOCK_M={config['BLOCK_M']} is over the {rows} rows of a block"
    width = config.integer("BLOCK_N")
    most = max(columns, next_power_of_2(_columns_a_row(problem)))
    if width > most:
        return f"BLOCK_N={width} is mostly padding: the mean block row stores {_columns_a_row(problem)} columns"
    return None


def split_pays(config: Config, problem: Problem, device: Device) -> str | None:
    """Parts of K fill a device that the blocks alone leave idle, and each should be worth its start."""
    parts = config.integer("SPLIT_K")
    if parts == 1:
        return None
    steps_of_k = cdiv(problem.integer("K"), config.integer("BLOCK_K"))
    if parts > steps_of_k // LEAST_STEPS_A_PART:
        return f"SPLIT_K={parts} leaves under {LEAST_STEPS_A_PART} of the {steps_of_k} steps of BLOCK_K to a part"
    tiles = _tiles(config.integer("BLOCK_M"), config.integer("BLOCK_N"), problem)
    if tiles >= MOST_WAVES_TO_SPLIT * device.sm_count:
        return f"SPLIT_K={parts} gains nothing: {tiles} tiles fill {device.sm_count} SMs"
    return None


def unrolls_little(config: Config, problem: Problem, device: Device) -> str | None:
    """Float32 products run on NVIDIA's plain cores (ieee, not tf32), unrolled whole into every thread."""
    if not _on_plain_cores(problem, device):
        return None
    products = outputs(config, problem) * config.integer("BLOCK_K")
    per_thread = products // (device.warp_size * config.integer("num_warps"))
    if per_thread <= MAX_UNROLLED:
        return None
    return (
        f"unrolls {per_thread} float32 multiply-adds a thread, over {MAX_UNROLLED}; "
        "use more warps or a smaller tile"
    )


def _scattered(problem: Problem) -> tuple[bool, bool]:
    """Whether a and b are loaded element by element: rows in pieces, or that start at no multiple of 16."""
    layout = str(problem.get("layout", "nn"))
    a, b = layout[0], layout[1]
    off, uneven = not problem.get("aligned", True), problem.integer("K") % 16 != 0
    return off or a == "s" or (a == "n" and uneven), off or b == "s" or (b == "t" and uneven)


def scatters_little(config: Config, problem: Problem, device: Device) -> str | None:
    if not device.arch.startswith("sm_"):
        return None
    sides = zip(("BLOCK_M", "BLOCK_N"), _scattered(problem), strict=True)
    loads = sum(config.integer(name) for name, scattered in sides if scattered) * config.integer("BLOCK_K")
    loads //= device.warp_size * config.integer("num_warps")
    if loads <= MAX_SCATTERED:
        return None
    return f"loads {loads} elements one by one a thread, over {MAX_SCATTERED}; use more warps or a smaller tile"


def _in_order(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    """A single block row, or blocks side by side that fill it, have only one order."""
    return problem.integer("M") > problem.integer("BLOCK_ROWS") and problem.integer("N") > int(chosen["BLOCK_N"])


def steps(config: Config, problem: Problem) -> int:
    tiles = _tiles(config.integer("BLOCK_M"), config.integer("BLOCK_N"), problem)
    rows = problem.integer("M") // config.integer("BLOCK_M")
    # Rows with fewer blocks than a tile holds take a program all the same.
    programs = max(tiles, min(rows, _stored(problem)))
    return programs * max(config.integer("SPLIT_K"), cdiv(problem.integer("K"), config.integer("BLOCK_K")))


_RULES = (
    tile_fits_blocks,
    little_padding({"BLOCK_K": "K"}, params),
    split_pays,
    feeds_warps(outputs, params),
    fits_registers(outputs),
    unrolls_little,
    scatters_little,
    fits_shared_memory(shared_bytes),
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    matters={"GROUP_ROWS": _in_order},
    seeds=seeds,
)
