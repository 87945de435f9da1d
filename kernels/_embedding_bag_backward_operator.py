"""The torch side of ``embedding_bag_backward``: what its arguments must be, and the operator."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernel import Operator, Tensors
from autotune.kernels._embedding_bag_arguments import Bags, check
from autotune.kernels._embedding_bag_operator import weights_gradient


def check_gradient(d_out: torch.Tensor, rows: int, bags: Bags) -> None:
    """:raises ValueError: as :func:`embedding_bag_backward` does."""
    check(bags, rows, d_out, "d_out")
    expected = bags.shape(d_out.shape[-1] if d_out.dim() else 0)
    if d_out.shape != expected:
        raise ValueError(f"d_out has shape {tuple(d_out.shape)}; with these bags it must be {expected}")


def embedding_bag_backward(
    d_out: torch.Tensor,
    indices: torch.Tensor,
    rows: int,
    offsets: torch.Tensor | None = None,
    mode: str = "sum",
    per_sample_weights: torch.Tensor | None = None,
    padding_idx: int | None = None,
    include_last_offset: bool = False,
    tables: torch.Tensor | None = None,
) -> torch.Tensor:
    """(rows, columns), dense: the gradient of ``embedding_bag``'s weight. Equal from run to run.

    :param d_out: the gradient of the result, in its shape and dtype
    :param rows: of the weight. Those that no bag asked for, and padding, have gradient 0

    The rest as ``embedding_bag`` has it, which calls this itself when it is differentiated. Accumulates in float32.

    :raises ValueError: if shapes, dtypes or devices don't fit together, or an option breaks its rule; on a CPU also
        if indices, offsets or tables are out of range or order.
    """
    bags = Bags(indices, offsets, mode, per_sample_weights, padding_idx, include_last_offset, tables)
    check_gradient(d_out, rows, bags)
    result: torch.Tensor = torch.ops.autotune.embedding_bag_backward(d_out, indices, rows, *bags[1:])
    return result


def _fake(d_out: torch.Tensor, indices: torch.Tensor, rows: int, *others: Any) -> torch.Tensor:
    return d_out.new_empty(rows, d_out.shape[-1])


def _backward(gradients: Tensors, inputs: tuple[Any, ...], results: Tensors) -> tuple[torch.Tensor | None, ...]:
    """It is linear in d_out: that gradient is the forward pass over what would be the weight's."""
    (d_weight,), (d_out, indices, _, *others) = gradients, inputs
    d_d_out = torch.ops.autotune.embedding_bag(indices, d_weight, *others) if d_out.requires_grad else None
    d_weights = weights_gradient(d_out, d_weight, Bags(indices, *others))
    return d_d_out, None, None, None, None, d_weights, None, None, None


OPERATOR = Operator(
    front=embedding_bag_backward,
    schema=(
        '(Tensor d_out, Tensor indices, SymInt rows, Tensor? offsets=None, str mode="sum", '
        "Tensor? per_sample_weights=None, SymInt? padding_idx=None, bool include_last_offset=False, "
        "Tensor? tables=None) -> Tensor"
    ),
    fake=_fake,
    backward=_backward,
    kernel_args=lambda d_out, indices, rows, *others: (d_out, rows, Bags(indices, *others)),
)
