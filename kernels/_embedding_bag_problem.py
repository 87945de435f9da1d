"""The problems of ``embedding_bag`` and its backward pass: their fields, random bags of one, and what it costs."""

from __future__ import annotations

import torch

from autotune.data import ITEMSIZE, Problem
from autotune.kernel import Field, Work
from autotune.kernels._embedding_bag_arguments import Bags, mean_length

FIELDS = (
    #: Bags of a table.
    Field("B", "size"),
    #: Rows of all tables.
    Field("V", "size"),
    Field("D", "size", minimum=1),
    #: Entries of a bag; of ragged bags their mean, to the power of two at or above it.
    Field("L", "size"),
    Field("dtype", "dtype"),
    Field("T", "size", default=1, minimum=1),
    Field("mode", "choice", "sum", choices=("sum", "mean")),
    Field("weighted", "flag", default=False),
    Field("padded", "flag", default=False),
    #: With offsets.
    Field("ragged", "flag", default=False),
    Field("index", "choice", "int64", choices=("int64", "int32")),
    #: Of the weight; a gradient is copied if it is not.
    Field("aligned", "flag", default=True),
)


def fields_of(bags: Bags, rows: int, columns: int) -> dict[str, int | bool | str]:
    """The values of :data:`FIELDS`, but for dtype and alignment."""
    count, tables = bags.bag_count, bags.table_count
    ragged = bags.offsets is not None
    return {
        "B": count // tables,
        "V": rows,
        "D": columns,
        "L": mean_length(bags.indices.numel(), count) if ragged else bags.indices.shape[1],
        "T": tables,
        "mode": bags.mode,
        "weighted": bags.per_sample_weights is not None,
        "padded": bags.padding_idx is not None,
        "ragged": ragged,
        "index": str(bags.indices.dtype).removeprefix("torch."),
    }


def sizes(problem: Problem) -> tuple[int, int, int, int]:
    """All bags, rows of all tables, columns, and entries."""
    bags = problem.integer("B") * problem.integer("T", 1)
    return bags, problem.integer("V"), problem.integer("D"), bags * problem.integer("L")


def rule(problem: Problem) -> str | None:
    length, rows, tables = problem.integer("L"), problem.integer("V"), problem.integer("T", 1)
    _, _, _, entries = sizes(problem)
    if problem.get("weighted") and problem.get("mode") == "mean":
        return "weighted=true goes with mode=sum alone"
    if problem.get("ragged") and length & (length - 1):
        return f"L={length} must be a power of two where bags are ragged"
    if entries and rows < tables:
        return f"V={rows} must be at least T={tables}: no table is empty"
    if entries > 2**31 - 512:
        return f"B, T and L make {entries} entries; the kernel takes up to {2**31 - 512}"
    return None


def bags_like(problem: Problem, generator: torch.Generator, device: str) -> Bags:
    """Bags with Zipf-like indices, of unequal tables; ragged ones with an empty one among them."""
    count, rows, _, entries = sizes(problem)
    tables = problem.integer("T", 1)
    starts = torch.tensor([table + (rows - tables) * table**3 // tables**3 for table in range(tables + 1)])
    offsets = torch.arange(count + 1) * problem.integer("L")
    if problem.get("ragged"):
        # Exponential lengths that add up to `entries`; the second bag is empty and the first is not.
        shares = -torch.rand(count, generator=generator).double().clamp(min=1e-9).log()
        shares[:1] += 1
        shares[1:2] = 0
        offsets[1:] = (shares.cumsum(0) / shares.sum() * entries).round().long()
    table = torch.repeat_interleave(torch.arange(count) // max(1, problem.integer("B")), offsets.diff())
    limits = starts.diff()[table].double()
    # The k-th row is asked for 1/k as often as the first.
    drawn = (torch.rand(entries, generator=generator).double() * limits.log()).exp()
    indices = torch.minimum(drawn.long(), limits.long()) - 1
    indices = indices.clamp(min=0).to(getattr(torch, str(problem.get("index", "int64"))))
    weights = None
    if problem.get("weighted"):
        weights = torch.rand(entries, generator=generator).to(device, getattr(torch, str(problem["dtype"])))
    shape = (-1,) if problem.get("ragged") else (count, problem.integer("L"))
    return Bags(
        indices.view(shape).to(device),
        offsets[:-1].to(indices.dtype).to(device) if problem.get("ragged") else None,
        str(problem.get("mode", "sum")),
        None if weights is None else weights.view(shape),
        min(1, rows - 1) if problem.get("padded") else None,
        False,
        starts.to(device) if tables > 1 else None,
    )


def work(problem: Problem) -> Work:
    """Each row that can be asked for once, each result once, and the indices."""
    bags, rows, columns, entries = sizes(problem)
    itemsize = ITEMSIZE[str(problem["dtype"])]
    index = 4 if problem.get("index") == "int32" else 8
    each = index + (itemsize if problem.get("weighted") else 0)
    return Work(
        flops=(2 if problem.get("weighted") else 1) * entries * columns,
        bytes=(min(entries, rows) + bags) * columns * itemsize + entries * each,
    )
