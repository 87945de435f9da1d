"""Long block rows of a pattern cut into chunks, so that programs have about equally much to do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autotune.arithmetic import cdiv
from autotune.kernels._bsr_pattern import Pattern


@dataclass(frozen=True, eq=False)
class Chunks:
    """Every block row has one chunk at least, if it has no block an empty one."""

    #: (chunks, 4) int32, longest first: block row, first block, the one after the last, and the place of its
    #: partial sum, -1 where it is its row's only chunk.
    table: torch.Tensor
    #: (rows of several chunks, 3) int32: block row, first partial sum, the one after the last.
    sums: torch.Tensor
    #: Partial sums.
    parts: int

    @property
    def counts(self) -> tuple[int, int]:
        """Chunks, and rows of several."""
        return self.table.shape[0], self.sums.shape[0]


def chunks_of(pattern: Pattern, most: int) -> Chunks:
    """Block rows of over ``most`` blocks in as few chunks as need be, all of about one length. Reads the device."""
    starts = pattern.starts
    lengths = starts.diff().long()
    pieces = ((lengths + most - 1) // most).clamp(min=1)
    rows = torch.arange(lengths.numel(), device=starts.device)
    row = torch.repeat_interleave(rows, pieces)
    ends = pieces.cumsum(0)
    number = torch.arange(row.numel(), device=starts.device) - (ends - pieces)[row]
    edges = [starts[row] + lengths[row] * place // pieces[row] for place in (number, number + 1)]
    several = pieces[row] > 1
    part = torch.where(several, several.long().cumsum(0) - 1, -1)
    order = torch.argsort(edges[1] - edges[0], descending=True, stable=True)
    table = torch.stack([row, *edges, part], dim=1)[order]
    long_rows = rows[pieces > 1]
    last_part = pieces[long_rows].cumsum(0)
    sums = torch.stack([long_rows, last_part - pieces[long_rows], last_part], dim=1)
    return Chunks(table.int().contiguous(), sums.int().contiguous(), int(several.sum()))


def counts(lengths: list[int], most: int) -> tuple[int, int]:
    """Chunks, and rows of several, for block rows of these lengths."""
    pieces = [max(1, cdiv(length, most)) for length in lengths]
    return sum(pieces), sum(number > 1 for number in pieces)
