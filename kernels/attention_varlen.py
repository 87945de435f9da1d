"""``attention_varlen``: :mod:`attention <autotune.kernels.attention>` of ragged sequences without padding.

The grid is for sequences of the longest length; programs beyond the end of a shorter one return at once.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
import triton
import triton.language as tl

from autotune.data import ITEMSIZE, Config, Problem
from autotune.kernel import Kernel, Signature, Work
from autotune.kernels._attention_forward import attend_tile, place
from autotune.kernels._attention_reference import seen_pairs
from autotune.kernels._attention_tiles import (
    TOLERANCES,
    check_width,
    describable,
    effective,
    tiles_by_heads,
    widths,
)
from autotune.kernels._attention_varlen_operator import OPERATOR, check, check_values
from autotune.kernels._attention_varlen_problem import FIELDS, SIZES, bucket, fill_of, inputs, rule
from autotune.kernels._attention_varlen_reference import baseline, reference
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._masks import binding_window, score_factors, sequence
from autotune.kernels._tensors import aligned, dtype_name, matrix_layout


# Lengths change with every batch: code for each of their divisors would compile again and again.
@triton.jit(do_not_specialize=["SQ", "TQ"])
def _attention_varlen(
    q,  # (TQ, H, D)
    k,  # (TK, HKV, D)
    v,  # (TK, HKV, DV)
    cu_q,  # (batch + 1,)
    cu_k,
    out,  # (TQ, H, DV), contiguous
    lse,  # (H, TQ) float32, contiguous
    score_scale,
    window,
    H,
    GROUP,  # H // HKV
    SQ,  # of the longest sequence
    TQ,
    D,
    DV,
    stride_qm,
    stride_qh,
    stride_qd,
    stride_kn,
    stride_kh,
    stride_kd,
    stride_vn,
    stride_vh,
    stride_vd,
    stride_om,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_DV: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    PACK_GQA: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
):
    tile, head, kv_head, number = place(SQ, H, GROUP, BLOCK_M, CAUSAL, PACK_GQA)
    first_q, rows = sequence(cu_q, number)
    first_k, columns = sequence(cu_k, number)
    queries = rows
    if PACK_GQA:
        queries = rows * GROUP
    if tile * BLOCK_M >= queries:
        return
    attend_tile(
        tile,
        q + first_q * stride_qm + head * stride_qh,
        k + first_k * stride_kn + kv_head * stride_kh,
        v + first_k * stride_vn + kv_head * stride_vh,
        out + first_q * stride_om + head * DV,
        lse + head * TQ + first_q,
        score_scale, 1.0, window, columns - rows, GROUP, rows, columns, D, DV,
        stride_qh, stride_qm, stride_qd, stride_kn, stride_kd, stride_vn, stride_vd, DV, stride_om, TQ,
        BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, EVEN_D, EVEN_DV, CAUSAL, WINDOW, False, PACK_GQA, DESCRIPTOR,
    )  # fmt: skip


def problem(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
) -> Problem:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or an option its rule."""
    check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    score_factors(scale, None, 1)
    dtype = dtype_name(q=q, k=k, v=v)
    batch, rows, columns = (bucket(size) for size in (len(cu_seqlens_q) - 1, max_seqlen_q, max_seqlen_k))
    head_dim, value_dim = q.shape[2], v.shape[2]
    layouts = {matrix_layout(tensor) for tensor in (q, k, v)}
    return KERNEL.make(
        B=batch,
        H=q.shape[1],
        HKV=k.shape[1],
        SQ=rows,
        SK=columns,
        D=check_width("q", head_dim),
        dtype=dtype,
        causal=bool(causal),
        layout="n" if layouts == {"n"} else "s",
        aligned=aligned(q, k, v),
        DV=0 if value_dim == head_dim else check_width("v", value_dim),
        window=binding_window(window, max_seqlen_q, max_seqlen_k),
        fill=fill_of(len(q) + len(k), batch * (rows + columns)),
    )


def key(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
) -> Hashable:
    # Lengths differ from one batch to the next: only what the problem keeps of them.
    batch, rows, columns = bucket(len(cu_seqlens_q) - 1), bucket(max_seqlen_q), bucket(max_seqlen_k)
    return (
        batch,
        rows,
        columns,
        fill_of(len(q) + len(k), batch * (rows + columns)),
        q.shape[1:],
        k.shape[1:],
        v.shape[2],
        q.stride(),
        k.stride(),
        v.stride(),
        q.dtype,
        q.dtype is k.dtype is v.dtype,
        q.get_device(),
        (q.data_ptr() | k.data_ptr() | v.data_ptr()) & 15,
        causal,
        binding_window(window, max_seqlen_q, max_seqlen_k),
    )


def run(
    config: Config,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse): (TQ, H, DV) in the dtype of ``q`` and (H, TQ) in float32, contiguous."""
    check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    check_values(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    if must_widen(_attention_varlen, q):
        lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        out, lse = run(config, q.float(), k.float(), v.float(), *lengths, causal, scale, window)
        return out.to(q.dtype), lse
    tokens, heads, head_dim = q.shape
    kv_heads, value_dim = v.shape[1:]
    window = binding_window(window, max_seqlen_q, max_seqlen_k)
    score_scale, _ = score_factors(scale, None, head_dim)
    out = torch.empty((tokens, heads, value_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, tokens), dtype=torch.float32, device=q.device)
    if out.numel():
        config = effective(config, heads // kv_heads, max_seqlen_q, describable(k, v))
        launch(
            _attention_varlen,
            (len(cu_seqlens_q) - 1) * tiles_by_heads(heads, kv_heads, max_seqlen_q, config),
            *(q, k, v, cu_seqlens_q.int(), cu_seqlens_k.int(), out, lse, score_scale, window),
            *(heads, heads // kv_heads, max_seqlen_q, tokens, head_dim, value_dim),
            *(*q.stride(), *k.stride(), *v.stride(), out.stride(0)),
            config=config,
            descriptors=bool(config["DESCRIPTOR"]),
            **widths(head_dim, value_dim),
            CAUSAL=bool(causal),
            WINDOW=window > 0,
        )
    return out, lse


def work(problem: Problem) -> Work:
    """As if all sequences were of the mean length."""
    batch, heads, kv_heads, rows, columns, head_dim, value_dim = sizes(problem)
    fill = problem.integer("fill", 50)
    rows, columns = (-(-length * fill // 100) for length in (rows, columns))
    causal, window = bool(problem.get("causal", False)), problem.integer("window", 0)
    pairs = seen_pairs(rows, columns, causal, window, shift=columns - rows)
    width = head_dim + value_dim
    moved = batch * width * (heads * rows + kv_heads * columns) * ITEMSIZE[str(problem["dtype"])]
    return Work(flops=2 * batch * heads * pairs * width, bytes=moved + 4 * batch * heads * rows)


def compile_signature(problem: Problem, config: Config) -> Signature:
    batch, heads, kv_heads, rows, _, head_dim, value_dim = sizes(problem)
    config = effective(config, heads // kv_heads, rows, True)
    # A strided head_dim has a gap after every element.
    step = 2 if problem.get("layout") == "s" else 1
    window = problem.integer("window", 0)
    integers = {"window": window, "H": heads, "GROUP": heads // kv_heads, "SQ": rows}
    integers.update({"TQ": batch * rows * problem.integer("fill", 50) // 100, "D": head_dim, "DV": value_dim})
    for name, row, count, width in (
        ("q", "m", heads, head_dim),
        ("k", "n", kv_heads, head_dim),
        ("v", "n", kv_heads, value_dim),
    ):
        strides = {row: step * count * width, "h": step * width, "d": step}
        integers.update({f"stride_{name}{dim}": value for dim, value in strides.items()})
    integers["stride_om"] = heads * value_dim
    pointers = dict.fromkeys(("q", "k", "v", "out"), TRITON_NAMES[str(problem["dtype"])])
    return signature(
        _attention_varlen,
        batch * tiles_by_heads(heads, kv_heads, rows, config),
        pointers={**pointers, "cu_q": "i32", "cu_k": "i32", "lse": "fp32"},
        misaligned=() if problem.get("aligned", True) else ("q", "k", "v"),
        integers=integers,
        floats=("score_scale",),
        constexprs={
            **widths(head_dim, value_dim),
            "CAUSAL": bool(problem.get("causal", False)),
            "WINDOW": window > 0,
        },
        config=config,
    )


def sizes(problem: Problem) -> tuple[int, ...]:
    """B, H, HKV, SQ, SK, D, DV."""
    head_dim = problem.integer("D")
    return *(problem.integer(name) for name in SIZES), problem.integer("DV", 0) or head_dim


KERNEL = Kernel(
    fields=FIELDS,
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    baseline=baseline,
    work=work,
    problems=(
        "B=4,H=2,HKV=2,SQ=64,SK=64,D=64,dtype=float16,causal=true",
        "B=4,H=4,HKV=2,SQ=32,SK=128,D=32,dtype=bfloat16,causal=true",
        "B=2,H=4,HKV=1,SQ=32,SK=64,D=40,dtype=float32,causal=true,DV=24,window=9",
        "B=2,H=1,HKV=1,SQ=128,SK=64,D=16,dtype=float16,layout=s,window=30,fill=100",
    ),
    tolerances=TOLERANCES,
    signature=compile_signature,
    rule=rule,
    operator=OPERATOR,
)
