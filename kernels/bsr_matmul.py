"""``bsr_matmul``: dense x times the transpose of a block-sparse weight, skipping the zero blocks.

One program computes BLOCK_M rows of x against one block row of the weight. It walks over the blocks that row
stores, each in steps of BLOCK_K columns; blocks that are not stored cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
import triton
import triton.language as tl

from autotune.arithmetic import cdiv
from autotune.data import ITEMSIZE, Config, Problem
from autotune.kernel import Field, Kernel, Signature, Tolerance, Work
from autotune.kernels._bsr import OPERATOR, SERVES, BsrWeight, check, weight_key
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._tensors import aligned, dtype_name, matrix_layout, random, relaid

#: Stored blocks in percent of all blocks; a problem names the nearest, so that weights of one kind share it.
DENSITIES = (1, 2, 5, 10, 20, 35, 50, 75, 100)


@triton.jit
def _bsr_matmul(
    x,  # (M, K)
    crow,  # (N / BLOCK_ROWS + 1,)
    block_columns,  # (blocks,)
    values,  # (blocks, BLOCK_ROWS, BLOCK_COLUMNS), contiguous
    out,  # (M, N), contiguous
    M,
    N,
    stride_xm,
    stride_xk,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = N // BLOCK_ROWS
    first_m = tl.program_id(0) // (GROUP_M * tiles_n) * GROUP_M
    rows_in_band = min(tiles_m - first_m, GROUP_M)
    tile_m = first_m + tl.program_id(0) % (GROUP_M * tiles_n) % rows_in_band
    tile_n = tl.program_id(0) % (GROUP_M * tiles_n) // rows_in_band

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    block_rows = tl.arange(0, BLOCK_ROWS)
    inner = tl.arange(0, BLOCK_K)
    # Rows past the end wrap round; what they compute is never stored.
    x_tile = x + (rows % M).to(tl.int64)[:, None] * stride_xm + inner.to(tl.int64)[None, :] * stride_xk
    value_tile = values + block_rows[None, :] * BLOCK_COLUMNS + inner[:, None]

    accumulator = tl.zeros((BLOCK_M, BLOCK_ROWS), dtype=tl.float32)
    steps: tl.constexpr = BLOCK_COLUMNS // BLOCK_K
    first = tl.load(crow + tile_n).to(tl.int32)
    last = tl.load(crow + tile_n + 1).to(tl.int32)
    for step in range(first * steps, last * steps):
        block = step // steps
        offset = step % steps * BLOCK_K
        column = tl.load(block_columns + block).to(tl.int64) * BLOCK_COLUMNS + offset
        x_block = tl.load(x_tile + column * stride_xk)
        weights = tl.load(value_tile + block.to(tl.int64) * (BLOCK_ROWS * BLOCK_COLUMNS) + offset)
        accumulator = tl.dot(x_block, weights, accumulator, input_precision="ieee")

    columns = tile_n.to(tl.int64) * BLOCK_ROWS + block_rows
    out_tile = out + rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(out_tile, accumulator.to(out.dtype.element_ty), mask=(rows < M)[:, None])


def problem(x: torch.Tensor, w_bsr: torch.Tensor | BsrWeight) -> Problem:
    """:raises ValueError: if sizes, dtypes or devices differ, or the block size is not the kernel's."""
    weight = BsrWeight.of(w_bsr)
    check(x, weight)
    n, k = weight.shape
    rows = _rows(x)
    return KERNEL.make(
        M=rows.shape[0],
        N=n,
        K=k,
        BLOCK_ROWS=weight.block[0],
        BLOCK_COLUMNS=weight.block[1],
        density=density(weight),
        dtype=dtype_name(x=x, w_bsr=weight.values),
        layout=matrix_layout(rows),
        aligned=aligned(rows, weight.values),
    )


def density(weight: BsrWeight) -> int:
    """The bucket of :data:`DENSITIES` nearest, by ratio, to the share of blocks stored."""
    total = weight.shape[0] * weight.shape[1] // max(1, weight.block[0] * weight.block[1])
    share = 100 * weight.columns.numel() / max(1, total)
    return min(DENSITIES, key=lambda bucket: max(bucket, share) / max(1e-9, min(bucket, share)))


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def key(x: torch.Tensor, w_bsr: torch.Tensor | BsrWeight) -> Hashable:
    return x.shape, x.stride(), x.dtype, x.get_device(), x.data_ptr() & 15, weight_key(w_bsr)


def inputs(problem: Problem, seed: int, device: str) -> tuple[torch.Tensor, BsrWeight]:
    generator = torch.Generator().manual_seed(seed)
    M, N, K = (problem.integer(name) for name in "MNK")
    block_rows, block_columns = problem.integer("BLOCK_ROWS"), problem.integer("BLOCK_COLUMNS")
    down, across = N // block_rows, K // block_columns
    stored = round(down * across * problem.integer("density") / 100)
    chosen = torch.randperm(down * across, generator=generator)[:stored].sort().values
    pattern = torch.zeros(down, across, dtype=torch.bool)
    pattern.view(-1)[chosen] = True
    crow = torch.cat([torch.zeros(1, dtype=torch.long), pattern.sum(1).cumsum(0)])
    dtype, off = str(problem["dtype"]), not problem.get("aligned", True)
    x = random(M, K, dtype=dtype, device=device, generator=generator)
    values = random(stored, block_rows, block_columns, dtype=dtype, device=device, generator=generator)
    weight = BsrWeight(crow.to(device), (chosen % max(1, across)).to(device), values, (N, K))
    return relaid(x, str(problem.get("layout", "n")), off), weight


def run(config: Config, x: torch.Tensor, w_bsr: torch.Tensor | BsrWeight) -> torch.Tensor:
    """x @ w_bsr.T for x (..., K), accumulated in float32; contiguous, in the dtype of ``x``."""
    weight = BsrWeight.of(w_bsr)
    check(x, weight)
    if must_widen(_bsr_matmul, x):
        return run(config, x.float(), weight._replace(values=weight.values.float())).to(x.dtype)
    rows, values = _rows(x), weight.values.contiguous()
    M, N = rows.shape[0], weight.shape[0]
    out = torch.empty(M, N, dtype=x.dtype, device=x.device)
    if out.numel():
        block_rows, block_columns = weight.block
        launch(
            _bsr_matmul,
            _programs(M, N, block_rows, config),
            *(rows, weight.crow, weight.columns, values, out, M, N, *rows.stride()),
            config=config,
            BLOCK_ROWS=block_rows,
            BLOCK_COLUMNS=block_columns,
        )
    return out.view(*x.shape[:-1], N)


def _programs(M: int, N: int, block_rows: int, config: Config) -> int:
    return cdiv(M, config.integer("BLOCK_M")) * (N // block_rows)


def reference(x: torch.Tensor, w_bsr: torch.Tensor | BsrWeight) -> torch.Tensor:
    weight = BsrWeight.of(w_bsr)
    check(x, weight)
    return torch.matmul(x, weight.dense().mT).contiguous()


def work(problem: Problem) -> Work:
    M, N, K = (problem.integer(name) for name in "MNK")
    share = problem.integer("density") / 100
    moved = M * K + round(N * K * share) + M * N
    return Work(flops=round(2 * M * N * K * share), bytes=moved * ITEMSIZE[str(problem["dtype"])])


def compile_signature(problem: Problem, config: Config) -> Signature:
    M, N, K = (problem.integer(name) for name in "MNK")
    stride_xm, stride_xk = {"n": (K, 1), "t": (1, M), "s": (2 * K, 2)}[str(problem.get("layout", "n"))]
    dtype = TRITON_NAMES[str(problem["dtype"])]
    return signature(
        _bsr_matmul,
        _programs(M, N, problem.integer("BLOCK_ROWS"), config),
        pointers={**dict.fromkeys(("x", "values", "out"), dtype), "crow": "i64", "block_columns": "i64"},
        misaligned=() if problem.get("aligned", True) else ("x",),
        integers={"M": M, "N": N, "stride_xm": stride_xm, "stride_xk": stride_xk},
        constexprs={name: problem.integer(name) for name in ("BLOCK_ROWS", "BLOCK_COLUMNS")},
        config=config,
    )


_BLOCKS = tuple(2**power for power in range(4, 9))


def _whole_blocks(problem: Problem) -> str | None:
    for size, block in (("N", "BLOCK_ROWS"), ("K", "BLOCK_COLUMNS")):
        if problem.integer(size) % problem.integer(block):
            return f"{size}={problem[size]} must be a multiple of {block}={problem[block]}"
    return None


KERNEL = Kernel(
    fields=(
        Field("M", "size"),
        Field("N", "size"),
        Field("K", "size"),
        # Traits, not sizes: a config tuned for blocks of 32 says nothing about blocks of 128.
        Field("BLOCK_ROWS", "choice", choices=_BLOCKS),
        Field("BLOCK_COLUMNS", "choice", choices=_BLOCKS),
        Field("density", "choice", choices=DENSITIES),
        Field("dtype", "dtype"),
        Field("layout", "choice", "n", choices=("n", "t", "s")),
        Field("aligned", "flag", default=True),
    ),
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    work=work,
    problems=(
        "M=64,N=128,K=256,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=50,dtype=float16",
        "M=32,N=128,K=128,BLOCK_ROWS=64,BLOCK_COLUMNS=64,density=20,dtype=bfloat16",
        "M=67,N=96,K=160,BLOCK_ROWS=16,BLOCK_COLUMNS=32,density=35,dtype=float32",
        "M=33,N=64,K=128,BLOCK_ROWS=32,BLOCK_COLUMNS=64,density=100,dtype=float16,layout=t",
    ),
    # As gemm, of which this is the sum over fewer terms.
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=4),
    },
    signature=compile_signature,
    rule=_whole_blocks,
    operator=OPERATOR,
    serves=SERVES,
)
