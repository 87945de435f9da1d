"""``matmul``: tiled matrix product with grouped tile order, batched, any strides.

One program computes one BLOCK_M x BLOCK_N tile of one product of the batch. Tiles are visited in bands of
GROUP_M tile rows, so that programs running together share operands in the L2 cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable

import torch
import triton
import triton.language as tl

from autotune.arithmetic import cdiv
from autotune.data import ITEMSIZE, Config, Problem
from autotune.kernel import Field, Kernel, Signature, Tolerance, Work
from autotune.kernels._gemm_operator import OPERATOR, SERVES, check
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._tensors import aligned, dtype_name, matrix_layout, random, relaid


@triton.jit
def _gemm(
    a,  # (batch, M, K)
    b,  # (batch, K, N)
    c,  # (batch, M, N), contiguous
    M,
    N,
    K,
    stride_ab,
    stride_am,
    stride_ak,
    stride_bb,
    stride_bk,
    stride_bn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    batch = tl.program_id(0) // (tiles_m * tiles_n)
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    first_m = tile // (GROUP_M * tiles_n) * GROUP_M
    rows_in_band = min(tiles_m - first_m, GROUP_M)
    tile_m = first_m + tile % (GROUP_M * tiles_n) % rows_in_band
    tile_n = tile % (GROUP_M * tiles_n) // rows_in_band

    # 64-bit before any product: a matrix of 2**31 elements is an ordinary embedding table.
    batch = batch.to(tl.int64)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K).to(tl.int64)
    # Rows past the end wrap round to valid ones instead of being masked, so that the loop's loads stay
    # plain; what they compute is never stored. (A 64-bit remainder would be a call on the device.)
    a_rows = (rows % M).to(tl.int64)
    b_columns = (columns % N).to(tl.int64)
    a_tile = a + batch * stride_ab + a_rows[:, None] * stride_am + inner[None, :] * stride_ak
    b_tile = b + batch * stride_bb + inner[:, None] * stride_bk + b_columns[None, :] * stride_bn
    block_k = tl.full((), BLOCK_K, dtype=tl.int64)
    step_a = block_k * stride_ak
    step_b = block_k * stride_bk

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(0, tl.cdiv(K, BLOCK_K)):
        if EVEN_K:
            a_block = tl.load(a_tile)
            b_block = tl.load(b_tile)
        else:
            inside = inner < K - step * BLOCK_K
            a_block = tl.load(a_tile, mask=inside[None, :], other=0.0)
            b_block = tl.load(b_tile, mask=inside[:, None], other=0.0)
        accumulator = tl.dot(a_block, b_block, accumulator, input_precision="ieee")
        a_tile += step_a
        b_tile += step_b

    c_tile = c + batch * M * N + rows.to(tl.int64)[:, None] * N + columns[None, :]
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(c_tile, accumulator.to(c.dtype.element_ty), mask=mask)


def _batched(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., M, K) and (..., K, N) as views (batch, M, K) and (batch, K, N), broadcast as torch.matmul does.

    A shared right-hand side folds the batch into M: one big product reads it once.
    """
    if a.dim() == b.dim() == 2:
        return a.unsqueeze(0), b.unsqueeze(0)
    if b.dim() == 2 and _foldable(a):
        return a.reshape(1, math.prod(a.shape[:-1]), a.shape[-1]), b.unsqueeze(0)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    count = math.prod(batch)
    wide_a = a.expand(*batch, *a.shape[-2:]).reshape(count, *a.shape[-2:])
    wide_b = b.expand(*batch, *b.shape[-2:]).reshape(count, *b.shape[-2:])
    return wide_a, wide_b


def _foldable(a: torch.Tensor) -> bool:
    """Whether all but the last dimension are evenly spaced rows."""
    dims = [(size, stride) for size, stride in zip(a.shape[:-1], a.stride()[:-1], strict=True) if size != 1]
    return all(outer[1] == inner[0] * inner[1] for outer, inner in itertools.pairwise(dims))


def problem(a: torch.Tensor, b: torch.Tensor) -> Problem:
    """:raises ValueError: if the shapes don't multiply, or dtypes or devices differ."""
    check(a, b)
    dtype = dtype_name(a=a, b=b)
    wide_a, wide_b = _batched(a, b)
    batch, M, K = wide_a.shape
    layout = matrix_layout(wide_a) + matrix_layout(wide_b)
    return KERNEL.make(
        M=M, N=wide_b.shape[2], K=K, dtype=dtype, B=batch, layout=layout, aligned=aligned(wide_a, wide_b)
    )


def key(a: torch.Tensor, b: torch.Tensor) -> Hashable:
    return (
        a.shape,
        b.shape,
        a.stride(),
        b.stride(),
        a.dtype,
        a.dtype is b.dtype,
        a.get_device(),
        (a.data_ptr() | b.data_ptr()) & 15,
    )


def inputs(problem: Problem, seed: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch, M, N, K = problem.integer("B", 1), *(problem.integer(name) for name in "MNK")
    layout, off = str(problem.get("layout", "nn")), not problem.get("aligned", True)
    dtype = str(problem["dtype"])
    a = random(batch, M, K, dtype=dtype, device=device, generator=generator)
    b = random(batch, K, N, dtype=dtype, device=device, generator=generator)
    a, b = relaid(a, layout[0], off), relaid(b, layout[1], off)
    return (a, b) if batch > 1 else (a.squeeze(0), b.squeeze(0))


def run(config: Config, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b for (..., M, K) and (..., K, N), accumulated in float32; contiguous, in the dtype of ``a``."""
    check(a, b)
    if must_widen(_gemm, a):
        return run(config, a.float(), b.float()).to(a.dtype)
    wide_a, wide_b = _batched(a, b)
    (batch, M, K), N = wide_a.shape, wide_b.shape[2]
    c = torch.empty(batch, M, N, dtype=a.dtype, device=a.device)
    if c.numel():
        even = K % config.integer("BLOCK_K") == 0
        strides = (*wide_a.stride(), *wide_b.stride())
        launch(
            _gemm, _programs(batch, M, N, config), wide_a, wide_b, c, M, N, K, *strides, config=config, EVEN_K=even
        )
    if a.dim() == b.dim() == 2:
        return c[0]
    return c.view(*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], N)


def _programs(batch: int, M: int, N: int, config: Config) -> int:
    return batch * cdiv(M, config.integer("BLOCK_M")) * cdiv(N, config.integer("BLOCK_N"))


def reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    check(a, b)
    return torch.matmul(a, b).contiguous()


def work(problem: Problem) -> Work:
    batch, M, N, K = problem.integer("B", 1), *(problem.integer(name) for name in "MNK")
    itemsize = ITEMSIZE[str(problem["dtype"])]
    return Work(flops=2 * batch * M * N * K, bytes=batch * (M * K + K * N + M * N) * itemsize)


def compile_signature(problem: Problem, config: Config) -> Signature:
    batch, M, N, K = problem.integer("B", 1), *(problem.integer(name) for name in "MNK")
    layout = str(problem.get("layout", "nn"))
    stride_ab, stride_am, stride_ak = _strides(batch, M, K, layout[0])
    stride_bb, stride_bk, stride_bn = _strides(batch, K, N, layout[1])
    return signature(
        _gemm,
        _programs(batch, M, N, config),
        pointers=dict.fromkeys("abc", TRITON_NAMES[str(problem["dtype"])]),
        misaligned=() if problem.get("aligned", True) else ("a", "b"),
        integers={
            **{"M": M, "N": N, "K": K, "stride_ab": stride_ab, "stride_am": stride_am, "stride_ak": stride_ak},
            **{"stride_bb": stride_bb, "stride_bk": stride_bk, "stride_bn": stride_bn},
        },
        constexprs={"EVEN_K": K % config.integer("BLOCK_K") == 0},
        config=config,
    )


def _strides(batch: int, rows: int, columns: int, layout: str) -> tuple[int, int, int]:
    """Of the batch, the rows and the columns of what :func:`inputs` makes."""
    row, column = {"n": (columns, 1), "t": (1, rows), "s": (2 * columns, 2)}[layout]
    # To torch a batch of one is a new first dimension, whose stride is the next one's size times its stride.
    return rows * row if batch == 1 else rows * columns * (2 if layout == "s" else 1), row, column


KERNEL = Kernel(
    fields=(
        Field("M", "size"),
        Field("N", "size"),
        Field("K", "size"),
        Field("dtype", "dtype"),
        Field("B", "size", default=1),
        # BLAS letters for a and b: n rows contiguous, t columns contiguous (a linear layer is nt), s neither.
        Field("layout", "choice", "nn", choices=tuple(x + y for x in "nts" for y in "nts")),
        # False where a base address or a stride is less aligned than fresh tensors of these sizes.
        Field("aligned", "flag", default=True),
    ),
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    work=work,
    problems=(
        "M=128,N=128,K=64,dtype=float16",
        "M=64,N=96,K=128,dtype=bfloat16,layout=nt",
        "M=64,N=64,K=64,dtype=float32,B=2,layout=tn",
        "M=67,N=131,K=93,dtype=float16,layout=nt",
        "M=1,N=160,K=200,dtype=float32,layout=nt",
        "M=33,N=17,K=70,dtype=float32,layout=ss,aligned=false",
    ),
    # 2x is flash-attention's and quack's factor; ulps cover the rounding of the output, and for float32 the
    # order of summation, where torch's blocked sums may happen to be nearly exact.
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=4),
    },
    signature=compile_signature,
    operator=OPERATOR,
    serves=SERVES,
)
