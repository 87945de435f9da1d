"""What is worked out once of a block mask and kept with it: that it is right, its causal half, its dense form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from autotune.kernels._block_mask import BLOCKS, BlockMask
from autotune.kernels._block_mask_lists import BlockLists, decoded, listed
from autotune.kernels._kept import Kept

T = TypeVar("T")


def kept(mask: BlockMask, name: str, make: Callable[[BlockMask], T]) -> T:
    """``make(mask)``, from where it was kept on the tensor of offsets if nothing has changed since."""
    documents = [ids for ids in (mask.q_documents, mask.k_documents) if ids is not None]
    return _kept((*mask.by_row, *mask.by_column, *documents), mask[4:], name, lambda: make(mask))


def _kept(parts: tuple[torch.Tensor, ...], rest: tuple[Any, ...], name: Any, make: Callable[[], T]) -> T:
    """``make()``, from where it was kept on the first of the tensors it is made of.

    Nothing is kept of tensors made in torch.inference_mode(), which don't tell when they change.

    :param rest: what else it is made of.
    """
    facts = {}
    if not any(part.is_inference() for part in parts):
        # Addresses, because ``tensor.data = other`` changes no version.
        state = [part._version for part in parts], [part.data_ptr() for part in parts], rest
        anchor: Any = parts[0]
        found = anchor.__dict__.get("_autotune_kept")
        if not found or found.state != state:
            found = anchor._autotune_kept = Kept(state, {}, tuple(part.detach() for part in parts))
        facts = found.fact
    if name not in facts:
        # In inference mode, what is made could not be used in training later.
        with torch.inference_mode(False):
            facts[name] = make()
    fact: T = facts[name]
    return fact


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
    block = sizes[0], sizes[1]
    return _kept((blocks,), (), (SQ, SK), lambda: BlockMask.from_blocks(blocks, SQ, SK, block))


def check_lists(mask: BlockMask) -> None:
    """Whether the lists of a mask are what its class methods make. Reads the device; once a mask.

    :raises ValueError: if offsets don't ascend, blocks are out of range, repeated or out of order, a whole one
        reaches past the last key, or the lists by row and by column are not those of the same blocks.
    """
    kept(mask, "right", _check_lists)


def _check_lists(mask: BlockMask) -> bool:
    rows, columns = mask.grid
    for name, lists, across in (("by_row", mask.by_row, columns), ("by_column", mask.by_column, rows)):
        _check_offsets(name, lists)
        if lists.blocks.numel() and not 0 <= int(lists.blocks.min()) <= int(lists.blocks.max()) < across:
            low, high = int(lists.blocks.min()), int(lists.blocks.max())
            raise ValueError(f"mask.{name} lists blocks from {low} to {high}; there are 0 to {across - 1}")
    row, other, whole = decoded(mask.by_row)
    if mask.shape[1] % mask.block[1] and bool((whole & (other == columns - 1)).any()):
        raise ValueError(
            f"mask.by_row lists block {columns - 1} as seen whole; it reaches past the {mask.shape[1]} keys"
        )
    again = listed(row, other, whole, mask.batches * mask.heads, mask.grid)
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
