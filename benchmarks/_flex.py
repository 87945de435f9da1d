"""torch's flex_attention over the blocks of one of our masks, as a peer of block_sparse_attention."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention import flex_attention as torch_flex

from autotune.kernels._block_mask import BlockMask
from autotune.kernels._block_mask_kept import kept
from autotune.kernels._block_mask_lists import decoded


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float | None = None) -> Any:
    """(batch, heads, SQ, DV). Compiled where there is a GPU."""
    attend = _compiled() if q.is_cuda else torch_flex.flex_attention
    grouped = q.shape[1] != k.shape[1]
    return attend(q, k, v, block_mask=kept(mask, "flex", _translated), scale=scale, enable_gqa=grouped)


@cache
def _compiled() -> Any:
    return torch.compile(torch_flex.flex_attention)


def _translated(mask: BlockMask) -> Any:
    row, column, whole = decoded(mask.by_row)
    rows, columns = mask.grid

    def dense(chosen: torch.Tensor) -> torch.Tensor:
        """(batches, heads, rows, columns): whether a block is among those."""
        blocks = torch.zeros(mask.batches * mask.heads * rows, columns, dtype=torch.bool, device=row.device)
        blocks[row[chosen].long(), column[chosen].long()] = True
        return blocks.view(mask.batches, mask.heads, rows, columns)

    def lists(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How many blocks each row has, and their columns, those it has not after them."""
        return blocks.sum(-1).int(), blocks.int().argsort(stable=True, dim=-1, descending=True).int()

    every = dense(torch.ones_like(whole))

    def visible(batch: Any, head: Any, i: Any, j: Any) -> Any:
        seen = i >= 0
        if not row.is_cuda:  # where it is not compiled, it does not look at the lists
            seen = every[batch % mask.batches, head % mask.heads, i // mask.block[0], j // mask.block[1]]
        if mask.is_causal:
            seen = seen & (j <= i)
        if mask.window:
            seen = seen & ((i - j).abs() < mask.window)
        if mask.q_documents is not None and mask.k_documents is not None:
            batch = batch % mask.batches
            seen = seen & (mask.q_documents[batch, i] == mask.k_documents[batch, j])
        return seen

    return torch_flex.BlockMask.from_kv_blocks(
        *lists(dense(~whole)), *lists(dense(whole)), BLOCK_SIZE=mask.block, mask_mod=visible, seq_lengths=mask.shape
    )
