"""A block-sparse weight as the dense tensors it is made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from autotune.kernels._bsr_pattern import Pattern, pattern_of, version


class BsrWeight(NamedTuple):
    """A block-sparse matrix (N, K) in parts, for code that ``torch.compile`` traces.

    torch.compile refuses tensors of sparse layout, even as constants; this tuple of dense ones passes.
    """

    #: (N / block rows + 1,) int32 or int64: where each block row starts in ``columns``.
    crow: torch.Tensor
    #: (blocks,): the block column of each stored block, ascending in each block row.
    columns: torch.Tensor
    #: (blocks, block rows, block columns)
    values: torch.Tensor
    #: (N, K)
    shape: tuple[int, int]

    @classmethod
    def of(cls, weight: torch.Tensor | BsrWeight) -> BsrWeight:
        """The parts of a ``torch.sparse_bsr`` tensor, sharing its memory; a BsrWeight as it is.

        Kept on the tensor while it is not changed, so that what is worked out of the parts can be kept on them.

        :raises ValueError: if ``weight`` is neither, or has batch dimensions.
        """
        if isinstance(weight, BsrWeight):
            return weight
        kept: Any = getattr(weight, "_autotune_parts", None)
        # In every key of a call: what was kept is no inference tensor's, so that its version can be read as it is.
        if kept is not None and kept[0] == weight._version and not weight.requires_grad:
            parts: BsrWeight = kept[1]
            return parts
        if not isinstance(weight, torch.Tensor) or weight.layout != torch.sparse_bsr:
            layout = getattr(weight, "layout", type(weight).__name__)
            raise ValueError(f"w_bsr is {layout}; make it block-sparse with weight.to_sparse_bsr((32, 32))")
        if weight.dim() != 2:
            raise ValueError(f"w_bsr has shape {tuple(weight.shape)}; it must have 2 dimensions")
        now = version(weight)
        if kept is None or kept[0] != now:
            # Detached: the same memory and version, without autograd's note that it is a view of a sparse tensor,
            # which torch.compile would follow and refuse, and which would keep the weight alive from within.
            values = weight.values().detach()
            rows, columns = weight.shape
            kept = now, cls(weight.crow_indices(), weight.col_indices(), values, (rows, columns))
            if now is not None:
                holder: Any = weight
                holder._autotune_parts = kept
        parts = kept[1]
        return parts._replace(values=weight.values()) if weight.requires_grad else parts

    @property
    def block(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[2]

    def check(self) -> None:
        """:raises ValueError: if the parts don't make a matrix; what needs their numbers, :attr:`pattern` says."""
        if self.values.dim() != 3:
            raise ValueError(
                f"w_bsr's values are {tuple(self.values.shape)}; they must be (blocks, block rows, block columns)"
            )
        for name, size, block in zip(("rows", "columns"), self.shape, self.block, strict=True):
            if block < 1 or size % block:
                raise ValueError(f"w_bsr has {size} {name} in blocks of {block}; the second must divide the first")
        if self.crow.shape != (self.shape[0] // self.block[0] + 1,):
            raise ValueError(
                f"w_bsr's crow is {tuple(self.crow.shape)}; {self.shape[0]} rows in blocks of {self.block[0]} have "
                f"{self.shape[0] // self.block[0] + 1} offsets"
            )
        if self.columns.shape != self.values.shape[:1]:
            raise ValueError(
                f"w_bsr's columns are {tuple(self.columns.shape)} and its values {tuple(self.values.shape)}; "
                "there must be one column a block"
            )
        for name, tensor in (("crow", self.crow), ("columns", self.columns)):
            if tensor.device != self.values.device:
                raise ValueError(
                    f"w_bsr's {name} is on {tensor.device} but its values are on {self.values.device}; move one"
                )

    @property
    def pattern(self) -> Pattern:
        """Where it has blocks, checked; see :func:`pattern_of`."""
        return pattern_of(self.crow, self.columns, self.shape[1] // self.values.shape[2])

    def dense(self) -> torch.Tensor:
        """The whole matrix (N, K), zeros included. Differentiable in ``values``."""
        rows, columns = self.shape
        block_rows, block_columns = self.block
        blocks = self.values.new_zeros(rows // block_rows, columns // block_columns, block_rows, block_columns)
        pattern = self.pattern
        placed = blocks.index_put((pattern.row_of, pattern.column_of), self.values)
        return placed.transpose(1, 2).reshape(rows, columns)
