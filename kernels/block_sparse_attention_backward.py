"""``block_sparse_attention_backward``: the gradients of ``block_sparse_attention``, (dq, dk, dv), over its blocks.

Scores are computed anew from q, k and the logarithms of the softmax's sums that the forward pass left; keys and
values go through the mask's lists by column, queries through those by row. No other block is read.
``_block_sparse_attention_backward.py`` and ``_block_sparse_attention_backward_queries.py`` have the kernels.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from autotune.data import ITEMSIZE, Config, Problem
from autotune.kernel import Kernel, Signature, Work
from autotune.kernels._attention_backward_launch import named, row_contiguous
from autotune.kernels._attention_tiles import TOLERANCES, check_width, strides
from autotune.kernels._block_mask import BlockMask
from autotune.kernels._block_sparse_attention_backward import listed_keys_gradient
from autotune.kernels._block_sparse_attention_backward_launch import signatures, steps
from autotune.kernels._block_sparse_attention_backward_operator import OPERATOR, check_gradients
from autotune.kernels._block_sparse_attention_backward_reference import PROVIDERS, reference, sdpa
from autotune.kernels._block_sparse_attention_operator import check_values
from autotune.kernels._block_sparse_attention_problem import (
    FIELDS,
    draw_heads,
    draw_mask,
    fullness,
    kept_blocks,
    rule,
    sizes,
    traits,
)
from autotune.kernels._block_sparse_attention_reference import reference as attend
from autotune.kernels._launch import launch, must_widen
from autotune.kernels._masks import score_factors
from autotune.kernels._tensors import aligned, dtype_name, heads_layout, random

_SIZES = ("B", "H", "HKV", "SQ", "SK", "D", "DV")


def problem(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: BlockMask,
    scale: float | None = None,
) -> Problem:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or scale is not finite."""
    check_gradients(d_out, d_lse, q, k, v, out, lse, mask, scale)
    batch, heads, rows, head_dim = q.shape
    return KERNEL.make(
        B=batch,
        H=heads,
        HKV=k.shape[1],
        SQ=rows,
        SK=k.shape[2],
        D=check_width("q", head_dim),
        dtype=dtype_name(q=q, k=k, v=v),
        layout=heads_layout(q, k, v),
        aligned=aligned(q, k, v),
        DV=0 if v.shape[3] == head_dim else check_width("v", v.shape[3]),
        **traits(mask),
    )


def key(
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: BlockMask,
    scale: float | None = None,
) -> Hashable:
    # What else must be so run checks.
    return (
        *(q.shape, k.shape, v.shape, q.stride(), k.stride(), v.stride()),
        *(q.dtype, q.dtype is k.dtype is v.dtype, q.get_device()),
        (q.data_ptr() | k.data_ptr() | v.data_ptr()) & 15,
        # The last: shape, block, batches, heads, rules.
        *(fullness(mask), mask.q_documents is None, mask[4:]),
    )


def inputs(problem: Problem, seed: int, device: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = draw_heads(problem, generator, device)
    d_out = random(*q.shape[:3], v.shape[3], dtype=str(problem["dtype"]), device=device, generator=generator)
    mask = draw_mask(problem, generator, device)
    return d_out, None, q, k, v, *attend(q, k, v, mask), mask, None


def run(
    config: Config,
    d_out: torch.Tensor,
    d_lse: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: BlockMask,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv), contiguous, in the dtype of ``q``; see :func:`block_sparse_attention_backward`."""
    check_gradients(d_out, d_lse, q, k, v, out, lse, mask, scale)
    check_values(mask)
    score_scale, _ = score_factors(scale, None, q.shape[3])
    if must_widen(listed_keys_gradient, q):
        wide = [t.float() for t in (d_out, q, k, v, out)]
        dq, dk, dv = run(config, wide[0], d_lse, wide[1], wide[2], wide[3], wide[4], lse, mask, scale)
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)
    d_out, out, lse = row_contiguous(d_out), row_contiguous(out), lse.contiguous()
    integers = {
        **dict(
            zip(_SIZES, (*q.shape[:2], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3]), strict=True)
        ),
        **{"window": mask.window, "mask_batches": mask.batches, "mask_heads": mask.heads},
        **named("q", "bhmd", q),
        **named("k", "bhnd", k),
        **named("v", "bhnd", v),
        **named("g", "bhm", d_out),
        **named("o", "bhm", out),
    }
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    values = {
        **{"q": q, "k": k, "v": v, "d_out": d_out, "out": out, "lse": lse, "delta": torch.empty_like(lse)},
        **{"d_lse": lse if d_lse is None else d_lse.contiguous(), "dq": dq, "dk": dk, "dv": dv},
        **{"q_documents": mask.q_documents, "k_documents": mask.k_documents, "score_scale": score_scale},
        "scale": q.shape[3] ** -0.5 if scale is None else scale,
    }
    launches = steps(
        integers,
        config,
        block=mask.block,
        causal=mask.is_causal,
        documents=mask.q_documents is not None,
        has_d_lse=d_lse is not None,
    )
    # The first takes no lists.
    for step, lists in zip(launches, (mask.by_row, mask.by_column, mask.by_row), strict=True):
        if step.programs:
            arguments = step.positional({**values, **lists._asdict()})
            launch(step.function, step.programs, *arguments, config=step.config, **step.named())
    return dq, dk, dv


def work(problem: Problem) -> Work:
    """Of whole blocks, hidden pairs included: that is what the tensor cores do."""
    batch, heads, kv_heads, rows, columns, head_dim, value_dim = sizes(problem)
    pairs = kept_blocks(problem) * problem.integer("BLOCK_Q") * problem.integer("BLOCK_KV")
    # Of the five products three are as wide as keys, two as values.
    flops = 2 * batch * heads * pairs * (3 * head_dim + 2 * value_dim)
    # q, k, v and their gradients, out and d_out; lse.
    elements = 2 * (head_dim + value_dim) * (heads * rows + kv_heads * columns)
    return Work(flops=flops, bytes=batch * (elements * ITEMSIZE[str(problem["dtype"])] + 4 * heads * rows))


def compile_signature(problem: Problem, config: Config) -> tuple[Signature, ...]:
    batch, heads, kv_heads, rows, columns, head_dim, value_dim = sizes(problem)
    by_row = {"b": heads * rows * value_dim, "h": rows * value_dim, "m": value_dim}
    integers = {
        **dict(zip(_SIZES, sizes(problem), strict=True)),
        # Some window: of its value it matters only whether it is 1 or a multiple of 16.
        **{"window": 1023 if problem.get("window", False) else 0, "mask_batches": 1},
        "mask_heads": heads if problem.get("per_head", False) else 1,
        **strides("q", "bhmd", (batch, heads, rows, head_dim), problem),
        **strides("k", "bhnd", (batch, kv_heads, columns, head_dim), problem),
        **strides("v", "bhnd", (batch, kv_heads, columns, value_dim), problem),
        **{f"stride_{name}{axis}": stride for name in "go" for axis, stride in by_row.items()},
    }
    launches = steps(
        integers,
        config,
        block=(problem.integer("BLOCK_Q"), problem.integer("BLOCK_KV")),
        causal=bool(problem.get("causal", False)),
        documents=bool(problem.get("documents", False)),
        has_d_lse=False,
    )
    return signatures(launches, dtype=str(problem["dtype"]), aligned=bool(problem.get("aligned", True)))


KERNEL = Kernel(
    fields=FIELDS,
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    baseline=sdpa,
    work=work,
    problems=(
        "B=1,H=1,HKV=1,SQ=192,SK=192,D=64,BLOCK_Q=64,BLOCK_KV=64,density=50,dtype=float16,causal=true",
        "B=2,H=2,HKV=1,SQ=60,SK=75,D=40,BLOCK_Q=32,BLOCK_KV=64,density=50,dtype=bfloat16,layout=bshd,DV=24",
        "B=1,H=2,HKV=1,SQ=120,SK=128,D=16,BLOCK_Q=64,BLOCK_KV=32,density=50,dtype=float32,window=true,per_head=true",
        "B=1,H=1,HKV=1,SQ=150,SK=150,D=32,BLOCK_Q=64,BLOCK_KV=64,density=50,dtype=float16,causal=true,documents=true",
    ),
    tolerances=TOLERANCES,
    signature=compile_signature,
    providers=PROVIDERS,
    flips="density",
    rule=rule,
    operator=OPERATOR,
)
