"""What a config of ``lora`` needs of a device: warps, registers, shared memory."""

from __future__ import annotations

from autotune.arithmetic import next_power_of_2
from autotune.data import ITEMSIZE, Config, Device, Problem
from autotune.search_spaces._rules import REGISTERS_PER_THREAD, barrier_bytes, pipeline_buffers

#: Elements of weights that a thread of a row takes in a step: more of them spill.
MAX_TERMS = 128
#: Multiply-adds of one step that full float32 may unroll into each thread, as gemm.
MAX_UNROLLED = 1024
#: Elements that a thread may load one by one in a step, as gemm.
MAX_SCATTERED = 64


def by_rows(config: Config) -> bool:
    """Whether a program has one token, and no tensor cores."""
    return config["STRUCTURE"] in ("gathered", "fused")


def ranks_of(problem: Problem) -> int:
    """The power of two that the rank fits in."""
    return next_power_of_2(problem.integer("R"))


def itemsize(problem: Problem) -> int:
    return ITEMSIZE[str(problem["dtype"])]


def _tiles(config: Config, problem: Problem) -> tuple[int, int]:
    """Elements of the weights that a step of each launch takes."""
    ranks = ranks_of(problem) if config["STRUCTURE"] == "fused" else config.integer("BLOCK_R")
    return ranks * config.integer("BLOCK_K"), ranks * config.integer("BLOCK_N")


def _outputs(config: Config) -> tuple[int, int]:
    """Sums that a tile of each launch holds."""
    rows = config.integer("BLOCK_M")
    return rows * config.integer("BLOCK_R"), rows * config.integer("BLOCK_N")


def feeds_warps(config: Config, problem: Problem, device: Device) -> str | None:
    """A thread has at least 4 elements of the larger tile, or 8 outputs."""
    warps = config.integer("num_warps")
    if warps == 1 or device.arch == "interpreter":
        return None
    count = max(_tiles(config, problem)) if by_rows(config) else max(_outputs(config))
    most = max(1, count // (device.warp_size * (4 if by_rows(config) else 8)))
    return None if warps <= most else f"{warps} warps share {count} elements; {most} are enough"


def registers_hold(config: Config, problem: Problem, device: Device) -> str | None:
    if device.arch == "interpreter":
        return None
    threads = device.warp_size * config.integer("num_warps")
    if by_rows(config):
        values, limit = max(_tiles(config, problem)) // threads, MAX_TERMS
    else:
        # Sums and the base they are added to, a part of h with its addresses, and the weights of a step.
        sums, columns = _outputs(config)
        weights = max(_tiles(config, problem)) * itemsize(problem) // 4
        values, limit = (max(sums, 2 * columns) + 3 * sums + weights) // threads, REGISTERS_PER_THREAD
    if values <= limit:
        return None
    return (
        f"keeps {values} values a thread, over the {limit} that fit its registers; use more warps or a smaller tile"
    )


def unrolls_little(config: Config, problem: Problem, device: Device) -> str | None:
    """Float32 products run on NVIDIA's plain cores (ieee, not tf32), unrolled whole into every thread."""
    if by_rows(config) or itemsize(problem) == 2 or not device.arch.startswith("sm_"):
        return None
    rows, widest = config.integer("BLOCK_M"), max(config.integer("BLOCK_K"), config.integer("BLOCK_N"))
    products = rows * config.integer("BLOCK_R") * widest
    per_thread = products // (device.warp_size * config.integer("num_warps"))
    if per_thread <= MAX_UNROLLED:
        return None
    return (
        f"unrolls {per_thread} float32 multiply-adds a thread, over {MAX_UNROLLED}; "
        "use more warps or a smaller tile"
    )


def scatters_little(config: Config, problem: Problem, device: Device) -> str | None:
    """Rows of x or weights in pieces, or that start at no multiple of 16 bytes, are loaded element by element."""
    if by_rows(config) or not device.arch.startswith("sm_"):
        return None
    layout, off = str(problem.get("layout", "nn")), not problem.get("aligned", True)
    width, outputs, rank = (problem.integer(name) for name in "KNR")
    rows, ranks = config.integer("BLOCK_M"), config.integer("BLOCK_R")
    inner_a, inner_b = {"n": width, "t": rank}.get(layout[0], 1), {"n": rank, "t": outputs}.get(layout[1], 1)
    lanes = 16 // itemsize(problem)
    shrink = (rows if off or width % 16 else 0) + (ranks if off or inner_a % lanes else 0)
    expand = ranks if off or inner_b % lanes else 0
    loads = max(shrink * config.integer("BLOCK_K"), expand * config.integer("BLOCK_N"))
    loads //= device.warp_size * config.integer("num_warps")
    if loads <= MAX_SCATTERED:
        return None
    return f"loads {loads} elements one by one a thread, over {MAX_SCATTERED}; use more warps or a smaller tile"


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Shared memory of the launch that needs more; read off Triton 3.9's compiled code."""
    needed = _row_bytes if by_rows(config) else _tile_bytes
    return needed(config, problem, device) + barrier_bytes(device)


def _row_bytes(config: Config, problem: Problem, device: Device) -> int:
    """One buffer less than stages on NVIDIA, two less on AMD, or the sums of all warps that meet after the loop."""
    size, (shrink, expand) = itemsize(problem), _tiles(config, problem)
    buffers = max(0, config.integer("num_stages") - (2 if device.arch.startswith("gfx") else 1))
    ranks, columns = shrink // config.integer("BLOCK_K"), config.integer("BLOCK_N")
    shrinking = (shrink + config.integer("BLOCK_K")) * size
    expanding = (expand + columns) * size + 4 * config.integer("SPLIT_K") * ranks
    meeting = 4 * max(config.integer("BLOCK_K"), max(ranks, columns) * config.integer("num_warps"))
    return max(buffers * max(shrinking, expanding), meeting)


def _tile_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Pipelined operands, or results on their way to another layout. Parts of h come in 32 bits."""
    size, (shrink, expand) = itemsize(problem), _tiles(config, problem)
    rows, ranks = config.integer("BLOCK_M"), config.integer("BLOCK_R")
    buffers = pipeline_buffers(config, device)
    shrinking = buffers * (rows * config.integer("BLOCK_K") + shrink) * size
    # A loop that is over after one step is none.
    once = config["SPLIT_K"] != 1 or ranks >= problem.integer("R")
    expanding = (1 if once else buffers) * (4 * rows * ranks + expand * size) + rows * ranks * size
    results = max(_outputs(config))
    if device.arch.startswith("gfx"):
        turned = max(2 * results + results // 4, min(4 * results, 16384))
    else:
        turned = max(results * size, 4 * rows * ranks)
    return max(shrinking, expanding, turned) + 1024
