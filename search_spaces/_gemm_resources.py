"""What a config of ``gemm`` needs of a device: shared memory, registers, instructions."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.arithmetic import next_power_of_2
from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces._gemm_problem import Product, is_at_least, read
from autotune.search_spaces._rules import REGISTERS_PER_THREAD, barrier_bytes, pipeline_buffers

#: Barriers of stages and warp groups: 24 to 220 B are seen.
_BARRIERS = 512
#: Of the last sums over warps.
_SKINNY_SCRATCH = 4096

#: Products that a thread of a skinny tile may sum up in a step: on h100 512 spilled 824 B, 1024 11 KiB.
MAX_TERMS = 256
#: Elements that a thread may load one by one in a step, two registers of address each. For 128 x 64 x 64 on 4
#: warps, 96 of them, a100 spills 3240 B and h100 912; for 64 x 64 x 64, 64 of them, it is 144 and 128.
MAX_SCATTERED = 64
#: Multiply-adds of one step that full float32 may unroll into each thread.
MAX_UNROLLED = 1024


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """No less than what compiled code asks for; ``tests/test_gemm_space.py`` holds it.

    Pipelined operands, and the result on its way to another layout. The two share memory, unless the loop over
    tiles goes on while a result is under way. Read off Triton 3.9's ``metadata.shared``.
    """
    product = read(problem)
    if config["STRUCTURE"] == "skinny":
        return _skinny_bytes(config, product, device)
    block_m, block_n, block_k = (config.integer(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    a_bytes, b_bytes = block_m * block_k * product.itemsize, block_n * block_k * product.itemsize
    operands = pipeline_buffers(config, device) * (a_bytes + b_bytes)
    if config["STRUCTURE"] == "descriptor":
        staged = block_m * block_n * product.out_itemsize // (2 if product.gated else 1)
        staged //= config.integer("EPILOGUE_SUBTILE")
        # What is under way lies apart from what is being made.
        overlapped = config.get("FLATTEN", False) or config.get("WARP_SPECIALIZE", False)
        turned = 2 * _turned_bytes(product, a_bytes, b_bytes) if is_at_least(device, 100) else 0
        return operands + turned + (2 if overlapped else 1) * staged + _BARRIERS
    outputs = block_m * block_n
    if device.arch.startswith("gfx"):
        # The result passes through in rows that are padded, in rounds unless it is small; 8-bit b through a copy.
        copied = b_bytes if product.itemsize == 1 else 0
        return max(operands + copied, 2 * outputs + outputs // 4, min(4 * outputs, 16384))
    # A gated tile takes its halves apart in 32 bits, and parts of K are stored in them.
    result = outputs * (4 if config["SPLIT_K"] != 1 else 2 if product.gated else product.out_itemsize)
    shared = operands + result if config.get("FLATTEN", False) else max(operands, result)
    return shared + barrier_bytes(device)


def _skinny_bytes(config: Config, product: Product, device: Device) -> int:
    """One buffer less than stages on NVIDIA, two less on AMD, or the sums that meet there after the loop."""
    rows, block_n, block_k = next_power_of_2(product.M), config.integer("BLOCK_N"), config.integer("BLOCK_K")
    ahead = config.integer("num_stages") - (2 if device.arch.startswith("gfx") else 1)
    operands = max(0, ahead) * (rows + block_n) * block_k * product.itemsize
    terms = rows * block_n * block_k
    # AMD's terms change threads in rounds of 32 KiB at most before they are summed up.
    turned = min(terms, 32768) if device.arch.startswith("gfx") else 0
    return max(operands, turned, terms * product.itemsize // 4) + _SKINNY_SCRATCH


def _turned_bytes(product: Product, a_bytes: int, b_bytes: int) -> int:
    """Operands of 32 bits that tcgen05 takes with rows along K alone, where they are not."""
    if product.itemsize != 4:
        return 0
    return (a_bytes if product.layout[0] == "t" else 0) + (b_bytes if product.layout[1] == "n" else 0)


def registers_hold(config: Config, problem: Problem, device: Device) -> str | None:
    if device.arch == "interpreter":
        return None
    block_m, block_n, block_k = (config.integer(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    threads = device.warp_size * config.integer("num_warps")
    if config["STRUCTURE"] == "skinny":
        values, limit = next_power_of_2(read(problem).M) * block_n * block_k // threads, MAX_TERMS
    else:
        values, limit = block_m * block_n // threads, REGISTERS_PER_THREAD
    if values <= limit:
        return None
    return (
        f"keeps {values} values a thread, over the {limit} that fit its registers; use more warps or a smaller tile"
    )


def unrolls_little(config: Config, problem: Problem, device: Device) -> str | None:
    """Float32 products run on NVIDIA's plain cores (ieee, not tf32), unrolled whole into every thread."""
    product = read(problem)
    if config["STRUCTURE"] == "skinny" or not product.on_plain_cores(device):
        return None
    products = config.integer("BLOCK_M") * config.integer("BLOCK_N") * config.integer("BLOCK_K")
    per_thread = products // (device.warp_size * config.integer("num_warps"))
    if per_thread <= MAX_UNROLLED:
        return None
    return (
        f"unrolls {per_thread} float32 multiply-adds a thread, over {MAX_UNROLLED}; "
        "use more warps or a smaller tile"
    )


def scattered_loads(config: Mapping[str, Value], product: Product, device: Device) -> int:
    """Elements that a thread loads one by one in a step; 0 where the tile is fixed, or AMD has the registers."""
    if config["STRUCTURE"] == "descriptor" or product.batch_invariant or not device.arch.startswith("sm_"):
        return 0
    a_scattered, b_scattered = product.scattered
    rows = int(config["BLOCK_M"]) if a_scattered and config["STRUCTURE"] != "skinny" else 0
    columns = int(config["BLOCK_N"]) if b_scattered else 0
    return (rows + columns) * int(config["BLOCK_K"]) // (device.warp_size * int(config["num_warps"]))


def scatters_little(config: Config, problem: Problem, device: Device) -> str | None:
    loads = scattered_loads(config, read(problem), device)
    if loads <= MAX_SCATTERED:
        return None
    return (
        f"loads {loads} elements one by one a thread, over {MAX_SCATTERED}, since rows are no multiples of 16 "
        "elements; use more warps or a smaller tile"
    )
