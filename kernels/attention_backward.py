"""``attention_backward``: the gradients of ``attention``, (dq, dk, dv), without the score matrix in memory.

Scores are computed anew from q, k and the logarithms of the softmax's sums that the forward pass left.
``_attention_backward.py`` and ``_attention_backward_queries.py`` have the kernels.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch

from autotune.data import ITEMSIZE, Config, Problem
from autotune.kernel import Field, Kernel, Signature, Work
from autotune.kernels._attention_backward import keys_gradient
from autotune.kernels._attention_backward_launch import Step, named, row_contiguous, signatures, steps
from autotune.kernels._attention_backward_operator import OPERATOR, check_gradients
from autotune.kernels._attention_backward_reference import gradients
from autotune.kernels._attention_reference import attend, seen_pairs
from autotune.kernels._attention_tiles import MAX_HEAD_DIM, TOLERANCES, check_width, strides, whole_groups
from autotune.kernels._launch import launch, must_widen
from autotune.kernels._masks import binding_window, score_factors
from autotune.kernels._tensors import aligned, dtype_name, heads_layout, random, relaid

_SIZES = ("B", "H", "HKV", "SQ", "SK", "D")


def problem(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Problem:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or an option is wrong."""
    check_gradients(d_out, d_lse, q, k, v, out, lse)
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
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Hashable:
    # What else must be so run checks.
    return (
        *(q.shape, k.shape, v.shape[3], q.stride(), k.stride(), v.stride()),
        *(q.dtype, q.dtype is k.dtype is v.dtype, q.get_device()),
        (q.data_ptr() | k.data_ptr() | v.data_ptr()) & 15,
        *(causal, window, softcap is None),
    )


def inputs(problem: Problem, seed: int, device: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    sizes = _sizes(problem)
    batch, heads, kv_heads, rows, columns, head_dim = (sizes[name] for name in _SIZES)
    layout, off = problem.get("layout", "bhsd"), not problem.get("aligned", True)

    def one(heads: int, length: int, inner: int, layout: object = "bhsd", off: bool = False) -> torch.Tensor:
        drawn = random(batch, heads, length, inner, dtype=str(problem["dtype"]), device=device, generator=generator)
        if layout == "bshd":
            return relaid(drawn.transpose(1, 2), "n", off).transpose(1, 2)
        return relaid(drawn, "s" if layout == "s" else "n", off)

    d_out = one(heads, rows, sizes["DV"])
    q, k, v = (
        one(count, length, inner, layout, off)
        for count, length, inner in (
            (heads, rows, head_dim),
            (kv_heads, columns, head_dim),
            (kv_heads, columns, sizes["DV"]),
        )
    )
    # Products of random rows are near 0: a cap of 2 bends them.
    softcap = 2.0 if problem.get("softcap", False) else None
    causal, window = bool(problem.get("causal", False)), sizes["window"]
    out, lse = attend(q, k, v, scale=None, causal=causal, window=window, softcap=softcap)
    return d_out, None, q, k, v, out, lse, causal, None, window or None, softcap


def run(
    config: Config,
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv), contiguous, in the dtype of ``q``; see :func:`attention_backward`."""
    check_gradients(d_out, d_lse, q, k, v, out, lse)
    score_scale, cap_log2 = score_factors(scale, softcap, q.shape[3])
    if must_widen(keys_gradient, q):
        wide = [t.float() for t in (d_out, q, k, v, out)]
        dq, dk, dv = run(
            config, wide[0], d_lse, wide[1], wide[2], wide[3], wide[4], lse, causal, scale, window, softcap
        )
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)
    batch, heads, rows, head_dim = q.shape
    kv_heads, columns, value_dim = v.shape[1:]
    d_out, out, lse = row_contiguous(d_out), row_contiguous(out), lse.contiguous()
    sizes = {
        **dict(zip(_SIZES, (batch, heads, kv_heads, rows, columns, head_dim), strict=True)),
        **{"DV": value_dim, "window": binding_window(window, rows, columns)},
        **named("q", "bhmd", q),
        **named("k", "bhnd", k),
        **named("v", "bhnd", v),
        **named("g", "bhm", d_out),
        **named("o", "bhm", out),
    }
    delta = torch.empty_like(lse)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    values = {
        **{"q": q, "k": k, "v": v, "d_out": d_out, "out": out, "lse": lse, "delta": delta},
        **{"d_lse": lse if d_lse is None else d_lse.contiguous(), "dq": dq, "dk": dk, "dv": dv},
        # Never read: no sequences are packed.
        **{"cu_q": lse, "cu_k": lse},
        **{"score_scale": score_scale, "cap_log2": cap_log2},
        "scale": head_dim**-0.5 if scale is None else scale,
    }
    for step in _steps(sizes, config, bool(causal), softcap is not None, d_lse is not None):
        if step.programs:
            launch(step.function, step.programs, *step.positional(values), config=step.config, **step.named())
    return dq, dk, dv


def _steps(
    sizes: Mapping[str, int], config: Config, causal: bool, softcap: bool, has_d_lse: bool
) -> tuple[Step, ...]:
    heads, kv_heads, rows, columns = (sizes[name] for name in ("H", "HKV", "SQ", "SK"))
    whole = {
        **sizes,
        **{"LENGTH": rows, "stride_lb": heads * rows, "stride_lh": rows},
        **{"stride_dqb": heads * rows * sizes["D"], "stride_dqh": rows * sizes["D"], "stride_dqm": sizes["D"]},
        **{"stride_dkb": kv_heads * columns, "stride_dkh": columns, "stride_dkn": 1},
    }
    return steps(whole, config, causal=causal, softcap=softcap, has_d_lse=has_d_lse, varlen=False)


def reference(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The true gradient: ``out`` and ``lse`` are computed anew, in the precision of ``q``."""
    check_gradients(d_out, d_lse, q, k, v, out, lse)
    bound = binding_window(window, q.shape[2], k.shape[2])
    return gradients(d_out, d_lse, q, k, v, scale=scale, causal=causal, window=bound, softcap=softcap)


def work(problem: Problem) -> Work:
    sizes = _sizes(problem)
    batch, heads, kv_heads, rows, columns, head_dim = (sizes[name] for name in _SIZES)
    pairs = seen_pairs(rows, columns, bool(problem.get("causal", False)), sizes["window"])
    # Of the five products three are as wide as keys, two as values.
    flops = 2 * batch * heads * pairs * (3 * head_dim + 2 * sizes["DV"])
    width = head_dim + sizes["DV"]
    # q, k, v and their gradients, out and d_out; lse.
    elements = 2 * width * (heads * rows + kv_heads * columns)
    return Work(flops=flops, bytes=batch * (elements * ITEMSIZE[str(problem["dtype"])] + 4 * heads * rows))


def compile_signature(problem: Problem, config: Config) -> tuple[Signature, ...]:
    sizes = _sizes(problem)
    batch, heads, kv_heads, rows, columns, head_dim = (sizes[name] for name in _SIZES)
    value_dim = sizes["DV"]
    by_row = {"b": heads * rows * value_dim, "h": rows * value_dim, "m": value_dim}
    sizes.update(
        {
            **strides("q", "bhmd", (batch, heads, rows, head_dim), problem),
            **strides("k", "bhnd", (batch, kv_heads, columns, head_dim), problem),
            **strides("v", "bhnd", (batch, kv_heads, columns, value_dim), problem),
            **{f"stride_{name}{axis}": stride for name in "go" for axis, stride in by_row.items()},
        }
    )
    causal, softcap = bool(problem.get("causal", False)), bool(problem.get("softcap", False))
    return signatures(
        _steps(sizes, config, causal, softcap, has_d_lse=False),
        dtype=str(problem["dtype"]),
        aligned=bool(problem.get("aligned", True)),
        offsets="fp32",
    )


def _sizes(problem: Problem) -> dict[str, int]:
    sizes = {name: problem.integer(name) for name in _SIZES}
    return {**sizes, "DV": problem.integer("DV", 0) or sizes["D"], "window": problem.integer("window", 0)}


KERNEL = Kernel(
    fields=(
        # As those of attention.
        *(Field(name, "size", minimum=0 if name in ("B", "SQ", "SK") else 1) for name in _SIZES[:-1]),
        Field("D", "size", minimum=1, maximum=MAX_HEAD_DIM),
        Field("dtype", "dtype"),
        Field("causal", "flag", default=False),
        Field("layout", "choice", "bhsd", choices=("bhsd", "bshd", "s")),
        Field("aligned", "flag", default=True),
        Field("DV", "size", default=0, maximum=MAX_HEAD_DIM),
        Field("window", "size", default=0),
        Field("softcap", "flag", default=False),
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
        "B=1,H=4,HKV=2,SQ=70,SK=90,D=48,dtype=float16,DV=32,window=20,softcap=true",
    ),
    tolerances=TOLERANCES,
    signature=compile_signature,
    rule=whole_groups,
    operator=OPERATOR,
)
