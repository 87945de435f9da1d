"""A block-sparse weight as the dense tensors it is made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from autotune.kernels._bsr_pattern import Pattern, keep_pattern, pattern_of
from autotune.kernels._kept import Kept

#: Rows and columns of blocks that the kernels take.
BLOCKS = tuple(2**power for power in range(4, 9))


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
    def of(cls, weight: torch.Tensor | BsrWeight, name: str = "w_bsr") -> BsrWeight:
        """The parts of a ``torch.sparse_bsr`` tensor, sharing its memory; a BsrWeight as it is.

        Kept on the tensor while it is not changed, so that what is worked out of the parts can be kept on them.

        :raises ValueError: if ``weight`` (``name`` in messages) is neither, or has batch dimensions.
        """
        if isinstance(weight, BsrWeight):
            return weight
        kept: Any = getattr(weight, "_autotune_parts", None)
        # In every key of a call: what was kept is no inference tensor's, so that its version can be read as it is.
        if kept and kept.state == (weight._version,) and not weight.requires_grad:
            parts: BsrWeight = kept.fact
            return parts
        if not isinstance(weight, torch.Tensor) or weight.layout != torch.sparse_bsr:
            layout = getattr(weight, "layout", type(weight).__name__)
            raise ValueError(f"{name} is {layout}; make it block-sparse with to_sparse_bsr((32, 32))")
        if weight.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(weight.shape)}; it must have 2 dimensions")
        now = None if weight.is_inference() else (weight._version,)
        if not kept or kept.state != now:
            # Detached: the same memory and version, without autograd's note that it is a view of a sparse tensor,
            # which torch.compile would follow and refuse, and which would keep the weight alive from within.
            values = weight.values().detach()
            rows, columns = weight.shape
            parts = cls(weight.crow_indices(), weight.col_indices(), values, (rows, columns))
            if now is not None:
                holder: Any = weight
                holder._autotune_parts = Kept(now, parts)
        else:
            parts = kept.fact
        return parts._replace(values=weight.values()) if weight.requires_grad else parts

    @property
    def block(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[2]

    def check(self, name: str = "w_bsr") -> None:
        """:raises ValueError: if the parts don't make a matrix; what needs their numbers, :attr:`pattern` says."""
        if self.values.layout != torch.strided or self.values.dim() != 3:
            raise ValueError(
                f"{name}'s values are {self.values.layout} {tuple(self.values.shape)}; "
                "they must be dense, (blocks, block rows, block columns)"
            )
        if len(self.shape) != 2:
            raise ValueError(f"{name} has shape {tuple(self.shape)}; it must have 2 dimensions")
        for side, size, block in zip(("rows", "columns"), self.shape, self.block, strict=True):
            if block < 1 or size % block:
                raise ValueError(f"{name} has {size} {side} in blocks of {block}; the second must divide the first")
        offsets = self.shape[0] // self.block[0] + 1
        if self.crow.shape != (offsets,):
            raise ValueError(
                f"{name}'s crow is {tuple(self.crow.shape)}; {self.shape[0]} rows in blocks of {self.block[0]} "
                f"have {offsets} offsets"
            )
        if self.columns.shape != self.values.shape[:1]:
            raise ValueError(
                f"{name}'s columns are {tuple(self.columns.shape)} and its values {tuple(self.values.shape)}; "
                "there must be one column a block"
            )
        for part, tensor in (("crow", self.crow), ("columns", self.columns)):
            if tensor.layout != torch.strided or tensor.device != self.values.device:
                raise ValueError(
                    f"{name}'s {part} is {tensor.layout} on {tensor.device}; "
                    f"it must be dense, on {self.values.device} where its values are"
                )

    @property
    def pattern(self) -> Pattern:
        """Where it has blocks, checked; see :func:`pattern_of`."""
        return pattern_of(self.crow, self.columns, self.shape[1] // self.values.shape[2])

    def sparse(self) -> torch.Tensor:
        """The ``torch.sparse_bsr`` tensor of these parts, which shares their memory. Differentiable in ``values``.

        Its pattern is not checked again when it is used.

        :raises ValueError: as :func:`pattern_of`.
        """
        columns = self.columns.to(self.crow.dtype)
        weight = torch.sparse_bsr_tensor(self.crow, columns, self.values, self.shape, check_invariants=False)
        parts = BsrWeight.of(weight)
        keep_pattern(parts.crow, parts.columns, self.pattern)
        return weight

    def dense(self) -> torch.Tensor:
        """The whole matrix (N, K), zeros included. Differentiable in ``values``."""
        rows, columns = self.shape
        block_rows, block_columns = self.block
        blocks = self.values.new_zeros(rows // block_rows, columns // block_columns, block_rows, block_columns)
        pattern = self.pattern
        placed = blocks.index_put((pattern.row_of, pattern.column_of), self.values)
        return placed.transpose(1, 2).reshape(rows, columns)
