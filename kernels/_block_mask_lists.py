"""How the lists of a block mask are made: candidates from ranges, sorted out by the extents of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from autotune.arithmetic import cdiv


class BlockLists(NamedTuple):
    """The blocks of each block row (or of each block column), one row after the other; int32, on one device."""

    #: (planes * rows + 1,): where each row's blocks start in ``blocks``.
    offsets: torch.Tensor
    #: (planes * rows,): where in ``blocks`` those of a row start that need rules; those before are seen whole.
    partial: torch.Tensor
    #: (blocks,): the block column (or row) of each, ascending among the whole and among the partial ones of a row.
    blocks: torch.Tensor
    #: (planes * rows,): the rows 0 to rows - 1 of each plane, those with most blocks first.
    longest_first: torch.Tensor


def grid_of(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """(block rows, block columns) of a plane."""
    return cdiv(shape[0], block[0]), cdiv(shape[1], block[1])


@dataclass(frozen=True)
class Extents:
    """What rules say of whole blocks. Rows below are numbered over all planes; those of one plane are alike."""

    shape: tuple[int, int]
    block: tuple[int, int]
    causal: bool
    #: 0 for none.
    window: int
    #: (batches, SQ) and (batches, SK), ascending.
    q_documents: torch.Tensor | None = None
    k_documents: torch.Tensor | None = None

    def classify(self, row: torch.Tensor, column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(kept, whole) of blocks: whether some pair in it sees each other, and whether all do."""
        rows, columns = grid_of(self.shape, self.block)
        in_plane = row % max(1, rows)
        first_q, last_q = self._span(in_plane, 0)
        first_k, last_k = self._span(column, 1)
        kept = torch.ones_like(row, dtype=torch.bool)
        whole = (column + 1) * self.block[1] <= self.shape[1]
        # Distances i - j go over all from the least to the most.
        least, most = first_q - last_k, last_q - first_k
        if self.causal:
            kept &= most >= 0
            whole &= least >= 0
        if self.window:
            kept &= (least < self.window) & (most > -self.window)
            whole &= (most < self.window) & (least > -self.window)
        if self.q_documents is not None and self.k_documents is not None:
            low_q, high_q = (ends.flatten()[row] for ends in self._documents(self.q_documents, 0))
            # Of columns too, a batch after the other.
            place = row // max(1, rows) * columns + column
            low_k, high_k = (ends.flatten()[place] for ends in self._documents(self.k_documents, 1))
            kept &= (low_q <= high_k) & (low_k <= high_q)
            whole &= (low_q == high_k) & (low_k == high_q)
        return kept, whole

    def _span(self, number: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(first, last) element of blocks of rows, or on side 1 of columns."""
        first = number * self.block[side]
        return first, (first + self.block[side]).clamp(max=self.shape[side]) - 1

    def _documents(self, documents: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(least, largest) of each block, (batches, blocks)."""
        number = torch.arange(grid_of(self.shape, self.block)[side], device=documents.device)
        first, last = self._span(number, side)
        return documents[:, first], documents[:, last]


def candidates(extents: Extents, device: torch.device | str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, column) of blocks, int64, in order: per row a range with all that the rules leave of it."""
    rows, columns = grid_of(extents.shape, extents.block)
    number = torch.arange(rows, device=device)
    first, last = extents._span(number, 0)
    start, end = torch.zeros_like(number), torch.full_like(number, columns)
    window, width = extents.window, extents.block[1]
    if extents.causal:
        end = end.minimum(last // width + 1)
    if window:
        start = (first - window + 1).clamp(min=0) // width
        end = end.minimum((last + window - 1) // width + 1)
    if extents.q_documents is not None and extents.k_documents is not None:
        low_q, high_q = extents._documents(extents.q_documents, 0)
        low_k, high_k = extents._documents(extents.k_documents, 1)
        start = start.maximum(torch.searchsorted(high_k.contiguous(), low_q.contiguous()))
        end = end.minimum(torch.searchsorted(low_k.contiguous(), high_q.contiguous(), right=True))
    counts = (end - start).clamp(min=0).flatten()
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    before = counts.cumsum(0) - counts
    return row, torch.arange(len(row), device=row.device) - before[row] + start.flatten()[row]


# Made in inference mode as well they are ordinary tensors, which training can save and which tell when they change.
@torch.inference_mode(False)
def listed(
    row: torch.Tensor, column: torch.Tensor, whole: torch.Tensor, planes: int, grid: tuple[int, int]
) -> tuple[BlockLists, BlockLists]:
    """Lists by row and by column of different blocks, whose rows are numbered over all planes."""
    rows, columns = grid
    plane = row // max(1, rows)
    by_row = _lists(row, column, whole, planes, rows, columns)
    return by_row, _lists(plane * columns + column, row - plane * rows, whole, planes, columns, rows)


def _lists(
    row: torch.Tensor, other: torch.Tensor, whole: torch.Tensor, planes: int, rows: int, others: int
) -> BlockLists:
    section = 2 * row + ~whole
    order = (section * others + other).argsort()
    ends = torch.arange(2 * planes * rows + 1, device=row.device)
    bounds = torch.searchsorted(section[order], ends)
    offsets, partial = bounds[::2].contiguous(), bounds[1::2].contiguous()
    longest_first = offsets.diff().view(planes, rows).argsort(dim=1, descending=True, stable=True).flatten()
    return BlockLists(offsets.int(), partial.int(), other[order].int(), longest_first.int())


def decoded(lists: BlockLists) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(row, other, whole) of each block, in order. Reads no device."""
    blocks = lists.blocks.numel()
    numbers = torch.arange(lists.partial.numel(), device=lists.offsets.device)
    row = torch.repeat_interleave(numbers, lists.offsets.diff().long(), output_size=blocks)
    return row, lists.blocks.long(), torch.arange(blocks, device=row.device) < lists.partial[row]
