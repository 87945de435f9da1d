"""What a problem of ``bsr_matmul`` is to a space, and what a config needs of a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from autotune.arithmetic import cdiv
from autotune.data import ITEMSIZE, Config, Device, Problem
from autotune.search_spaces._rules import barrier_bytes, fits_registers, pipeline_buffers

#: Fused multiply-adds of one product that float32 may unroll into each thread, as for ``attention``.
MAX_UNROLLED = 1024
#: Of the launch that adds up chunks, 2048 results on their way out.
_SUM_BYTES = 8192


@dataclass(frozen=True)
class Sizes:
    M: int
    #: M of all products of the batch.
    rows_of_x: int
    #: Block rows of the result, and blocks stored in the mean and the longest of them, about.
    rows: int
    blocks: int
    mean: int
    longest: int
    imbalance: int
    #: Columns of the result that a block has to do with, and columns of x.
    outputs: int
    inner: int
    itemsize: int


@lru_cache(maxsize=1024)
def sizes(problem: Problem) -> Sizes:
    block = problem.integer("BLOCK_ROWS"), problem.integer("BLOCK_COLUMNS")
    places = problem.integer("N") // block[0], problem.integer("K") // block[1]
    (outputs, inner), (rows, across) = (block[::-1], places[::-1]) if problem.get("transposed") else (block, places)
    blocks = cdiv(rows * across * problem.integer("density"), 100)
    mean, imbalance = cdiv(blocks, max(1, rows)), problem.integer("imbalance", 1)
    M = problem.integer("M")
    return Sizes(
        M=M,
        rows_of_x=M * problem.integer("B", 1),
        rows=rows,
        blocks=blocks,
        mean=mean,
        longest=min(across, mean * imbalance),
        imbalance=imbalance,
        outputs=outputs,
        inner=inner,
        itemsize=ITEMSIZE[str(problem["dtype"])],
    )


def outputs(config: Config, problem: Problem) -> int:
    return config.integer("BLOCK_M") * config.integer("BLOCK_N")


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """Shared memory of the pipelined tiles of x and of the weight, or of the result on its way out.

    On sm_90 one buffer less where the products are not those of a whole warp group. Read off Triton 3.9's
    ``metadata.shared``.
    """
    known = sizes(problem)
    tile = (config.integer("BLOCK_M") + config.integer("BLOCK_N")) * config.integer("BLOCK_K")
    grouped = known.itemsize == 2 and config.integer("BLOCK_M") >= 64 and config.integer("num_warps") >= 4
    buffers = pipeline_buffers(config, device) if grouped else max(1, config.integer("num_stages") - 1)
    # Chunks are stored in 32 bits.
    split = config["STRUCTURE"] == "split"
    result = max(outputs(config, problem) * (4 if split else known.itemsize), _SUM_BYTES if split else 0)
    return max(buffers * tile * known.itemsize, result) + barrier_bytes(device)


keeps_few = fits_registers(outputs)


def unrolls_little(config: Config, problem: Problem, device: Device) -> str | None:
    """Float32 products run on NVIDIA's plain cores, unrolled whole into every thread."""
    if sizes(problem).itemsize == 2 or not device.arch.startswith("sm_"):
        return None
    products = outputs(config, problem) * config.integer("BLOCK_K")
    per_thread = products // (device.warp_size * config.integer("num_warps"))
    if per_thread <= MAX_UNROLLED:
        return None
    return f"unrolls {per_thread} float32 multiply-adds a thread, over {MAX_UNROLLED}; use a smaller tile"
