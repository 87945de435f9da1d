"""The torch side of ``block_sparse_attention``: what its arguments must be, the operator and its gradient.

torch.compile knows no tuples of tensors in operators, so a mask goes in flat: PARTS below, in the order of
:func:`flat`, which :func:`mask_of` puts together again. The gradients are those of

    block_sparse_attention_backward(Tensor d_out, Tensor? d_lse, Tensor q, Tensor k, Tensor v, Tensor out,
        Tensor lse, PARTS, float? scale, bool causal) -> (Tensor dq, Tensor dk, Tensor dv)

without defaults, since torch leaves out last arguments that equal theirs. Its kernel takes (d_out, d_lse, q, k, v,
out, lse, mask, scale), with the causal half already taken of the mask.
"""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernel import Operator
from autotune.kernels._attention_operator import check as check_tensors
from autotune.kernels._attention_operator import lse_dtype, of_out_and_lse
from autotune.kernels._block_mask import BLOCKS, BlockMask
from autotune.kernels._block_mask_kept import check_lists, of_blocks, with_causal
from autotune.kernels._block_mask_lists import BlockLists
from autotune.kernels._masks import score_factors
from autotune.kernels._values import checks_values

#: A mask in an operator's schema. SQ and SK are those of q and k.
PARTS = (
    "Tensor row_offsets, Tensor row_partial, Tensor row_blocks, Tensor rows_longest_first, "
    "Tensor column_offsets, Tensor column_partial, Tensor column_blocks, Tensor columns_longest_first, "
    "Tensor? q_documents, Tensor? k_documents, int block_q, int block_k, int batches, int heads, "
    "bool is_causal, int window"
)


def flat(mask: BlockMask) -> tuple[Any, ...]:
    """The mask as the arguments that PARTS names."""
    documents = mask.q_documents, mask.k_documents
    counts = mask.batches, mask.heads, mask.is_causal, mask.window
    return *mask.by_row, *mask.by_column, *documents, *mask.block, *counts


def mask_of(q: torch.Tensor, k: torch.Tensor, parts: tuple[Any, ...], causal: bool) -> BlockMask:
    """The mask of :func:`flat` arguments, without keys after the query if ``causal``."""
    q_documents, k_documents, block_q, block_k, batches, heads, is_causal, window = parts[8:]
    mask = BlockMask(
        BlockLists(*parts[:4]),
        BlockLists(*parts[4:8]),
        q_documents,
        k_documents,
        (q.shape[2], k.shape[2]),
        (block_q, block_k),
        batches,
        heads,
        is_causal,
        window,
    )
    return with_causal(mask, causal)


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float | None) -> None:
    """All that can be said without reading numbers on a device.

    :raises ValueError: if shapes, head counts, dtypes or devices don't fit together, the scale is not finite, or
        the mask's lists have other sizes than it says.
    """
    _check_call(q, k, v, mask, scale)
    planes, (rows, columns) = mask.batches * mask.heads, mask.grid
    count = mask.by_row.blocks.numel()
    parts: list[tuple[str, torch.Tensor, tuple[int, ...]]] = []
    for side, lists, length in (
        ("by_row", mask.by_row, planes * rows),
        ("by_column", mask.by_column, planes * columns),
    ):
        sizes = ((length + 1,), (length,), (count,), (length,))
        names = (f"{side}.{name}" for name in lists._fields)
        parts += zip(names, lists, sizes, strict=True)
    for name, documents, length in (("q", mask.q_documents, q.shape[2]), ("k", mask.k_documents, k.shape[2])):
        if (documents is None) != (mask.q_documents is None):
            raise ValueError("mask has documents of queries or of keys alone; it must have both or none")
        if documents is not None:
            parts.append((f"{name}_documents", documents, (mask.batches, length)))
    for name, tensor, shape in parts:
        if tensor.dtype != torch.int32 or tuple(tensor.shape) != shape or not tensor.is_contiguous():
            kind = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"mask.{name} is {kind}; it must be int32 {shape}, contiguous")
        if tensor.device != q.device:
            raise ValueError(f"mask.{name} is on {tensor.device} but q is on {q.device}; move one of them")


def _check_call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float | None) -> None:
    """:func:`check`, but for the mask's tensors."""
    check_tensors(q, k, v)
    if not isinstance(mask, BlockMask):
        raise ValueError(f"mask is a {type(mask).__name__}; it must be a BlockMask")
    score_factors(scale, None, 1)
    batch, heads, rows, columns = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
    if tuple(mask.shape) != (rows, columns):
        raise ValueError(f"mask is for {tuple(mask.shape)} queries and keys; q and k have {rows} and {columns}")
    if mask.by_row.offsets.device != q.device:
        raise ValueError(f"mask is on {mask.by_row.offsets.device} but q is on {q.device}; make it there")
    if any(size not in BLOCKS for size in mask.block):
        raise ValueError(f"mask has blocks of {tuple(mask.block)}; sizes are {', '.join(map(str, BLOCKS))}")
    if mask.window < 0:
        raise ValueError(f"mask has window {mask.window}; it must be at least 1, or 0 for none")
    if mask.batches not in (1, batch) or mask.heads not in (1, heads):
        raise ValueError(
            f"mask is for {mask.batches} batches and {mask.heads} heads and q has {batch} and {heads}; "
            "each must be 1 or equal"
        )


def check_values(mask: BlockMask) -> None:
    """:raises ValueError: if the lists are not what the class methods make. On a GPU only on request."""
    if checks_values(mask.by_row.offsets):
        check_lists(mask)


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: BlockMask | torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T) v over the blocks of a mask; no other key or value is read.

    :param q: (batch, heads, seq_q, head_dim)
    :param k: (batch, kv_heads, seq_k, head_dim), kv_heads dividing heads
    :param v: (batch, kv_heads, seq_k, head_dim_v)
    :param mask: an ``autotune.ops.BlockMask``, made by its ``causal``, ``sliding_window``, ``document`` or
        ``from_blocks``; or boolean, ([batch,] [heads,] row blocks, key blocks), of blocks of 16, 32, 64 or
        128 that make up seq_q and seq_k. What is worked out of a mask is kept with it: make it once, and a boolean
        one not in torch.inference_mode(). Where torch.compile traces it must be a BlockMask
    :param causal: query i sees keys 0 to i (top-left, as torch does), and of the mask no others. The first call
        works out which blocks are left, which a CUDA graph can't record: give it ``mask.and_causal()``
    :param scale: default head_dim ** -0.5; any finite number

    Returns (batch, heads, seq_q, head_dim_v). float16, bfloat16 and float32 with head dimensions up to 256 run the
    tuned kernel, others torch's. A query that sees no key gives 0. Accumulates in float32, whatever autocast says.
    Differentiable in reverse mode.

    :raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or the scale is not finite.
    """
    if isinstance(mask, torch.Tensor):
        check_tensors(q, k, v)
        if torch.compiler.is_compiling():
            raise ValueError(
                "mask is a tensor; under torch.compile make it a BlockMask, with BlockMask.from_blocks"
            )
        if mask.device != q.device:
            raise ValueError(f"mask is on {mask.device} but q is on {q.device}; move one of them")
        mask = of_blocks(mask, q.shape[2], k.shape[2])
    # The lists are looked at once, where they are used.
    _check_call(q, k, v, mask, scale)
    out: torch.Tensor = torch.ops.autotune.block_sparse_attention(q, k, v, *flat(mask), scale, causal)[0]
    return out


def _fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=lse_dtype(q))


def _backward(
    gradients: tuple[torch.Tensor | None, ...], inputs: tuple[Any, ...], results: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor | None, ...]:
    q, k, v, *others = inputs
    d_out, d_lse = of_out_and_lse(gradients, results)
    computed = torch.ops.autotune.block_sparse_attention_backward(d_out, d_lse, q, k, v, *results, *others)
    return (*computed, *[None] * len(others))


def _kernel_args(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> tuple[Any, ...]:
    *parts, scale, causal = others
    return q, k, v, mask_of(q, k, tuple(parts), causal), scale


def _apply(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float | None = None
) -> torch.Tensor:
    return block_sparse_attention(q, k, v, mask, scale=scale)


OPERATOR = Operator(
    front=block_sparse_attention,
    schema=f"(Tensor q, Tensor k, Tensor v, {PARTS}, float? scale, bool causal) -> (Tensor, Tensor)",
    fake=_fake,
    backward=_backward,
    kernel_args=_kernel_args,
    apply=_apply,
    saves_results=True,
    types=(BlockMask,),
)
