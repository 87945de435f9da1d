"""The torch side of ``embedding_bag``: the operator, its gradients, and the torch call it stands in for."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernel import Operator, Serves, Tensors
from autotune.kernels._embedding_bag_arguments import Bags, check, rows_and_places


def check_weight(weight: torch.Tensor, bags: Bags) -> None:
    """:raises ValueError: as :func:`embedding_bag` does, but for what only a look at the numbers tells."""
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be (rows, columns)")
    check(bags, weight.shape[0], weight, "weight")


def embedding_bag(
    indices: torch.Tensor,
    weight: torch.Tensor,
    offsets: torch.Tensor | None = None,
    *,
    mode: str = "sum",
    per_sample_weights: torch.Tensor | None = None,
    padding_idx: int | None = None,
    include_last_offset: bool = False,
    tables: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sums or means of rows, like torch.nn.functional.embedding_bag, of one table or of several in one launch.

    :param indices: (entries,) with ``offsets``, or (bags, entries of each) without; int32 or int64
    :param weight: (rows, columns); several tables one after another in the rows
    :param offsets: (bags,), of the dtype of ``indices``: where in ``indices`` each bag begins, ascending from 0. An
        empty bag gives 0
    :param mode: "sum" or "mean"
    :param per_sample_weights: as ``indices`` in shape, as ``weight`` in dtype: factors of the rows; of a sum only
    :param padding_idx: entries of this index are skipped and not counted. Negative: from the end. With ``tables``
        it is an index in each, and not negative
    :param include_last_offset: ``offsets`` has one more element, the number of entries
    :param tables: (tables + 1,) int64: where in ``weight`` each table begins, and the number of rows. Indices are
        then relative to their table; the bags of a table follow one another, as many as of any other
    :return: (bags, columns); with ``tables`` (bags of a table, tables, columns). In the dtype of ``weight``

    ::

        # Two tables, of 100 and 40 rows, and three bags of each.
        weight, tables = torch.randn(140, 64), torch.tensor([0, 100, 140])
        indices = torch.tensor([5, 99, 7, 7, 0, 39, 1])
        offsets = torch.tensor([0, 1, 3, 4, 5, 5])
        embedding_bag(indices, weight, offsets, tables=tables).shape  # (3, 2, 64)

    float16, bfloat16 and float32 run the tuned kernel, float64 torch's. Accumulates in float32, whatever autocast
    says. Equal from run to run, and so are its gradients: of ``weight``, dense, by a tuned kernel over the sorted
    indices; of ``per_sample_weights`` by torch's own, which is not differentiable again. The host never waits for
    the device: an index that is not in its table, or offsets that don't ascend, are undefined there, unless the
    environment variable AUTOTUNE_CHECK_VALUES is 1.

    :raises ValueError: if shapes, dtypes or devices don't fit together, or an option breaks its rule; on a CPU also
        if indices, offsets or tables are out of range or order.
    """
    check_weight(weight, Bags(indices, offsets, mode, per_sample_weights, padding_idx, include_last_offset, tables))
    result: torch.Tensor = torch.ops.autotune.embedding_bag(
        indices, weight, offsets, mode, per_sample_weights, padding_idx, include_last_offset, tables
    )
    return result


def _fake(indices: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
    return weight.new_empty(Bags(indices, *others).shape(weight.shape[1]))


def _backward(gradients: Tensors, inputs: tuple[Any, ...], results: Tensors) -> tuple[torch.Tensor | None, ...]:
    (d_out,), (indices, weight, *others) = gradients, inputs
    d_weight = None
    if weight.requires_grad:
        d_weight = torch.ops.autotune.embedding_bag_backward(d_out, indices, weight.shape[0], *others)
    return None, d_weight, None, None, weights_gradient(d_out, weight, Bags(indices, *others)), None, None, None


def weights_gradient(d_out: torch.Tensor, weight: torch.Tensor, bags: Bags) -> torch.Tensor | None:
    """Of per_sample_weights, if anybody asks: each row times the gradient of its bag, by torch's own operator.

    It is told the row and the bag of each entry: it needs to know nothing of tables and offsets.
    """
    weights = bags.per_sample_weights
    if weights is None or not weights.requires_grad:
        return None
    row, place, _ = rows_and_places(bags, weight.shape[0])
    skipped = row == weight.shape[0]
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        d_out.reshape(-1, weight.shape[1]).contiguous(),
        weight.contiguous(),
        torch.where(skipped, 0, row),
        torch.arange(row.numel(), device=row.device),
        torch.where(skipped, 0, place),
        0,
        -1,
    )
    return torch.where(skipped, 0, dots).view(weights.shape)


def _apply(weight: torch.Tensor, bags: Bags) -> torch.Tensor:
    check_weight(weight, bags)
    indices, *others = bags
    result: torch.Tensor = torch.ops.autotune.embedding_bag(indices, weight, *others)
    return result


def _served(
    indices: torch.Tensor,
    weight: torch.Tensor,
    offsets: torch.Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: torch.Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Any, ...] | str:
    if max_norm is not None:
        return "max_norm changes the table"
    if scale_grad_by_freq:
        return "scale_grad_by_freq is on"
    if sparse:
        return "the gradient is to be sparse"
    if mode not in ("sum", "mean"):
        return f"the mode is {mode}"
    if indices.is_nested:
        return "the indices are nested"
    bags = Bags(indices, offsets, mode, per_sample_weights, padding_idx, include_last_offset)
    try:
        check_weight(weight, bags)
    except ValueError as error:
        return str(error)
    return weight, bags


OPERATOR = Operator(
    front=embedding_bag,
    schema=(
        '(Tensor indices, Tensor weight, Tensor? offsets=None, str mode="sum", Tensor? per_sample_weights=None, '
        "SymInt? padding_idx=None, bool include_last_offset=False, Tensor? tables=None) -> Tensor"
    ),
    fake=_fake,
    backward=_backward,
    kernel_args=lambda indices, weight, *others: (weight, Bags(indices, *others)),
    apply=_apply,
)

SERVES = {torch.nn.functional.embedding_bag: Serves(_served, autocast=False)}
