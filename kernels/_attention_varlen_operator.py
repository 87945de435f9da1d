"""The torch side of ``attention_varlen``: its operator, and what it asks of its arguments."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernel import Operator
from autotune.kernels._attention_operator import (
    check_heads_and_kinds,
    check_options,
    lse_dtype,
    of_out_and_lse,
)
from autotune.kernels._values import checks_values


def check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> None:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together. Looks at no offset."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 3:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; attention_varlen takes (tokens, heads, head_dim)"
            )
    if k.shape[:2] != v.shape[:2]:
        raise ValueError(f"k is {tuple(k.shape)} and v is {tuple(v.shape)}; all but their last sizes must be equal")
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"q is {tuple(q.shape)} and k is {tuple(k.shape)}; head_dim must be equal")
    check_heads_and_kinds(q, k, v)
    for name, offsets in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if offsets.dim() != 1 or offsets.dtype not in (torch.int32, torch.int64) or len(offsets) < 1:
            raise ValueError(
                f"{name} is {offsets.dtype} {tuple(offsets.shape)}; it must be int32 or int64 of (batch + 1,)"
            )
        if offsets.device != q.device:
            raise ValueError(f"{name} is on {offsets.device} but q is on {q.device}; move one of them")
    if len(cu_seqlens_q) != len(cu_seqlens_k):
        raise ValueError(
            f"cu_seqlens_q has {len(cu_seqlens_q)} entries and cu_seqlens_k {len(cu_seqlens_k)}; they must be equal"
        )
    for name, longest in (("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k)):
        # A number that a traced program works out cannot be looked at.
        if not torch.compiler.is_compiling() and longest < 0:
            raise ValueError(f"{name} is {longest}; it must not be negative")


def check_values(
    q: torch.Tensor,
    k: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> None:
    """:raises ValueError: if the offsets are no ascending ones from 0 to the tokens, in steps up to the maximum.

    On a GPU only on request, see :func:`checks_values`.
    """
    for side, offsets, tokens, longest in (
        ("q", cu_seqlens_q, q.shape[0], max_seqlen_q),
        ("k", cu_seqlens_k, k.shape[0], max_seqlen_k),
    ):
        if not checks_values(offsets):
            continue
        if offsets[0] != 0:
            raise ValueError(f"cu_seqlens_{side} starts at {int(offsets[0])}; it must start at 0")
        if offsets[-1] != tokens:
            raise ValueError(
                f"cu_seqlens_{side} ends at {int(offsets[-1])}; it must end at the {tokens} tokens of {side}"
            )
        lengths = offsets.diff()
        if (lengths < 0).any():
            raise ValueError(f"cu_seqlens_{side} decreases by {-int(lengths.min())}; it must never decrease")
        if lengths.numel() and int(lengths.max()) > longest:
            raise ValueError(
                f"cu_seqlens_{side} has a sequence of {int(lengths.max())} tokens; "
                f"none may be longer than max_seqlen_{side}, {longest}"
            )


def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """:func:`attention` of sequences of unequal lengths that follow one another without padding.

    :param q: (tokens_q, heads, head_dim)
    :param k: (tokens_k, kv_heads, head_dim), kv_heads dividing heads
    :param v: (tokens_k, kv_heads, head_dim_v)
    :param cu_seqlens_q: (batch + 1,) int32, or int64 at the cost of a copy: where each sequence begins, and the
        number of tokens last; ``cu_seqlens_k`` likewise. Sequences may be empty
    :param max_seqlen_q: the longest sequence of queries, or more. Queries beyond it are not computed, so on a
        GPU, where nobody looks, their results are undefined; ``max_seqlen_k`` is for the choice of config
    :param causal: aligned at the end: query i of a sequence of sq queries and sk keys is at position i + sk - sq
        and sees the keys up to there
    :param scale: default head_dim ** -0.5; any finite number
    :param window: a query sees only keys less than this far from its position
    :param return_lse: also return (heads, tokens_q) of the log of each row's sum of exp(score), float32

    Returns (tokens_q, heads, head_dim_v). A query that sees no key gives 0, and lse -inf. Differentiable in
    reverse mode.

    :raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or an option or, on a CPU,
        an offset breaks its rule.
    """
    check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    check_options(scale, window)
    out, lse = torch.ops.autotune.attention_varlen(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale, window
    )
    return (out, lse) if return_lse else out


def _fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, heads, _ = q.shape
    return q.new_empty((tokens, heads, v.shape[2])), q.new_empty((heads, tokens), dtype=lse_dtype(q))


def _backward(
    gradients: tuple[torch.Tensor | None, ...], inputs: tuple[Any, ...], results: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    q, k, v, *others = inputs
    d_out, d_lse = of_out_and_lse(gradients, results)
    computed = torch.ops.autotune.attention_varlen_backward(d_out, d_lse, q, k, v, *results, *others)
    return (*computed, *[None] * len(others))


OPERATOR = Operator(
    front=attention_varlen,
    schema=(
        "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, "
        "SymInt max_seqlen_k, bool causal=False, float? scale=None, int? window=None) -> (Tensor, Tensor)"
    ),
    fake=_fake,
    backward=_backward,
    saves_results=True,
)
