"""What is worked out once of a block mask and kept with it: that it is right, its causal half, its dense form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from autotune.kernels._block_mask import BLOCKS, BlockMask
from autotune.kernels._block_mask_lists import BlockLists, decoded, listed

_Fact = TypeVar("_Fact")


def kept(mask: BlockMask, name: str, make: Callable[[BlockMask], _Fact]) -> _Fact:
    """``make(mask)``, from where it was kept on the tensor of offsets if nothing has changed since."""
    anchor: Any = mask.by_row.offsets
    parts = (*mask.by_row, *mask.by_column, mask.q_documents, mask.k_documents)
    state = (*(None if part is None else (part.data_ptr(), _version(part)) for part in parts), *mask[4:])
    facts = anchor.__dict__.setdefault("_autotune_facts", {})
    known = facts.get(name)
    if known is None or known[0] != state:
        known = facts[name] = (state, make(mask))
    fact: _Fact = known[1]
    return fact


def _version(tensor: torch.Tensor) -> int:
    """Changes when the numbers in it are overwritten; tensors made in inference mode don't count."""
    return 0 if tensor.is_inference() else tensor._version


def with_causal(mask: BlockMask, causal: bool) -> BlockMask:
    """The mask, without keys after the query if ``causal``."""
    return kept(mask, "causal", BlockMask.and_causal) if causal and not mask.is_causal else mask


def of_blocks(blocks: torch.Tensor, SQ: int, SK: int) -> BlockMask:
    """The mask of a boolean matrix whose blocks divide SQ and SK, kept on the matrix.

    :raises ValueError: if they don't, or are no powers of two from 16 to 128.
    """
    if blocks.dim() < 2:
        raise ValueError(f"mask has shape {tuple(blocks.shape)}; it must be (row blocks, key blocks) at least")
    sizes = []
    for name, size, count in zip(("seq_q", "seq_k"), (SQ, SK), blocks.shape[-2:], strict=True):
        if count == 0 or size % count or size // count not in BLOCKS:
            raise ValueError(
                f"mask is {tuple(blocks.shape)}, {count} blocks of {name} {size}; blocks of one of "
                f"{', '.join(map(str, BLOCKS))} must make it up, else use BlockMask.from_blocks"
            )
        sizes.append(size // count)
    state = _version(blocks), SQ, SK
    known = blocks.__dict__.get("_autotune_mask")
    if known is None or known[0] != state:
        made = BlockMask.from_blocks(blocks, SQ, SK, (sizes[0], sizes[1]))
        known = blocks.__dict__["_autotune_mask"] = (state, made)
    mask: BlockMask = known[1]
    return mask


def check_lists(mask: BlockMask) -> None:
    """Whether the lists of a mask are what its class methods make. Reads the device; once a mask.

    :raises ValueError: if offsets don't ascend, blocks are out of range, repeated or out of order, or the lists by
        row and by column are not those of the same blocks.
    """
    kept(mask, "right", _check_lists)


def _check_lists(mask: BlockMask) -> bool:
    rows, columns = mask.grid
    for name, lists, across in (("by_row", mask.by_row, columns), ("by_column", mask.by_column, rows)):
        _check_offsets(name, lists)
        if lists.blocks.numel() and not 0 <= int(lists.blocks.min()) <= int(lists.blocks.max()) < across:
            low, high = int(lists.blocks.min()), int(lists.blocks.max())
            raise ValueError(f"mask.{name} lists blocks from {low} to {high}; there are 0 to {across - 1}")
    again = listed(*decoded(mask.by_row), mask.batches * mask.heads, mask.grid)
    row, other, _ = decoded(mask.by_row)
    if len(torch.unique(row * max(1, columns) + other)) != len(row):
        raise ValueError("mask.by_row lists a block twice in one row")
    for name, lists, right in (("by_row", mask.by_row, again[0]), ("by_column", mask.by_column, again[1])):
        if not all(torch.equal(*pair) for pair in zip(lists, right, strict=True)):
            raise ValueError(
                f"mask.{name} is out of order or not of the blocks of by_row; use BlockMask.from_blocks"
            )
    return True


def _check_offsets(name: str, lists: BlockLists) -> None:
    starts, ends = lists.offsets[:-1], lists.offsets[1:]
    ascending = bool(((starts <= lists.partial) & (lists.partial <= ends)).all())
    if not ascending or int(lists.offsets[0]) != 0 or int(lists.offsets[-1]) != lists.blocks.numel():
        raise ValueError(
            f"mask.{name} has offsets that do not ascend from 0 to its {lists.blocks.numel()} blocks, "
            "with partial between them"
        )
