"""What torch's users would run instead of a kernel, by the columns of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from autotune import registry
from autotune.data import Device, Problem
from autotune.kernel import Kernel
from benchmarks._fbgemm import fbgemm
from benchmarks._flex import flex

#: The kernel's arguments -> a result like the kernel's.
Peer: TypeAlias = Callable[..., Any]

#: Column -> what torch's scaled_dot_product_attention is held to; None: what it picks.
BACKENDS: Mapping[str, SDPBackend | None] = {
    "torch": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
#: Kernels whose baseline is SDPA, to be had by any of the backends.
ATTENTIONS = ("attention", "decode_attention")


def columns(name: str) -> tuple[str, ...]:
    """The peers of the kernel called ``name``: torch, the kernel's providers, and other ways to compute it."""
    own = tuple(BACKENDS) if name in ATTENTIONS else ("torch",)
    return tuple(dict.fromkeys((*own, *registry.load(name).kernel.providers, *OTHERS.get(name, ()))))


def peer(name: str, kernel: Kernel, column: str) -> Peer:
    """One of :func:`columns`."""
    if column in OTHERS.get(name, ()):
        return OTHERS[name][column]
    if column in kernel.providers:
        return kernel.providers[column].run
    function = kernel.baseline or kernel.reference
    return partial(_held_to, BACKENDS[column], function) if name in ATTENTIONS else function


def lacking(name: str, kernel: Kernel, column: str, problem: Problem, device: Device) -> str | None:
    """None, or why a provider among :func:`columns` can't serve ``problem`` on ``device``."""
    if column not in kernel.providers or column in OTHERS.get(name, ()):
        return None
    return kernel.providers[column].unavailable(problem, device)


def _held_to(backend: SDPBackend | None, function: Peer, *args: Any) -> Any:
    with nullcontext() if backend is None else sdpa_kernel([backend]):
        return function(*args)


def _unmasked(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor | None,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """decode_attention by torch's fastest, which take no mask: right where each sequence fills its room."""
    if table is not None:
        k_cache, v_cache = (cache[table.clamp(min=0).long()].flatten(1, 2) for cache in (k_cache, v_cache))
    grouped = q.shape[2] != k_cache.shape[2]
    q, k_cache, v_cache = (tensor.transpose(1, 2) for tensor in (q, k_cache, v_cache))
    return scaled_dot_product_attention(q, k_cache, v_cache, scale=scale, enable_gqa=grouped).transpose(1, 2)


def _balanced(x: torch.Tensor, w: torch.Tensor, *rest: Any) -> torch.Tensor:
    """A batched product of as many operations as the grouped one of ``x``, with groups of one size."""
    groups = w.shape[0]
    tokens = x.shape[0] // groups
    return torch.bmm(x[: tokens * groups].reshape(groups, tokens, -1), w)


def _looped(*args: Any) -> Any:
    """A product a group, as the reference does it."""
    return registry.load("grouped_gemm").kernel.reference(*args)


#: Kernel -> column -> what no call of torch does by itself.
OTHERS: Mapping[str, Mapping[str, Peer]] = {
    "decode_attention": {"unmasked": _unmasked},
    "block_sparse_attention": {"flex": flex},
    "embedding_bag": {"fbgemm": fbgemm},
    "grouped_gemm": {"loop": _looped, "balanced": _balanced},
}
#: Columns of as much work that compute something else.
UNLIKE = frozenset({"balanced"})
