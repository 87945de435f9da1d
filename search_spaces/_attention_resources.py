"""What attention's tiles need of a device, and where that forbids them: shared memory, registers, unrolling."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.arithmetic import next_power_of_2
from autotune.data import ITEMSIZE, Config, Device, Problem, Value
from autotune.search_spaces._rules import pipeline_buffers

#: Fused multiply-adds of one product that float32 may unroll into each thread. On h100, a100 and b200 (Triton 3.9)
#: all 13 configs tried with 2048 or more spill over 1 KiB a thread, the worst 15 KiB and 40 s to compile; with 1024
#: it is 0 to 2912 B, with 512 at most 384 B.
MAX_UNROLLED = 1024

#: Registers of a multiprocessor, and the most a thread may have.
_REGISTERS = 65536
_MOST_A_THREAD = 255


def itemsize(problem: Problem) -> int:
    return ITEMSIZE[str(problem["dtype"])]


def value_dim(problem: Problem) -> int:
    return problem.integer("DV", 0) or problem.integer("D")


def block_d(problem: Problem) -> int:
    return max(16, next_power_of_2(problem.integer("D")))


def block_dv(problem: Problem) -> int:
    return max(16, next_power_of_2(value_dim(problem)))


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Shared memory of the tiles and of what the softmax passes on; read off Triton 3.9's compiled code.

    NVIDIA: the query tile, the pipelined key and value tiles, and scratch for maxima and sums of rows. The
    weights stay in registers between the two products where each warp owns 16 rows or more of them; else, and
    in float32, they go through shared memory. Tiles of descriptors are aligned to 1 KiB. AMD: the query tile only
    passes through, its memory is used again; without pipelining so is that of the keys.
    """
    block_m, block_n, size = config.integer("BLOCK_M"), config.integer("BLOCK_N"), itemsize(problem)
    queries = block_m * block_d(problem)
    keys, values = block_n * block_d(problem), block_n * block_dv(problem)
    if device.arch.startswith("gfx"):
        stages = config.integer("num_stages")
        held = (stages - 1) * (keys + values) if stages > 1 else max(keys, values)
        # Weights go through memory in large tiles, where warps outnumber the 16 x 16 products of the tile, and in
        # float32, unless that of the keys is free again by then.
        passed_on = block_m >= 64 or block_m * block_n // 256 < config.integer("num_warps")
        passed_on |= size == 4 and stages > 1
        return max(queries, held + (block_m * block_n if passed_on else 0)) * size
    hopper = pipeline_buffers(Config(num_stages=2), device) == 2
    in_registers = hopper and size == 2 and block_m >= 64 and 16 * config.integer("num_warps") <= block_m
    weights = block_m * block_n if not in_registers or block_n == 16 else 0
    scratch = 16 * block_m + 64 + (1024 if config.get("DESCRIPTOR", False) else 0)
    return (queries + pipeline_buffers(config, device) * (keys + values) + weights) * size + scratch


def live_elements(config: Config, problem: Problem) -> int:
    """The output accumulator and the score tile are live together."""
    return config.integer("BLOCK_M") * (block_dv(problem) + config.integer("BLOCK_N"))


def unrolls_little(config: Config, problem: Problem, device: Device) -> str | None:
    """Float32 products run on NVIDIA's plain cores (ieee, not tf32), unrolled whole into every thread."""
    if itemsize(problem) == 2 or not device.arch.startswith("sm_"):
        return None
    width = max(block_d(problem), block_dv(problem))
    products = config.integer("BLOCK_M") * config.integer("BLOCK_N") * width
    per_thread = products // (device.warp_size * config.integer("num_warps"))
    if per_thread <= MAX_UNROLLED:
        return None
    return (
        f"unrolls {per_thread} float32 multiply-adds a thread, over {MAX_UNROLLED}; "
        "use more warps or a smaller tile"
    )


def limits_registers(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    """Whether some limit of registers would do anything."""
    return any(_useless_limit(limit, Config(chosen), problem, device) is None for limit in (128, 168))


def register_limit_pays(config: Config, problem: Problem, device: Device) -> str | None:
    limit = int(config.get("maxnreg", 0))
    return None if limit == 0 else _useless_limit(limit, config, problem, device)


def _useless_limit(limit: int, config: Config, problem: Problem, device: Device) -> str | None:
    threads = device.warp_size * config.integer("num_warps")
    live = live_elements(config, problem) // threads
    if not limit // 2 <= live < limit:
        return f"maxnreg={limit} has no use for {live} live values a thread: it must be at most twice and over that"
    blocks, without = (_REGISTERS // (threads * registers) for registers in (limit, _MOST_A_THREAD))
    if blocks == without:
        return f"maxnreg={limit} lets no more than {without} blocks share a multiprocessor, as it is without"
    if blocks * shared_bytes(config, problem, device) > device.shared_bytes_per_block:
        return f"maxnreg={limit} is for {blocks} blocks a multiprocessor, and their shared memory does not fit"
    return None
