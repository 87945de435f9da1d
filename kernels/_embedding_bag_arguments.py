"""Which rows go into which bag: the arguments that both passes share, their rules, and what follows from them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch

from autotune.kernels._tensors import check_dense_floats
from autotune.kernels._values import checks_values


class Bags(NamedTuple):
    """As :func:`embedding_bag` has them."""

    indices: torch.Tensor
    offsets: torch.Tensor | None = None
    mode: str = "sum"
    per_sample_weights: torch.Tensor | None = None
    padding_idx: int | None = None
    include_last_offset: bool = False
    tables: torch.Tensor | None = None

    @property
    def bag_count(self) -> int:
        if self.offsets is None:
            return self.indices.shape[0]
        return self.offsets.shape[0] - int(self.include_last_offset)

    @property
    def table_count(self) -> int:
        return 1 if self.tables is None else self.tables.shape[0] - 1

    def shape(self, columns: int) -> tuple[int, ...]:
        """Of the result."""
        if self.tables is None:
            return self.bag_count, columns
        return self.bag_count // self.table_count, self.table_count, columns

    def padding(self, rows: int) -> int | None:
        """``padding_idx``, counted from the start."""
        return (
            self.padding_idx + rows if self.padding_idx is not None and self.padding_idx < 0 else self.padding_idx
        )

    def widened(self) -> Bags:
        """With the weights of the samples in float32."""
        weights = self.per_sample_weights
        return self if weights is None else self._replace(per_sample_weights=weights.float())

    def key(self) -> Hashable:
        """What of them a memo key needs; of the length of ragged bags no more than a problem has."""
        indices, offsets, mode, weights, padding, last, tables = self
        shape: Hashable = indices.shape
        if offsets is not None:
            count = offsets.shape[0] - last
            shape = count, mean_length(indices.shape[0], count), "ragged"
        return shape, indices.dtype, mode, weights is None, padding is None, tables is None or tables.shape[0]


def mean_length(entries: int, bags: int) -> int:
    """The mean length of ragged bags, to the power of two at or above it."""
    return 1 << ((entries - 1) // bags).bit_length() if entries and bags else 0


def check(bags: Bags, rows: int, values: torch.Tensor, name: str) -> None:
    """All that can be said without reading numbers on a device.

    :param values: what is summed, called ``name``: the other floats must be like it
    :raises ValueError: if shapes, dtypes or devices don't fit together, or an option breaks its rule.
    """
    indices, offsets, tables, weights = bags.indices, bags.offsets, bags.tables, bags.per_sample_weights
    check_dense_floats(**{name: values})
    if indices.dim() not in (1, 2):
        raise ValueError(
            f"indices has shape {tuple(indices.shape)}; it must be (entries,) or (bags, entries of each)"
        )
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices is {indices.dtype}; it must be int32 or int64")
    if (offsets is None) != (indices.dim() == 2):
        has = "no offsets" if offsets is None else "offsets"
        raise ValueError(
            f"indices has {indices.dim()} dimensions and {has}; 1-D ones need offsets, 2-D ones have none"
        )
    if offsets is not None:
        if offsets.dim() != 1 or offsets.shape[0] < int(bags.include_last_offset):
            least = " with at least one element, where the last is included" if bags.include_last_offset else ""
            raise ValueError(f"offsets has shape {tuple(offsets.shape)}; it must be 1-D{least}")
        if offsets.dtype != indices.dtype:
            raise ValueError(f"offsets is {offsets.dtype} but indices is {indices.dtype}; convert one of them")
    if bags.bag_count == 0 and indices.numel():
        raise ValueError(f"indices has {indices.numel()} entries and there are no bags; offsets must begin with 0")
    if bags.mode not in ("sum", "mean"):
        raise ValueError(f"mode is {bags.mode!r}; embedding_bag takes 'sum' and 'mean'")
    if weights is not None:
        if bags.mode != "sum":
            raise ValueError(f"mode is {bags.mode!r} and per_sample_weights are given; they go with 'sum' alone")
        if weights.shape != indices.shape:
            shapes = f"{tuple(weights.shape)}; indices has {tuple(indices.shape)}"
            raise ValueError(f"per_sample_weights has shape {shapes}, and they must be equal")
        if weights.dtype != values.dtype:
            raise ValueError(
                f"per_sample_weights is {weights.dtype} but {name} is {values.dtype}; convert one of them"
            )
    if tables is not None:
        if tables.dim() != 1 or tables.shape[0] < 2 or tables.dtype != torch.int64:
            raise ValueError(
                f"tables is {tables.dtype} of shape {tuple(tables.shape)}; it must be int64, (tables + 1,)"
            )
        if bags.bag_count % bags.table_count:
            raise ValueError(
                f"there are {bags.bag_count} bags; they must be a multiple of the {bags.table_count} tables"
            )
    _check_padding(bags, rows)
    others = {"indices": indices, "offsets": offsets, "per_sample_weights": weights, "tables": tables}
    for other, tensor in others.items():
        if tensor is not None and tensor.device != values.device:
            raise ValueError(f"{other} is on {tensor.device} but {name} is on {values.device}; move one of them")


def _check_padding(bags: Bags, rows: int) -> None:
    padding = bags.padding_idx
    if padding is None:
        return
    least = -rows if bags.tables is None else 0
    if not least <= padding < rows:
        raise ValueError(f"padding_idx is {padding}; with these tables it must be from {least} to {rows - 1}")


def check_values(bags: Bags, rows: int) -> None:
    """Whether offsets and tables ascend from 0, and indices are in their table. On a GPU only on request.

    :raises ValueError: naming the first that is not.
    """
    indices, offsets, tables = bags.indices, bags.offsets, bags.tables
    if not checks_values(indices):
        return
    entries = indices.numel()
    if offsets is not None and offsets.numel():
        _check_ascending("offsets", offsets)
        end = int(offsets[-1])
        if end > entries or (bags.include_last_offset and end < entries):
            raise ValueError(f"offsets end at {end}; indices has {entries} entries")
    if tables is not None:
        _check_ascending("tables", tables)
        if int(tables[-1]) != rows:
            raise ValueError(f"tables end at {int(tables[-1])}; weight has {rows} rows")
    table = tables_of(bags, bags_of(bags))
    limits = rows if tables is None else tables.diff()[table]
    flat = indices.reshape(-1)
    wrong = (flat < 0) | (flat >= limits)
    if tables is not None and bags.padding_idx is not None:
        # Not looked at, so that a table may be shorter.
        wrong &= flat != bags.padding_idx
    if bool(wrong.any()):
        first = int(wrong.int().argmax())
        limit = rows if isinstance(limits, int) else int(limits[first])
        raise ValueError(f"indices[{first}] is {int(flat[first])}; the table has rows 0 to {limit - 1}")


def _check_ascending(name: str, tensor: torch.Tensor) -> None:
    if int(tensor[0]) != 0:
        raise ValueError(f"{name} begin with {int(tensor[0])}; they must begin with 0")
    falls = tensor.diff() < 0
    if bool(falls.any()):
        place = int(falls.int().argmax()) + 1
        raise ValueError(f"{name}[{place}] is {int(tensor[place])}, under the one before; they must ascend")


def bags_of(bags: Bags) -> torch.Tensor:
    """(entries,) int64: the bag of each entry."""
    entry = torch.arange(bags.indices.numel(), device=bags.indices.device)
    if bags.offsets is None:
        return entry // max(1, bags.indices.shape[1])
    offsets = bags.offsets.contiguous().long()
    return torch.searchsorted(offsets, entry, right=True) - 1


def tables_of(bags: Bags, bag: torch.Tensor) -> torch.Tensor:
    """The table of each bag."""
    return bag // max(1, bags.bag_count // bags.table_count)


def rows_and_places(bags: Bags, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each entry (entries,) int64: the row of ``weight``, or ``rows`` if it is padding; its row of the result,
    seen as (all bags, columns); and its bag. Reads no device.
    """
    bag, index = bags_of(bags), bags.indices.reshape(-1)
    row, place = index.long(), bag
    if bags.tables is not None:
        table, each = tables_of(bags, bag), max(1, bags.bag_count // bags.table_count)
        row, place = row + bags.tables[table], bag % each * bags.table_count + table
    padding = bags.padding(rows)
    if padding is not None:
        row = row.masked_fill(index.eq(padding), rows)
    return row, place, bag
