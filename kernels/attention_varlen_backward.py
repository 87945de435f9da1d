"""``attention_varlen_backward``: the gradients of ``attention_varlen``, by the kernels of ``attention_backward``.

Grids are for sequences of the longest lengths; programs beyond the end of a shorter one return at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch

from autotune.data import ITEMSIZE, Config, Problem
from autotune.kernel import Kernel, Signature, Work
from autotune.kernels import attention_varlen as forward
from autotune.kernels._attention_backward import keys_gradient
from autotune.kernels._attention_backward_launch import Step, named, row_contiguous, signatures, steps
from autotune.kernels._attention_backward_reference import gradients
from autotune.kernels._attention_reference import seen_pairs
from autotune.kernels._attention_tiles import TOLERANCES
from autotune.kernels._attention_varlen_backward_operator import OPERATOR, check_gradients
from autotune.kernels._attention_varlen_operator import check_values
from autotune.kernels._attention_varlen_problem import FIELDS, SIZES, rule
from autotune.kernels._attention_varlen_problem import inputs as forward_inputs
from autotune.kernels._launch import launch, must_widen
from autotune.kernels._masks import binding_window, score_factors
from autotune.kernels._tensors import random


def problem(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *others: Any,
) -> Problem:
    """That of the forward pass.

    :param others: offsets, longest lengths and options, as ``attention_varlen`` has them
    :raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or an option breaks its rule.
    """
    check_gradients(d_out, d_lse, q, k, v, out, lse, *others[:4])
    return forward.problem(q, k, v, *others)


def key(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *others: Any,
) -> Hashable:
    # What else must be so run checks.
    return forward.key(q, k, v, *others)


def inputs(problem: Problem, seed: int, device: str) -> tuple[Any, ...]:
    args: tuple[Any, ...] = forward_inputs(problem, seed, device)
    q, k, v, *others = args
    out, lse = forward.KERNEL.reference(*args)
    generator = torch.Generator().manual_seed(seed + 2**31)
    d_out = random(*out.shape, dtype=str(problem["dtype"]), device=device, generator=generator)
    return d_out, None, q, k, v, out, lse, *others


def run(
    config: Config,
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv), contiguous, in the dtype of ``q``; see :func:`attention_varlen_backward`."""
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    check_gradients(d_out, d_lse, q, k, v, out, lse, *lengths)
    check_values(q, k, *lengths)
    score_scale, cap_log2 = score_factors(scale, None, q.shape[2])
    if must_widen(keys_gradient, q):
        wide = [t.float() for t in (d_out, q, k, v, out)]
        dq, dk, dv = run(
            config, wide[0], d_lse, wide[1], wide[2], wide[3], wide[4], lse, *lengths, causal, scale, window
        )
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)
    tokens, heads, head_dim = q.shape
    d_out, out, lse = row_contiguous(d_out), row_contiguous(out), lse.contiguous()
    sizes = {
        **{"B": len(cu_seqlens_q) - 1, "H": heads, "HKV": k.shape[1], "SQ": max_seqlen_q, "SK": max_seqlen_k},
        **{"D": head_dim, "DV": v.shape[2], "window": binding_window(window, max_seqlen_q, max_seqlen_k)},
        "LENGTH": tokens,
        **named("q", "mhd", q),
        **named("k", "nhd", k),
        **named("v", "nhd", v),
        **named("g", "mh", d_out),
        **named("o", "mh", out),
    }
    delta = torch.empty_like(lse)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    values = {
        **{"q": q, "k": k, "v": v, "d_out": d_out, "out": out, "lse": lse, "delta": delta},
        **{"d_lse": lse if d_lse is None else d_lse.contiguous(), "dq": dq, "dk": dk, "dv": dv},
        **{"cu_q": cu_seqlens_q.int(), "cu_k": cu_seqlens_k.int()},
        **{"score_scale": score_scale, "cap_log2": cap_log2},
        "scale": head_dim**-0.5 if scale is None else scale,
    }
    for step in _steps(sizes, config, bool(causal), d_lse is not None):
        if step.programs:
            launch(step.function, step.programs, *step.positional(values), config=step.config, **step.named())
    return dq, dk, dv


def _steps(sizes: Mapping[str, int], config: Config, causal: bool, has_d_lse: bool) -> tuple[Step, ...]:
    whole = {
        **sizes,
        # One batch, whatever the number of sequences.
        **{f"stride_{name}b": 0 for name in ("q", "k", "v", "g", "o", "l", "dq", "dk")},
        "stride_lh": sizes["LENGTH"],
        **{"stride_dqh": sizes["D"], "stride_dqm": sizes["H"] * sizes["D"]},
        **{"stride_dkh": 1, "stride_dkn": sizes["HKV"]},
    }
    return steps(whole, config, causal=causal, softcap=False, has_d_lse=has_d_lse, varlen=True)


def reference(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The true gradient, one sequence after the other: ``out`` and ``lse`` are computed anew."""
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    check_gradients(d_out, d_lse, q, k, v, out, lse, *lengths)
    check_values(q, k, *lengths)
    dq, dk, dv = (torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    q_ends, k_ends = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for number in range(len(q_ends) - 1):
        rows, columns = slice(*q_ends[number : number + 2]), slice(*k_ends[number : number + 2])
        one_d_out, one_q = (t[rows].transpose(0, 1)[None] for t in (d_out, q))
        one_k, one_v = (t[columns].transpose(0, 1)[None] for t in (k, v))
        parts = gradients(
            one_d_out,
            None if d_lse is None else d_lse[None, :, rows],
            one_q,
            one_k,
            one_v,
            scale=scale,
            causal=causal,
            window=binding_window(window, max_seqlen_q, max_seqlen_k),
            softcap=None,
            shift=(columns.stop - columns.start) - (rows.stop - rows.start),
        )
        for whole, place, part in zip((dq, dk, dv), (rows, columns, columns), parts, strict=True):
            whole[place] = part[0].transpose(0, 1)
    return dq, dk, dv


def work(problem: Problem) -> Work:
    """As if all sequences were of the mean length."""
    batch, heads, kv_heads, rows, columns, head_dim, value_dim = forward.sizes(problem)
    rows, columns = (-(-length * problem.integer("fill", 50) // 100) for length in (rows, columns))
    causal, window = bool(problem.get("causal", False)), problem.integer("window", 0)
    pairs = seen_pairs(rows, columns, causal, window, shift=columns - rows)
    flops = 2 * batch * heads * pairs * (3 * head_dim + 2 * value_dim)
    elements = 2 * (head_dim + value_dim) * (heads * rows + kv_heads * columns)
    return Work(flops=flops, bytes=batch * (elements * ITEMSIZE[str(problem["dtype"])] + 4 * heads * rows))


def compile_signature(problem: Problem, config: Config) -> tuple[Signature, ...]:
    batch, heads, kv_heads, rows, _, head_dim, value_dim = forward.sizes(problem)
    # A strided head_dim has a gap after every element.
    step = 2 if problem.get("layout") == "s" else 1
    sizes = {name: problem.integer(name) for name in SIZES}
    sizes.update({"DV": value_dim, "window": problem.integer("window", 0)})
    sizes["LENGTH"] = batch * rows * problem.integer("fill", 50) // 100
    for name, row, count, width, gap in (
        ("q", "m", heads, head_dim, step),
        ("k", "n", kv_heads, head_dim, step),
        ("v", "n", kv_heads, value_dim, step),
        ("g", "m", heads, value_dim, 1),
        ("o", "m", heads, value_dim, 1),
    ):
        strides = {row: gap * count * width, "h": gap * width, "d": gap}
        sizes.update({f"stride_{name}{dim}": value for dim, value in strides.items()})
    return signatures(
        _steps(sizes, config, bool(problem.get("causal", False)), has_d_lse=False),
        dtype=str(problem["dtype"]),
        aligned=bool(problem.get("aligned", True)),
        offsets="i32",
    )


KERNEL = Kernel(
    fields=FIELDS,
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    work=work,
    problems=(
        "B=4,H=2,HKV=2,SQ=64,SK=64,D=64,dtype=float16,causal=true",
        "B=2,H=4,HKV=2,SQ=32,SK=128,D=32,dtype=bfloat16,causal=true",
        "B=2,H=4,HKV=1,SQ=64,SK=32,D=40,dtype=float32,causal=true,DV=24,window=9",
        "B=2,H=1,HKV=1,SQ=128,SK=64,D=16,dtype=float16,layout=s,window=30,fill=100",
    ),
    tolerances=TOLERANCES,
    signature=compile_signature,
    rule=rule,
    operator=OPERATOR,
)
