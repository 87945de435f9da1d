"""What a config of ``gemm`` needs of a device: shared memory, registers, instructions."""

from __future__ import annotations

from autotune.arithmetic import next_power_of_2
from autotune.data import Config, Device, Problem
from autotune.search_spaces._gemm_problem import Product, is_at_least, read
from autotune.search_spaces._rules import REGISTERS_PER_THREAD, barrier_bytes, pipeline_buffers

#: Barriers of stages and warp groups: 24 to 220 B are seen.
_BARRIERS = 512
#: Sums of a row that meet there: 512 to 4096 B are seen.
_SKINNY_SCRATCH = 8192

#: Multiply-adds of one step that full float32 may unroll into each thread.
MAX_UNROLLED = 1024


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """No less than what compiled code asks for; ``tests/test_gemm_space.py`` holds it.

    Pipelined operands, and the result on its way to another layout. The two share memory, unless the loop over
    tiles goes on while a result is under way. Read off Triton 3.9's ``metadata.shared``.
    """
    product = read(problem)
    if config["STRUCTURE"] == "skinny":
        return _SKINNY_SCRATCH
    block_m, block_n, block_k = (config.integer(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    a_bytes, b_bytes = block_m * block_k * product.itemsize, block_n * block_k * product.itemsize
    operands = pipeline_buffers(config, device) * (a_bytes + b_bytes)
    if config["STRUCTURE"] == "descriptor":
        staged = block_m * block_n * product.out_itemsize // (2 if product.gated else 1)
        staged //= config.integer("EPILOGUE_SUBTILE")
        # What is under way lies apart from what is being made.
        overlapped = config["FLATTEN"] or config["WARP_SPECIALIZE"]
        turned = 2 * _turned_bytes(product, a_bytes, b_bytes) if is_at_least(device, 100) else 0
        return operands + turned + (2 if overlapped else 1) * staged + _BARRIERS
    # A gated tile takes its halves apart in 32 bits, and parts of K are stored in them.
    width = 4 if config["SPLIT_K"] != 1 else 2 if product.gated else product.out_itemsize
    result = block_m * block_n * width
    shared = operands + result if config.get("FLATTEN", False) else max(operands, result)
    return shared + barrier_bytes(device)


def _turned_bytes(product: Product, a_bytes: int, b_bytes: int) -> int:
    """Operands of 32 bits that tcgen05 takes with rows along K alone, where they are not."""
    if product.itemsize != 4:
        return 0
    return (a_bytes if product.layout[0] == "t" else 0) + (b_bytes if product.layout[1] == "n" else 0)


def registers_hold(config: Config, problem: Problem, device: Device) -> str | None:
    product = read(problem)
    if device.arch == "interpreter":
        return None
    threads = device.warp_size * config.integer("num_warps")
    if config["STRUCTURE"] == "skinny":
        values = next_power_of_2(product.M) * config.integer("BLOCK_N") * config.integer("BLOCK_K") // threads
    else:
        values = config.integer("BLOCK_M") * config.integer("BLOCK_N") // threads
    if values <= REGISTERS_PER_THREAD:
        return None
    return (
        f"keeps {values} values a thread, over {REGISTERS_PER_THREAD}, and a thread has {REGISTERS_PER_THREAD} "
        "registers; use more warps or a smaller tile"
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
