"""``embedding_bag`` and its gradient in plain torch: what is right, and what torch users run."""

from __future__ import annotations

import torch

from autotune.data import Device, Problem
from autotune.kernels._embedding_bag_arguments import Bags, bags_of, check_values, rows_and_places, tables_of
from autotune.kernels._embedding_bag_backward_operator import check_gradient
from autotune.kernels._embedding_bag_operator import check_weight

_MODES = {"sum": 0, "mean": 1}


def reference(weight: torch.Tensor, bags: Bags) -> torch.Tensor:
    if bags.tables is None or bags.padding_idx is None:
        return torch_way(weight, bags)
    check_weight(weight, bags)
    check_values(bags, weight.shape[0])
    # What is padding in one table is a row of another: it is taken out of the bags.
    row, _, bag = rows_and_places(bags, weight.shape[0])
    kept = row < weight.shape[0]
    before = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
    starts = torch.searchsorted(bag, torch.arange(bags.bag_count, device=bag.device))
    weights = None if bags.per_sample_weights is None else bags.per_sample_weights.reshape(-1)[kept]
    result = torch.nn.functional.embedding_bag(
        row[kept], weight, before[starts], mode=bags.mode, per_sample_weights=weights
    )
    return in_tables(result, bags)


def torch_way(weight: torch.Tensor, bags: Bags) -> torch.Tensor:
    """torch.nn.functional.embedding_bag; of several tables, with their indices made those of one."""
    check_weight(weight, bags)
    check_values(bags, weight.shape[0])
    indices, offsets = bags.indices, bags.offsets
    if offsets is None:
        # torch takes no bags of length 0 in two dimensions.
        offsets = torch.arange(bags.bag_count, dtype=indices.dtype, device=indices.device) * indices.shape[1]
    if bags.tables is not None:
        indices = indices.reshape(-1) + bags.tables[tables_of(bags, bags_of(bags))]
    result = torch.nn.functional.embedding_bag(
        indices.reshape(-1),
        weight,
        offsets.to(indices.dtype),
        mode=bags.mode,
        per_sample_weights=None if bags.per_sample_weights is None else bags.per_sample_weights.reshape(-1),
        include_last_offset=bags.include_last_offset and bags.offsets is not None,
        padding_idx=bags.padding_idx,
    )
    return in_tables(result, bags)


def in_tables(result: torch.Tensor, bags: Bags) -> torch.Tensor:
    """(all bags, columns), table by table, as the kernel gives it."""
    if bags.tables is None:
        return result
    each, tables, columns = bags.shape(result.shape[1])
    return result.view(tables, each, columns).transpose(0, 1).contiguous()


def one_padding(problem: Problem, device: Device) -> str | None:
    """Where torch's own way can't be had without reading the device."""
    if problem.integer("T", 1) > 1 and problem.get("padded", False):
        return "torch has one padding row for all tables"
    return None


def gradient(d_out: torch.Tensor, rows: int, bags: Bags) -> torch.Tensor:
    """Summed in float32 or float64, in the order of the entries."""
    check_gradient(d_out, rows, bags)
    check_values(bags, rows)
    wide = torch.promote_types(d_out.dtype, torch.float32)
    row, place, bag = rows_and_places(bags, rows)
    columns = d_out.shape[-1]
    parts = d_out.reshape(-1, columns).to(wide)
    kept = row < rows
    row, place, bag = row[kept], place[kept], bag[kept]
    parts = parts[place]
    if bags.per_sample_weights is not None:
        parts = parts * bags.per_sample_weights.reshape(-1, 1)[kept].to(wide)
    elif bags.mode == "mean":
        counts = torch.bincount(bag, minlength=bags.bag_count)
        parts = parts / counts[bag].to(wide)[:, None]
    return d_out.new_zeros(rows, columns, dtype=wide).index_add_(0, row, parts).to(d_out.dtype)


def torch_gradient(d_out: torch.Tensor, rows: int, bags: Bags) -> torch.Tensor:
    """torch's own backward pass, as autograd calls it, with one more row that takes all that has none."""
    check_gradient(d_out, rows, bags)
    check_values(bags, rows)
    row, place, _ = rows_and_places(bags, rows)
    weights = bags.per_sample_weights
    result: torch.Tensor = torch.ops.aten._embedding_bag_dense_backward(
        d_out.reshape(-1, d_out.shape[-1]).contiguous(),
        row,
        place,
        row.new_zeros(bags.bag_count).index_add_(0, place, (row < rows).long()),
        row.new_empty(0),
        rows + 1,
        False,
        _MODES[bags.mode],
        None if weights is None else weights.reshape(-1).contiguous(),
        rows,
    )
    return result[:rows]
