"""A block-sparse weight as the dense tensors it is made of, and the torch side of ``bsr_matmul``."""

from __future__ import annotations

import math
from collections.abc import Hashable
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from autotune.kernel import Operator, Serves, Tensors
from autotune.kernels._gemm_operator import BIAS_MISFIT, add_bias, bias_fits


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

        :raises ValueError: if ``weight`` is neither, or has batch dimensions.
        """
        if isinstance(weight, BsrWeight):
            return weight
        if not isinstance(weight, torch.Tensor) or weight.layout != torch.sparse_bsr:
            layout = getattr(weight, "layout", type(weight).__name__)
            raise ValueError(f"w_bsr is {layout}; make it block-sparse with weight.to_sparse_bsr((32, 32))")
        if weight.dim() != 2:
            raise ValueError(f"w_bsr has shape {tuple(weight.shape)}; it must have 2 dimensions")
        rows, columns = weight.shape
        values = weight.values()
        if not values.requires_grad:
            # The same memory, without autograd's note that it is a view of a sparse tensor, which
            # torch.compile would follow and refuse.
            values = values.data
        return cls(weight.crow_indices(), weight.col_indices(), values, (rows, columns))

    @property
    def block(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[2]

    def dense(self) -> torch.Tensor:
        """The whole matrix (N, K), zeros included. Differentiable in ``values``."""
        rows, columns = self.shape
        block_rows, block_columns = self.block
        blocks = self.values.new_zeros(rows // block_rows, columns // block_columns, block_rows, block_columns)
        placed = blocks.index_put((self.row_indices(), self.columns.long()), self.values)
        return placed.transpose(1, 2).reshape(rows, columns)

    def row_indices(self) -> torch.Tensor:
        """(blocks,) int64: the block row of each stored block."""
        counts = self.crow.diff().long()
        rows = torch.arange(counts.numel(), device=counts.device)
        return torch.repeat_interleave(rows, counts, output_size=self.columns.numel())


def weight_key(weight: torch.Tensor | BsrWeight) -> Hashable:
    """What of a weight a memo key needs. Kept on a sparse tensor, whose parts take microseconds to get at."""
    if not isinstance(weight, BsrWeight):
        with suppress(AttributeError):
            return weight._autotune_key  # type: ignore[attr-defined, no-any-return]
    values = BsrWeight.of(weight).values
    key = tuple(weight.shape), values.shape, values.dtype, values.data_ptr() & 15
    if not isinstance(weight, BsrWeight):
        weight._autotune_key = key  # type: ignore[attr-defined]
    return key


def check(x: torch.Tensor, weight: BsrWeight) -> None:
    """:raises ValueError: if x (..., K) and the weight (N, K) don't multiply."""
    if x.layout != torch.strided:
        raise ValueError(f"x is {x.layout}; it must be dense")
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x is {tuple(x.shape)} and w_bsr is {weight.shape}; the last size of both must be equal")
    if x.dtype != weight.values.dtype or x.device != weight.values.device:
        raise ValueError(
            f"x is {x.dtype} on {x.device} but w_bsr is {weight.values.dtype} on {weight.values.device}; "
            "convert one of them"
        )


def bsr_matmul(x: torch.Tensor, w_bsr: torch.Tensor | BsrWeight) -> torch.Tensor:
    """x @ w_bsr.T for a block-sparse weight, as torch.nn.functional.linear: (..., K) -> (..., N).

    :param x: (..., K), any strides
    :param w_bsr: (N, K), ``torch.sparse_bsr``, or its :class:`BsrWeight` where torch.compile traces

    Blocks of powers of two from 16 up in float16, bfloat16 and float32 run the tuned kernel, others torch.
    Reads only the stored blocks: NaN and infinity in ``x`` meet no zeros there.
    Differentiable in ``x`` and in the stored values; keep those as a dense parameter and build the weight with
    ``torch.sparse_bsr_tensor`` or :class:`BsrWeight`, since torch accumulates no ``.grad`` on sparse parameters.

    :raises ValueError: if ``w_bsr`` is not block-sparse, or sizes, dtypes or devices differ.
    """
    weight = BsrWeight.of(w_bsr)
    check(x, weight)
    product: torch.Tensor = torch.ops.autotune.bsr_matmul(
        x, weight.crow, weight.columns, weight.values, *weight.shape
    )
    return product


def _fake(
    x: torch.Tensor, crow: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, n: int, k: int
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], n)


def _backward(gradients: Tensors, inputs: tuple[Any, ...], results: Tensors) -> tuple[torch.Tensor | None, ...]:
    """Through the dense matrix, in torch: the gradient of the weight is gathered from the pattern's blocks."""
    (gradient,), (x, crow, columns, values, n, k) = gradients, inputs
    weight = BsrWeight(crow, columns, values, (n, k))
    block_rows, block_columns = weight.block
    grad_x = gradient @ weight.dense()
    rows = math.prod(x.shape[:-1])
    whole = gradient.reshape(rows, n).mT @ x.reshape(rows, k)
    blocks = whole.reshape(n // block_rows, block_rows, k // block_columns, block_columns).transpose(1, 2)
    grad_values = blocks[weight.row_indices(), columns.long()]
    return grad_x, None, None, grad_values, None, None


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> tuple[Any, ...] | str:
    if weight.layout != torch.sparse_bsr:
        return "the weight is not block-sparse"
    return (x, weight) if bias_fits(x, weight, bias) else BIAS_MISFIT


OPERATOR = Operator(
    front=bsr_matmul,
    schema="(Tensor x, Tensor crow, Tensor columns, Tensor values, SymInt n, SymInt k) -> Tensor",
    fake=_fake,
    backward=_backward,
    kernel_args=lambda x, crow, columns, values, n, k: (x, BsrWeight(crow, columns, values, (n, k))),
)

SERVES = {torch.nn.functional.linear: Serves(_linear, add_bias)}
