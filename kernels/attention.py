"""``attention``: softmax(scale * q k^T) v in one pass, forward; causal or not, grouped-query heads.

One program computes BLOCK_M queries of one head and walks over the keys in blocks of BLOCK_N, keeping the
running maximum and sum of the softmax (https://arxiv.org/abs/2205.14135, in base 2). Key blocks that every
query of the tile sees run without a mask; the diagonal and the tail run with one.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
import triton
import triton.language as tl

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import ITEMSIZE, Config, Problem
from autotune.kernel import Field, Kernel, Signature, Tolerance, Work
from autotune.kernels._attention_operator import OPERATOR, SERVES, check
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._softmax import attend
from autotune.kernels._tensors import aligned, dtype_name, heads_layout, random, relaid

LOG2_E = 1.4426950408889634
MAX_HEAD_DIM = 256


@triton.jit
def _attention(
    q,  # (B, H, SQ, D)
    k,  # (B, HKV, SK, D)
    v,  # (B, HKV, SK, D)
    out,  # (B, H, SQ, D), contiguous
    scale_log2,
    H,
    HKV,
    SQ,
    SK,
    D,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_vd,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    tiles = tl.cdiv(SQ, BLOCK_M)
    tile = tl.program_id(0) % tiles
    if CAUSAL:
        # The last rows see the most keys: start them first.
        tile = tiles - 1 - tile
    head = (tl.program_id(0) // tiles % H).to(tl.int64)
    batch = (tl.program_id(0) // tiles // H).to(tl.int64)
    kv_head = head // (H // HKV)

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_64 = rows.to(tl.int64)
    inner = tl.arange(0, BLOCK_D).to(tl.int64)
    stored = (rows < SQ)[:, None] & (inner < D)[None, :]
    q_tile = q + batch * stride_qb + head * stride_qh + rows_64[:, None] * stride_qm + inner[None, :] * stride_qd
    queries = tl.load(q_tile, mask=stored, other=0.0)
    k += batch * stride_kb + kv_head * stride_kh
    v += batch * stride_vb + kv_head * stride_vh

    accumulator = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    row_max = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    last = SK
    unmasked = SK // BLOCK_N * BLOCK_N
    if CAUSAL:
        last = min(SK, (tile + 1) * BLOCK_M)
        # Row tile * BLOCK_M, the tile's first, sees keys up to its own index.
        unmasked = min(unmasked, (tile * BLOCK_M + 1) // BLOCK_N * BLOCK_N)
    accumulator, row_max, row_sum = attend(
        accumulator, row_max, row_sum, queries, k, v, 0, unmasked, rows, SK, D,
        stride_kn, stride_kd, stride_vn, stride_vd, scale_log2, BLOCK_N, BLOCK_D, EVEN_D, CAUSAL, False,
    )  # fmt: skip
    accumulator, row_max, row_sum = attend(
        accumulator, row_max, row_sum, queries, k, v, unmasked, last, rows, SK, D,
        stride_kn, stride_kd, stride_vn, stride_vd, scale_log2, BLOCK_N, BLOCK_D, EVEN_D, CAUSAL, True,
    )  # fmt: skip

    # No key at all: the sum is 0, and so is the result.
    result = accumulator / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    out_tile = out + ((batch * H + head) * SQ + rows_64[:, None]) * D + inner[None, :]
    tl.store(out_tile, result.to(out.dtype.element_ty), mask=stored)


def problem(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False, scale: float | None = None
) -> Problem:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together."""
    check(q, k, v)
    dtype = dtype_name(q=q, k=k, v=v)
    batch, heads, rows, head_dim = q.shape
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"q has head_dim {head_dim}; the kernel takes 1 to {MAX_HEAD_DIM}")
    return KERNEL.make(
        B=batch,
        H=heads,
        HKV=k.shape[1],
        SQ=rows,
        SK=k.shape[2],
        D=head_dim,
        dtype=dtype,
        causal=bool(causal),
        layout=heads_layout(q, k, v),
        aligned=aligned(q, k, v),
    )


def key(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False, scale: float | None = None
) -> Hashable:
    # v.shape is not here: where it is not k's, run refuses it.
    return (
        q.shape,
        k.shape,
        q.stride(),
        k.stride(),
        v.stride(),
        q.dtype,
        q.dtype is k.dtype is v.dtype,
        q.get_device(),
        (q.data_ptr() | k.data_ptr() | v.data_ptr()) & 15,
        causal,
    )


def inputs(problem: Problem, seed: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    generator = torch.Generator().manual_seed(seed)
    batch, heads, kv_heads, rows, columns, head_dim = (problem.integer(name) for name in _SIZES)
    layout, off = problem.get("layout", "bhsd"), not problem.get("aligned", True)

    def one(heads: int, length: int) -> torch.Tensor:
        drawn = random(
            batch, heads, length, head_dim, dtype=str(problem["dtype"]), device=device, generator=generator
        )
        if layout == "bshd":
            return relaid(drawn.transpose(1, 2), "n", off).transpose(1, 2)
        return relaid(drawn, "s" if layout == "s" else "n", off)

    return one(heads, rows), one(kv_heads, columns), one(kv_heads, columns), bool(problem.get("causal", False))


def run(
    config: Config,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """(batch, heads, seq, head_dim), contiguous, in the dtype of ``q``; see :func:`attention`."""
    check(q, k, v)
    if must_widen(_attention, q):
        return run(config, q.float(), k.float(), v.float(), causal, scale).to(q.dtype)
    batch, heads, rows, head_dim = q.shape
    kv_heads, columns = k.shape[1:3]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel():
        scale = head_dim**-0.5 if scale is None else scale
        launch(
            _attention,
            _programs(batch, heads, rows, config),
            *(q, k, v, out, scale * LOG2_E, heads, kv_heads, rows, columns, head_dim),
            *(*q.stride(), *k.stride(), *v.stride()),
            config=config,
            **_tile(head_dim),
            CAUSAL=bool(causal),
        )
    return out


def _programs(batch: int, heads: int, rows: int, config: Config) -> int:
    return cdiv(rows, config.integer("BLOCK_M")) * batch * heads


def _tile(head_dim: int) -> dict[str, int | bool]:
    block = max(16, next_power_of_2(head_dim))
    return {"BLOCK_D": block, "EVEN_D": block == head_dim}


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    check(q, k, v)
    if 0 in q.shape or 0 in k.shape:
        return q.new_zeros(q.shape)
    if scale is not None and scale <= 0:
        # torch's causal CPU kernel multiplies its -inf by the scale.
        q, scale = q * scale, 1.0
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
    ).contiguous()


def work(problem: Problem) -> Work:
    batch, heads, kv_heads, rows, columns, head_dim = (problem.integer(name) for name in _SIZES)
    pairs = rows * columns
    if problem.get("causal", False):
        # Row i sees min(i + 1, columns) keys.
        short = min(rows, columns)
        pairs = short * (short + 1) // 2 + (rows - short) * columns
    moved = batch * head_dim * (2 * heads * rows + 2 * kv_heads * columns)
    return Work(flops=4 * batch * heads * pairs * head_dim, bytes=moved * ITEMSIZE[str(problem["dtype"])])


def compile_signature(problem: Problem, config: Config) -> Signature:
    batch, heads, kv_heads, rows, columns, head_dim = (problem.integer(name) for name in _SIZES)
    # A strided head_dim has a gap after every element.
    step = 2 if problem.get("layout") == "s" else 1
    integers = {"H": heads, "HKV": kv_heads, "SQ": rows, "SK": columns, "D": head_dim}
    for name, count, length, row in (
        ("q", heads, rows, "m"),
        ("k", kv_heads, columns, "n"),
        ("v", kv_heads, columns, "n"),
    ):
        by_head, by_row = step * length * head_dim, step * head_dim
        if problem.get("layout", "bhsd") == "bshd":
            by_head, by_row = head_dim, count * head_dim
        integers.update(
            {
                f"stride_{name}b": step * count * length * head_dim,
                f"stride_{name}h": by_head,
                f"stride_{name}{row}": by_row,
                f"stride_{name}d": step,
            }
        )
    return signature(
        _attention,
        _programs(batch, heads, rows, config),
        pointers=dict.fromkeys(("q", "k", "v", "out"), TRITON_NAMES[str(problem["dtype"])]),
        misaligned=() if problem.get("aligned", True) else ("q", "k", "v"),
        integers=integers,
        floats=("scale_log2",),
        constexprs={**_tile(head_dim), "CAUSAL": bool(problem.get("causal", False))},
        config=config,
    )


_SIZES = ("B", "H", "HKV", "SQ", "SK", "D")


def _whole_groups(problem: Problem) -> str | None:
    heads, kv_heads = problem.integer("H"), problem.integer("HKV")
    return None if heads % kv_heads == 0 else f"HKV={kv_heads} must divide H={heads}"


KERNEL = Kernel(
    fields=(
        # Queries and keys may be empty; heads and head_dim may not.
        *(Field(name, "size", minimum=0 if name in ("B", "SQ", "SK") else 1) for name in _SIZES[:-1]),
        Field("D", "size", minimum=1, maximum=MAX_HEAD_DIM),
        Field("dtype", "dtype"),
        Field("causal", "flag", default=False),
        Field("layout", "choice", "bhsd", choices=("bhsd", "bshd", "s")),
        Field("aligned", "flag", default=True),
    ),
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    work=work,
    problems=(
        "B=1,H=2,HKV=2,SQ=128,SK=128,D=64,dtype=float16,causal=true",
        "B=1,H=4,HKV=2,SQ=64,SK=96,D=32,dtype=bfloat16",
        "B=2,H=2,HKV=1,SQ=67,SK=131,D=40,dtype=float16,causal=true,layout=bshd",
        "B=1,H=1,HKV=1,SQ=113,SK=33,D=80,dtype=float32,causal=true",
        "B=1,H=2,HKV=2,SQ=1,SK=239,D=64,dtype=float32",
    ),
    # 2x and a rounding of the output, as flash-attention. In float32 nearly all of the error is that of a row's
    # largest scores, which moves all its outputs together, so the mean over few rows may be as unlucky as one
    # element: of 26000 single rows computed as here, head sizes 16 to 256, it was over 4x torch's by up to 5.0 eps,
    # and 19 times by more than the 0.8 that 8 ulps leave it. With tf32 products it is by 188 eps at least.
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=64),
    },
    signature=compile_signature,
    rule=_whole_groups,
    operator=OPERATOR,
    serves=SERVES,
)
