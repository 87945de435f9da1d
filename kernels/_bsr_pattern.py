"""Where a block-sparse matrix has blocks: what kernels need to know of it, worked out once and kept with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from autotune.arithmetic import cdiv
from autotune.kernels._density import density_step, nearest
from autotune.kernels._kept import Kept

#: Blocks of the fullest block row over those of the mean one; problems name the nearest.
IMBALANCES = (1, 2, 4, 16)


def imbalance_step(longest: int, blocks: int, rows: int) -> int:
    """Of :data:`IMBALANCES`. The mean is rounded up: where no row could be shorter the step is 1."""
    return nearest(longest / cdiv(blocks, rows), IMBALANCES) if blocks else 1


@dataclass(frozen=True, eq=False)
class Pattern:
    """Facts of a pattern of ``rows`` x ``across`` blocks. Index tensors are int32, on the pattern's device."""

    rows: int
    across: int
    #: Stored blocks.
    blocks: int
    #: Blocks of the fullest block row.
    longest: int
    #: (blocks,): the block row of each stored block.
    row_of: torch.Tensor
    #: (blocks,): its block column.
    column_of: torch.Tensor
    #: (rows + 1,): where each block row starts.
    starts: torch.Tensor
    #: (rows,): block rows by their number of blocks, equal ones in order.
    longest_first: torch.Tensor
    _facts: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def density(self) -> int:
        """The nearest of :data:`DENSITIES`."""
        return density_step(self.blocks, self.rows * self.across)

    @cached_property
    def imbalance(self) -> int:
        """The nearest of :data:`IMBALANCES`."""
        return imbalance_step(self.longest, self.blocks, self.rows)

    @cached_property
    def transposed(self) -> tuple[Pattern, torch.Tensor]:
        """The pattern of the transpose, and (blocks,) the stored block that each of its blocks is."""
        stored = torch.argsort(self.column_of, stable=True)
        pattern = _pattern(self.column_of[stored], self.row_of[stored], self.across, self.rows)
        return pattern, stored.int()

    def fact(self, make: Callable[..., Any], *args: Hashable) -> Any:
        """``make(pattern, *args)``, once."""
        if (make, args) not in self._facts:
            self._facts[make, args] = make(self, *args)
        return self._facts[make, args]


def pattern_of(crow: torch.Tensor, columns: torch.Tensor, across: int) -> Pattern:
    """The pattern of a block-sparse matrix, from where it was kept on ``crow`` if it was worked out before.

    The first call reads the device; so make one before a CUDA graph is recorded, which goes on with the pattern
    of then. Nothing can be kept of tensors made in torch.inference_mode(), which don't tell when they change: with
    them every call reads the device.

    :param crow: (rows + 1,) int32 or int64: where each block row starts in ``columns``
    :param columns: (blocks,) int32 or int64: block columns, ascending in each block row
    :param across: blocks in a whole row
    :raises ValueError: if offsets don't ascend from 0 to the number of blocks, or a column is out of range,
        repeated or out of order.
    """
    kept: Any = getattr(crow, "_autotune_pattern", None)
    # In every key of a call: what was kept is no inference tensor's, so that versions can be read as they are.
    if kept and kept.held[0] is columns and kept.state == _state(crow, columns, across):
        pattern: Pattern = kept.fact
        return pattern
    pattern = _checked(crow, columns, across)
    keep_pattern(crow, columns, pattern)
    return pattern


def keep_pattern(crow: torch.Tensor, columns: torch.Tensor, pattern: Pattern) -> None:
    """From now on :func:`pattern_of` knows that theirs is this one."""
    if not crow.is_inference() and not columns.is_inference():
        holder: Any = crow
        held = columns, crow.detach(), columns.detach()
        holder._autotune_pattern = Kept(_state(crow, columns, pattern.across), pattern, held)


def _state(crow: torch.Tensor, columns: torch.Tensor, across: int) -> tuple[int, ...]:
    # Addresses, because ``tensor.data = other`` changes no version.
    return crow._version, crow.data_ptr(), columns._version, columns.data_ptr(), across


def _checked(crow: torch.Tensor, columns: torch.Tensor, across: int) -> Pattern:
    for name, tensor in (("crow", crow), ("columns", columns)):
        if tensor.dtype not in (torch.int32, torch.int64) or tensor.dim() != 1:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}; it must be int32 or int64, 1-D")
    if crow.numel() == 0:
        raise ValueError("crow is empty; it has one offset more than there are block rows")
    rows, blocks = crow.numel() - 1, columns.numel()
    counts = crow.diff()
    ends = [int(crow[0]), int(crow[-1])]
    if ends != [0, blocks] or (rows and int(counts.min()) < 0):
        raise ValueError(
            f"crow goes from {ends[0]} to {ends[1]}; it must ascend from 0 to the {blocks} blocks stored"
        )
    if blocks:
        low, high = (int(end) for end in columns.aminmax())
        if low < 0 or high >= across:
            raise ValueError(f"columns go from {low} to {high}; block columns are 0 to {across - 1}")
    row_of = torch.repeat_interleave(torch.arange(rows, device=crow.device), counts, output_size=blocks)
    places = row_of * across + columns
    if bool((places.diff() <= 0).any()):
        raise ValueError("columns are repeated or out of order in a block row; sort them and add up what is double")
    return _pattern(row_of.int(), columns.int().contiguous(), rows, across)


def _pattern(row_of: torch.Tensor, column_of: torch.Tensor, rows: int, across: int) -> Pattern:
    """Of sorted row numbers."""
    starts = torch.searchsorted(row_of, torch.arange(rows + 1, device=row_of.device, dtype=torch.int32)).int()
    lengths = starts.diff()
    return Pattern(
        rows=rows,
        across=across,
        blocks=row_of.numel(),
        longest=int(lengths.max()) if rows else 0,
        row_of=row_of,
        column_of=column_of,
        starts=starts,
        longest_first=torch.argsort(lengths, descending=True, stable=True).int(),
    )
