"""Which stored blocks a program of ``sddmm`` takes, and in what order."""

from __future__ import annotations

import torch

from autotune.kernels._bsr_pattern import Pattern


def chunks_in_order(pattern: Pattern, width: int, band: int) -> torch.Tensor:
    """(chunks, 2) int32: first and last + 1 of up to ``width`` stored blocks that follow one another in a row.

    Reads the device.

    :param band: block rows that go together: within a band chunks are in order of their columns, so that programs
        that run side by side share rows of a and columns of b in the L2 cache. 1: as stored.
    """
    place = torch.arange(pattern.blocks, device=pattern.row_of.device, dtype=torch.int32)
    in_row = place - pattern.starts[pattern.row_of]
    first = place[in_row % width == 0]
    row, column = pattern.row_of[first].long(), pattern.column_of[first]
    last = torch.minimum(first + width, pattern.starts[row + 1])
    chunks = torch.stack([first, last], 1)
    if band == 1:
        return chunks
    return chunks[torch.argsort(row // band * pattern.across + column, stable=True)].contiguous()
