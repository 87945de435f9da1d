"""``attention``: softmax(scale * q k^T) v and the logarithm of the softmax's sum, in one pass.

Causal or not, with a sliding window, a soft cap of the scores, and grouped-query heads, whose queries may share
a tile. ``_attention_forward.py`` has the loop over the keys.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
import triton
import triton.language as tl

from autotune.data import ITEMSIZE, Config, Problem
from autotune.kernel import Field, Kernel, Signature, Work
from autotune.kernels._attention_forward import attend_tile, place
from autotune.kernels._attention_operator import OPERATOR, SERVES, check
from autotune.kernels._attention_reference import baseline, reference, seen_pairs
from autotune.kernels._attention_tiles import (
    MAX_HEAD_DIM,
    TOLERANCES,
    check_width,
    describable,
    effective,
    strides,
    tiles_by_heads,
    whole_groups,
    widths,
)
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._masks import binding_window, score_factors
from autotune.kernels._tensors import aligned, dtype_name, heads_layout, random, relaid


@triton.jit
def _attention(
    q,  # (B, H, SQ, D)
    k,  # (B, HKV, SK, D)
    v,  # (B, HKV, SK, DV)
    out,  # (B, H, SQ, DV), contiguous
    lse,  # (B, H, SQ) float32, contiguous
    score_scale,
    cap_log2,
    window,
    H,
    GROUP,  # H // HKV
    SQ,
    SK,
    D,
    DV,
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
    stride_ob,
    stride_oh,
    stride_om,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PACK_GQA: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    tile, head, kv_head, batch = place(SQ, H, GROUP, BLOCK_M, CAUSAL, PACK_GQA)
    attend_tile(
        tile,
        q + batch * stride_qb + head * stride_qh,
        k + batch * stride_kb + kv_head * stride_kh,
        v + batch * stride_vb + kv_head * stride_vh,
        out + batch * stride_ob + head * stride_oh,
        lse + (batch * H + head) * SQ,
        score_scale, cap_log2, window, 0, GROUP, SQ, SK, D, DV,
        stride_qh, stride_qm, stride_qd, stride_kn, stride_kd, stride_vn, stride_vd, stride_oh, stride_om, SQ,
        BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, SOFTCAP, PACK_GQA, DESCRIPTOR,
    )  # fmt: skip


def problem(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Problem:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or an option its rule."""
    check(q, k, v)
    score_factors(scale, softcap, q.shape[3])
    batch, heads, rows, head_dim = q.shape
    return KERNEL.make(
        B=batch,
        H=heads,
        HKV=k.shape[1],
        SQ=rows,
        SK=k.shape[2],
        D=check_width("q", head_dim),
        dtype=dtype_name(q=q, k=k, v=v),
        causal=bool(causal),
        layout=heads_layout(q, k, v),
        aligned=aligned(q, k, v),
        DV=0 if v.shape[3] == head_dim else check_width("v", v.shape[3]),
        window=binding_window(window, rows, k.shape[2]),
        softcap=softcap is not None,
    )


def key(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Hashable:
    return (
        q.shape,
        k.shape,
        v.shape,
        q.stride(),
        k.stride(),
        v.stride(),
        q.dtype,
        q.dtype is k.dtype is v.dtype,
        q.get_device(),
        (q.data_ptr() | k.data_ptr() | v.data_ptr()) & 15,
        causal,
        window,
        softcap is None,
    )


def inputs(problem: Problem, seed: int, device: str) -> tuple[torch.Tensor | bool | int | float | None, ...]:
    generator = torch.Generator().manual_seed(seed)
    batch, heads, kv_heads, rows, columns, head_dim, value_dim = sizes(problem)
    layout, off = problem.get("layout", "bhsd"), not problem.get("aligned", True)

    def one(heads: int, length: int, width: int) -> torch.Tensor:
        drawn = random(batch, heads, length, width, dtype=str(problem["dtype"]), device=device, generator=generator)
        if layout == "bshd":
            return relaid(drawn.transpose(1, 2), "n", off).transpose(1, 2)
        return relaid(drawn, "s" if layout == "s" else "n", off)

    return (
        *(one(heads, rows, head_dim), one(kv_heads, columns, head_dim), one(kv_heads, columns, value_dim)),
        *(bool(problem.get("causal", False)), None, problem.integer("window", 0) or None),
        # Of scores near 1: low enough to bend them.
        2.0 if problem.get("softcap", False) else None,
    )


def run(
    config: Config,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse): (B, H, SQ, DV) in the dtype of ``q`` and (B, H, SQ) in float32, contiguous."""
    check(q, k, v)
    score_scale, cap_log2 = score_factors(scale, softcap, q.shape[3])
    if must_widen(_attention, q):
        out, lse = run(config, q.float(), k.float(), v.float(), causal, scale, window, softcap)
        return out.to(q.dtype), lse
    batch, heads, rows, head_dim = q.shape
    kv_heads, columns, value_dim = v.shape[1:]
    window = binding_window(window, rows, columns)
    out = torch.empty((batch, heads, rows, value_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, rows), dtype=torch.float32, device=q.device)
    if out.numel():
        config = effective(config, heads // kv_heads, rows, describable(k, v))
        launch(
            _attention,
            _programs(batch, heads, kv_heads, rows, config),
            *(q, k, v, out, lse, score_scale, cap_log2, window, heads, heads // kv_heads, rows, columns),
            *(head_dim, value_dim, *q.stride(), *k.stride(), *v.stride(), *out.stride()[:3]),
            config=config,
            descriptors=bool(config["DESCRIPTOR"]),
            **widths(head_dim, value_dim),
            CAUSAL=bool(causal),
            WINDOW=window > 0,
            SOFTCAP=softcap is not None,
        )
    return out, lse


def _programs(batch: int, heads: int, kv_heads: int, rows: int, config: Config) -> int:
    return batch * tiles_by_heads(heads, kv_heads, rows, config)


def work(problem: Problem) -> Work:
    batch, heads, kv_heads, rows, columns, head_dim, value_dim = sizes(problem)
    pairs = seen_pairs(rows, columns, bool(problem.get("causal", False)), problem.integer("window", 0))
    width = head_dim + value_dim
    moved = batch * width * (heads * rows + kv_heads * columns) * ITEMSIZE[str(problem["dtype"])]
    return Work(flops=2 * batch * heads * pairs * width, bytes=moved + 4 * batch * heads * rows)


def compile_signature(problem: Problem, config: Config) -> Signature:
    batch, heads, kv_heads, rows, columns, head_dim, value_dim = sizes(problem)
    group, window = heads // kv_heads, problem.integer("window", 0)
    config = effective(config, group, rows, True)
    integers = {
        **{"window": window, "H": heads, "GROUP": group, "SQ": rows, "SK": columns, "D": head_dim, "DV": value_dim},
        **strides("q", "bhmd", (batch, heads, rows, head_dim), problem),
        **strides("k", "bhnd", (batch, kv_heads, columns, head_dim), problem),
        **strides("v", "bhnd", (batch, kv_heads, columns, value_dim), problem),
        **{"stride_ob": heads * rows * value_dim, "stride_oh": rows * value_dim, "stride_om": value_dim},
    }
    return signature(
        _attention,
        _programs(batch, heads, kv_heads, rows, config),
        pointers={**dict.fromkeys(("q", "k", "v", "out"), TRITON_NAMES[str(problem["dtype"])]), "lse": "fp32"},
        misaligned=() if problem.get("aligned", True) else ("q", "k", "v"),
        integers=integers,
        floats=("score_scale", "cap_log2"),
        constexprs={
            **widths(head_dim, value_dim),
            "CAUSAL": bool(problem.get("causal", False)),
            "WINDOW": window > 0,
            "SOFTCAP": bool(problem.get("softcap", False)),
        },
        config=config,
    )


def sizes(problem: Problem) -> tuple[int, ...]:
    """B, H, HKV, SQ, SK, D, DV."""
    head_dim = problem.integer("D")
    return *(problem.integer(name) for name in _SIZES), problem.integer("DV", 0) or head_dim


_SIZES = ("B", "H", "HKV", "SQ", "SK", "D")

KERNEL = Kernel(
    fields=(
        # Queries and keys may be empty; heads and head_dim may not.
        *(Field(name, "size", minimum=0 if name in ("B", "SQ", "SK") else 1) for name in _SIZES[:-1]),
        Field("D", "size", minimum=1, maximum=MAX_HEAD_DIM),
        Field("dtype", "dtype"),
        Field("causal", "flag", default=False),
        Field("layout", "choice", "bhsd", choices=("bhsd", "bshd", "s")),
        Field("aligned", "flag", default=True),
        # As D, and none.
        Field("DV", "size", default=0, maximum=MAX_HEAD_DIM),
        Field("window", "size", default=0),
        Field("softcap", "flag", default=False),
    ),
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    baseline=baseline,
    work=work,
    problems=(
        "B=1,H=2,HKV=2,SQ=128,SK=128,D=64,dtype=float16,causal=true",
        "B=1,H=4,HKV=2,SQ=64,SK=96,D=32,dtype=bfloat16",
        "B=2,H=2,HKV=1,SQ=67,SK=131,D=40,dtype=float16,causal=true,layout=bshd",
        "B=1,H=1,HKV=1,SQ=113,SK=33,D=80,dtype=float32,causal=true",
        "B=1,H=2,HKV=2,SQ=1,SK=239,D=64,dtype=float32",
        "B=1,H=6,HKV=2,SQ=37,SK=200,D=48,dtype=float16,causal=true,DV=32,window=20,softcap=true",
    ),
    tolerances=TOLERANCES,
    signature=compile_signature,
    rule=whole_groups,
    operator=OPERATOR,
    serves=SERVES,
)
