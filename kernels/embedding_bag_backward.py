"""``embedding_bag_backward``: the gradient of ``embedding_bag``'s weight, dense, without atomics.

Entries are sorted by row; what a window of CHUNK entries has of one row is summed by one program, and a second
launch adds up rows that lie in several windows. All sizes are known on the host, so nothing is waited for.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import ITEMSIZE, Config, Problem
from autotune.kernel import Kernel, Provider, Signature, Tolerance, Work
from autotune.kernels._embedding_bag_arguments import Bags, check_values, rows_and_places
from autotune.kernels._embedding_bag_backward_operator import OPERATOR, check_gradient
from autotune.kernels._embedding_bag_problem import FIELDS, bags_like, fields_of, rule, sizes, work
from autotune.kernels._embedding_bag_reference import gradient, torch_gradient
from autotune.kernels._embedding_bag_runs import add_windows, sum_pieces
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._tensors import dtype_name, random

#: Windows that the second launch adds up at a time.
STEP = 16


class _Sorted(NamedTuple):
    """The entries in the order of their rows, all (entries,)."""

    #: int32; the number of rows for entries that have none.
    rows: torch.Tensor
    #: int32: the row of the gradient, seen as (bags, columns).
    places: torch.Tensor
    #: float32: what an entry counts for; None: one.
    scales: torch.Tensor | None


def problem(d_out: torch.Tensor, rows: int, bags: Bags) -> Problem:
    """:raises ValueError: if the arguments don't fit together, or the kernel does not take them."""
    check_gradient(d_out, rows, bags)
    return KERNEL.make(**fields_of(bags, rows, d_out.shape[-1]), dtype=dtype_name(d_out=d_out))


def key(d_out: torch.Tensor, rows: int, bags: Bags) -> Hashable:
    # What is not here, run refuses.
    return d_out.shape, d_out.dtype, d_out.get_device(), rows, bags.key()


def inputs(problem: Problem, seed: int, device: str) -> tuple[torch.Tensor, int, Bags]:
    generator = torch.Generator().manual_seed(seed)
    _, rows, columns, _ = sizes(problem)
    bags = bags_like(problem, generator, device)
    d_out = random(*bags.shape(columns), dtype=str(problem["dtype"]), device=device, generator=generator)
    return d_out, rows, bags


def run(config: Config, d_out: torch.Tensor, rows: int, bags: Bags) -> torch.Tensor:
    """(rows, columns), contiguous, in the dtype of ``d_out``; see :func:`embedding_bag_backward`."""
    check_gradient(d_out, rows, bags)
    check_values(bags, rows)
    if must_widen(sum_pieces, d_out):
        return run(config, d_out.float(), rows, bags.widened()).to(d_out.dtype)
    columns, entries, chunk = d_out.shape[-1], bags.indices.numel(), config.integer("CHUNK")
    out = torch.zeros((rows, columns), dtype=d_out.dtype, device=d_out.device)
    if out.numel() == 0 or entries == 0:
        return out
    windows, pieces = cdiv(entries, chunk), _pieces(entries, rows, chunk)
    ordered = _sorted(bags, rows)
    partial = torch.empty((2 * windows, columns), dtype=torch.float32, device=d_out.device)
    launch(
        sum_pieces,
        _programs(pieces, columns, config),
        d_out.contiguous(),
        _first(ordered.rows, pieces, chunk),
        ordered.rows,
        ordered.places,
        # A pointer that is not followed.
        partial if ordered.scales is None else ordered.scales,
        *(out, partial, entries, pieces, rows),
        config=config,
        D=columns,
        SCALED=ordered.scales is not None,
    )
    if windows > 1:
        # Past the end of the row that each window but the last one ends with.
        ends = torch.searchsorted(
            ordered.rows, ordered.rows[chunk - 1 : entries - 1 : chunk].contiguous(), right=True, out_int32=True
        )
        launch(
            add_windows,
            *_addition(windows, columns),
            partial,
            ordered.rows,
            ends,
            out,
            rows,
            **_sum(columns, chunk),
        )
    return out


def _sorted(bags: Bags, rows: int) -> _Sorted:
    row, place, bag = rows_and_places(bags, rows)
    ascending, order = row.int().sort(stable=True)
    scales = None
    if bags.per_sample_weights is not None:
        scales = bags.per_sample_weights.reshape(-1)[order].float()
    elif bags.mode == "mean":
        counts = torch.zeros(bags.bag_count, dtype=torch.int32, device=row.device)
        counts.index_add_(0, bag, (row < rows).int())
        scales = counts[bag[order]].float().reciprocal()
    return _Sorted(ascending, place[order].int(), scales)


def _pieces(entries: int, rows: int, chunk: int) -> int:
    """At most so many: each begins with a row, one of which stands for none, or with a window."""
    return min(entries, rows + 1 + cdiv(entries, chunk))


def _first(ordered: torch.Tensor, pieces: int, chunk: int) -> torch.Tensor:
    """(pieces + 1,) int32: where each piece begins; the number of entries past the last one."""
    begins = torch.arange(ordered.numel(), dtype=torch.int32, device=ordered.device) % chunk == 0
    begins[1:] |= ordered[1:] != ordered[:-1]
    number = begins.cumsum(0, dtype=torch.int32)
    asked = torch.arange(1, pieces + 2, dtype=torch.int32, device=ordered.device)
    return torch.searchsorted(number, asked, out_int32=True)


def _programs(pieces: int, columns: int, config: Config) -> int:
    return cdiv(pieces, config.integer("PIECES")) * cdiv(columns, config.integer("BLOCK_D"))


def _addition(windows: int, columns: int) -> tuple[int]:
    return ((windows - 1) * cdiv(columns, _columns(columns)),)


def _columns(columns: int) -> int:
    return min(next_power_of_2(columns), 256)


def _sum(columns: int, chunk: int) -> dict[str, Any]:
    """How the second launch is made."""
    config = Config(num_warps=4, num_stages=1, CHUNK=chunk, BLOCK_D=_columns(columns), STEP=STEP)
    return {"config": config, "D": columns}


def gradient_work(problem: Problem) -> Work:
    """Additions of the forward pass; all rows written once, and of the bags' gradients each read once."""
    _, rows, columns, entries = sizes(problem)
    forward, itemsize = work(problem), ITEMSIZE[str(problem["dtype"])]
    return Work(forward.flops, forward.bytes + (rows - min(entries, rows)) * columns * itemsize)


def compile_signature(problem: Problem, config: Config) -> tuple[Signature, ...]:
    _, rows, columns, entries = sizes(problem)
    chunk, dtype = config.integer("CHUNK"), TRITON_NAMES[str(problem["dtype"])]
    windows, pieces = cdiv(entries, chunk), _pieces(entries, rows, chunk)
    first = signature(
        sum_pieces,
        _programs(pieces, columns, config),
        pointers={
            **{"d_out": dtype, "out": dtype, "scales": "fp32", "partial": "fp32"},
            **dict.fromkeys(("first", "sorted_rows", "places"), "i32"),
        },
        integers={"entries": entries, "count": pieces, "rows": rows},
        constexprs={"D": columns, "SCALED": bool(problem.get("weighted")) or problem.get("mode") == "mean"},
        config=config,
    )
    if windows <= 1:
        return (first,)
    options = _sum(columns, chunk)
    second = signature(
        add_windows,
        *_addition(windows, columns),
        pointers={"partial": "fp32", "sorted_rows": "i32", "run_ends": "i32", "out": dtype},
        integers={"rows": rows},
        config=options.pop("config"),
        constexprs=options,
    )
    return first, second


KERNEL = Kernel(
    fields=tuple(field for field in FIELDS if field.name != "aligned"),
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=gradient,
    baseline=torch_gradient,
    providers={"torch": Provider(torch_gradient)},
    work=gradient_work,
    problems=(
        "B=12,V=100,D=128,L=2,dtype=float16",
        "B=10,V=5,D=64,L=16,dtype=bfloat16,mode=mean,padded=true,ragged=true",
        "B=6,V=8,D=40,L=8,dtype=float32,weighted=true,ragged=true,index=int32",
        "B=3,V=4000,D=32,L=2,dtype=float16,T=5,padded=true,ragged=true",
    ),
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=4),
    },
    signature=compile_signature,
    rule=rule,
    operator=OPERATOR,
)
