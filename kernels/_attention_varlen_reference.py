"""What ``attention_varlen`` must compute: attention of one sequence after the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from autotune.kernels._attention_operator import lse_dtype
from autotune.kernels._attention_reference import attend
from autotune.kernels._attention_varlen_operator import check, check_values
from autotune.kernels._masks import binding_window


def reference(
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
    check(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    check_values(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    tokens, heads, _ = q.shape
    out = q.new_zeros((tokens, heads, v.shape[2]))
    lse = q.new_full((heads, tokens), float("-inf"), dtype=lse_dtype(q))
    q_ends, k_ends = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for number in range(len(q_ends) - 1):
        rows, columns = slice(*q_ends[number : number + 2]), slice(*k_ends[number : number + 2])
        one_out, one_lse = attend(
            *(tensor.transpose(0, 1)[None] for tensor in (q[rows], k[columns], v[columns])),
            causal=causal,
            scale=scale,
            window=binding_window(window, max_seqlen_q, max_seqlen_k),
            softcap=None,
            shift=(columns.stop - columns.start) - (rows.stop - rows.start),
        )
        out[rows], lse[:, rows] = one_out[0].transpose(0, 1), one_lse[0]
    return out, lse


def baseline(
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
) -> torch.Tensor:
    """torch's varlen_attn, where it runs: 16 bits on a GPU, values as wide as keys; elsewhere the reference."""
    fast = None
    if q.device.type != "cpu" and q.dtype != torch.float32 and v.shape[2] == q.shape[2]:
        fast = torchs_varlen_attn()
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    if fast is None:
        return reference(q, k, v, *lengths, causal, scale, window)[0]
    left = -1 if window is None else window - 1
    result = fast(q, k, v, *lengths, scale=scale, window_size=(left, 0 if causal else left), enable_gqa=True)
    assert isinstance(result, torch.Tensor)  # without aux there is no second one
    return result


@cache
def torchs_varlen_attn() -> Callable[..., Any] | None:
    """None where torch's has no windows, or no groups of heads, yet."""
    from torch.nn.attention.varlen import varlen_attn  # takes a second to import

    has = inspect.signature(varlen_attn).parameters
    return varlen_attn if all(name in has for name in ("scale", "window_size", "enable_gqa")) else None
