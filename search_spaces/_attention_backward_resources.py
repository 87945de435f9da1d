"""What the launches of attention's gradients need of a device: shared memory, registers, unrolling."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces._attention_resources import block_d, block_dv, itemsize
from autotune.search_spaces._rules import pipeline_buffers

#: Fused multiply-adds of one product that float32 may unroll into each thread; there are four in one loop. With 512
#: six configs tried for h100 (Triton 3.9) spill 40 B a thread at most.
MAX_UNROLLED = 512

#: Registers of a multiprocessor, and the most a thread may have.
_REGISTERS = 65536
_MOST_A_THREAD = 255


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """The most that a launch needs; read off Triton 3.9's compiled code, and never under it."""
    m1, n1, m2, n2 = (config.integer(name) for name in ("BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2"))
    # Two vectors ride along with the queries that the first of the two loads step by step.
    return max(
        _launch_bytes(config, problem, device, n1, m1, passed_on=4, vectors=2),
        _launch_bytes(config, problem, device, m2, n2, passed_on=2, vectors=0),
    )


def _launch_bytes(
    config: Config, problem: Problem, device: Device, held: int, step: int, passed_on: int, vectors: int
) -> int:
    """A pair of tiles of ``held`` rows stays, pairs of ``step`` rows are pipelined, and ``passed_on`` tiles of
    held x step go from one product to the next, through registers where each warp owns 16 rows or more.

    AMD keeps what stays in registers, which it passes through memory before the loop; without pipelining one tile
    of memory serves all. sm_100's tensor cores
    take all operands from memory, and at the widest head dimension two copies of what is passed on.
    """
    size, width = itemsize(problem), block_d(problem) + block_dv(problem)
    widest = max(block_d(problem), block_dv(problem))
    weights = passed_on * held * step
    if device.arch.startswith("gfx"):
        stages = config.integer("num_stages")
        moving = (stages - 1) * step * width if stages > 1 else max(held, step) * widest
        return max(moving + weights, held * widest) * size
    buffers = pipeline_buffers(config, device)
    hopper = pipeline_buffers(Config(num_stages=2), device) == 2
    if device.arch == "sm_90" and size == 2 and held >= 64 and step >= 32:
        weights = 0
    elif hopper and device.arch != "sm_90":
        weights = weights * (2 if widest > 128 else 1) + step * widest
    return (held * width + buffers * step * width + weights) * size + 4 * vectors * buffers * step + 1024


def live_elements(config: Config, problem: Problem) -> int:
    """Sums and two tiles of scores are live together, in either launch."""
    m1, n1, m2, n2 = (config.integer(name) for name in ("BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2"))
    keys = n1 * (block_d(problem) + block_dv(problem)) + 2 * m1 * n1
    return max(keys, m2 * block_d(problem) + 2 * m2 * n2)


def unrolls_little(config: Config, problem: Problem, device: Device) -> str | None:
    """Float32 products run on NVIDIA's plain cores (ieee, not tf32), unrolled whole into every thread."""
    if itemsize(problem) == 2 or not device.arch.startswith("sm_"):
        return None
    tile = max(
        config.integer("BLOCK_M1") * config.integer("BLOCK_N1"),
        config.integer("BLOCK_M2") * config.integer("BLOCK_N2"),
    )
    products = tile * max(block_d(problem), block_dv(problem))
    per_thread = products // (device.warp_size * config.integer("num_warps"))
    if per_thread <= MAX_UNROLLED:
        return None
    return (
        f"unrolls {per_thread} float32 multiply-adds a thread, over {MAX_UNROLLED}; "
        "use more warps or a smaller tile"
    )


def limits_registers(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    """Whether a limit of 128 registers holds what is live, and lets more blocks share a multiprocessor."""
    return _useless_limit(128, Config(chosen), problem, device) is None


def register_limit_pays(config: Config, problem: Problem, device: Device) -> str | None:
    limit = int(config.get("maxnreg", 0))
    return None if limit == 0 else _useless_limit(limit, config, problem, device)


def _useless_limit(limit: int, config: Config, problem: Problem, device: Device) -> str | None:
    threads = device.warp_size * config.integer("num_warps")
    live = live_elements(config, problem) // threads
    if live >= limit:
        return f"maxnreg={limit} is too few for {live} live values a thread"
    blocks, without = (_REGISTERS // (threads * registers) for registers in (limit, _MOST_A_THREAD))
    if blocks * shared_bytes(config, problem, device) > device.shared_bytes_per_block:
        return f"maxnreg={limit} is for {blocks} blocks a multiprocessor, not {without}; their memory does not fit"
    return None
