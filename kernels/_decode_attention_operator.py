"""The torch side of ``decode_attention``: what its arguments must be, and the operator."""

from __future__ import annotations

import math

import torch

from autotune.arithmetic import cdiv
from autotune.kernel import Operator
from autotune.kernels._values import checks_values

_INDICES = (torch.int32, torch.int64)


def check(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor | None,
    scale: float | None,
    window: int | None,
) -> None:
    """All that can be said without reading numbers on a device.

    :raises ValueError: if ranks, shapes, head counts, dtypes or devices don't fit together, the scale is not
        finite, or the window is under 1.
    """
    floats = {"q": q, "k_cache": k_cache, "v_cache": v_cache}
    for name, tensor in floats.items():
        if tensor.dim() != 4:
            takes = "batch, 1, heads, head_dim" if name == "q" else "batch or pages, keys, kv_heads, head_dim"
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; decode_attention takes ({takes})")
    batch, tokens, heads, head_dim = q.shape
    if tokens != 1:
        raise ValueError(f"q is {tuple(q.shape)}, {tokens} tokens a sequence; decode_attention takes one")
    if k_cache.shape[:3] != v_cache.shape[:3]:
        raise ValueError(
            f"k_cache is {tuple(k_cache.shape)} and v_cache is {tuple(v_cache.shape)}; "
            "all but their head_dim must be equal"
        )
    if k_cache.shape[3] != head_dim:
        raise ValueError(f"q has head_dim {head_dim} and k_cache {k_cache.shape[3]}; they must be equal")
    kv_heads = k_cache.shape[2]
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        raise ValueError(f"q has {heads} heads and k_cache {kv_heads}; those of k_cache must divide those of q")
    if seq_lens.shape != (batch,):
        raise ValueError(f"seq_lens has shape {tuple(seq_lens.shape)}; q has {batch} sequences, so ({batch},)")
    indices = {"seq_lens": seq_lens}
    if block_table is None:
        if k_cache.shape[0] != batch:
            raise ValueError(
                f"k_cache has {k_cache.shape[0]} sequences and q {batch}; without a block_table they must be equal"
            )
    else:
        if block_table.dim() != 2 or block_table.shape[0] != batch:
            raise ValueError(
                f"block_table has shape {tuple(block_table.shape)}; it must be ({batch}, pages of a sequence)"
            )
        if k_cache.shape[1] == 0:
            raise ValueError(f"k_cache is {tuple(k_cache.shape)}; a page must hold at least one key")
        indices["block_table"] = block_table
    for name, tensor in indices.items():
        if tensor.dtype not in _INDICES:
            raise ValueError(f"{name} is {tensor.dtype}; it must be int32 or int64")
    for name, tensor in (floats | indices).items():
        if name in floats and tensor.dtype != q.dtype:
            raise ValueError(f"{name} is {tensor.dtype} but q is {q.dtype}; convert one of them")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device} but q is on {q.device}; move one of them")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; it must be finite")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be at least 1, or None")


def check_values(
    k_cache: torch.Tensor, seq_lens: torch.Tensor, block_table: torch.Tensor | None, window: int | None
) -> None:
    """Whether the lengths fit the cache, and the pages that hold visible keys exist. On a GPU only on request.

    :raises ValueError: naming the first sequence where not.
    """
    if not checks_values(seq_lens):
        return
    keys = k_cache.shape[1]
    capacity = keys if block_table is None else keys * block_table.shape[1]
    lengths = seq_lens.tolist()
    for sequence, length in enumerate(lengths):
        if not 0 <= length <= capacity:
            raise ValueError(f"seq_lens[{sequence}] is {length}; a sequence has 0 to {capacity} keys")
    if block_table is None:
        return
    for sequence, (length, pages) in enumerate(zip(lengths, block_table.tolist(), strict=True)):
        oldest = 0 if window is None else max(0, length - window)
        for place in range(oldest // keys, cdiv(length, keys)):
            if not 0 <= pages[place] < k_cache.shape[0]:
                raise ValueError(
                    f"block_table[{sequence}, {place}] is {pages[place]}, but k_cache has pages 0 to "
                    f"{k_cache.shape[0] - 1} and the sequence {length} keys"
                )


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Attention of one new token a sequence to the keys cached for it, its own among them.

    :param q: (batch, 1, heads, head_dim)
    :param k_cache: (batch, capacity, kv_heads, head_dim), kv_heads dividing heads; with a ``block_table``
        (pages, page_size, kv_heads, head_dim). Any strides.
    :param v_cache: as ``k_cache``, but for its head_dim
    :param seq_lens: (batch,) int32 or int64: keys of each sequence, from 0, which gives 0, up to the capacity
    :param block_table: (batch, pages of a sequence) int32 or int64: the page of each page_size keys. Entries past a
        sequence's last page, and pages that the window hides, are not read: they may be anything.
    :param scale: default head_dim ** -0.5
    :param window: how many of the last keys are seen; None: all
    :return: (batch, 1, heads, head_dim of ``v_cache``), contiguous, in the dtype of ``q``

    float16, bfloat16 and float32 with head_dim up to 256 run the tuned kernel, others torch's. Accumulates in
    float32, whatever autocast says. Equal from run to run. Not differentiable. The host never waits for the device,
    so that a CUDA graph may hold it: a length over the capacity, or a page that is not there, is then undefined,
    unless the environment variable AUTOTUNE_CHECK_VALUES is 1.

    :raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or scale or window are off;
        on a CPU also if lengths or pages are out of range.
    """
    check(q, k_cache, v_cache, seq_lens, block_table, scale, window)
    result: torch.Tensor = torch.ops.autotune.decode_attention(
        q, k_cache, v_cache, seq_lens, block_table, scale, window
    )
    return result


def _fake(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    return q.new_empty((*q.shape[:3], v_cache.shape[3]))


OPERATOR = Operator(
    front=decode_attention,
    schema=(
        "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor seq_lens, Tensor? block_table=None, "
        "float? scale=None, int? window=None) -> Tensor"
    ),
    fake=_fake,
    backward=None,
)
