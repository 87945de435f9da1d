"""``embedding_bag``: sums or means of rows by bag, of one table or of several packed into one, in one launch.

A program gathers UNROLL rows for each of BAGS bags at a time. Long bags can be shared out over SPLIT programs,
whose sums a second launch adds up.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config, Problem
from autotune.kernel import Kernel, Provider, Signature, Tolerance
from autotune.kernels._embedding_bag import add_splits, sum_bags
from autotune.kernels._embedding_bag_arguments import Bags, check_values
from autotune.kernels._embedding_bag_operator import OPERATOR, SERVES, check_weight
from autotune.kernels._embedding_bag_problem import FIELDS, bags_like, fields_of, rule, sizes, work
from autotune.kernels._embedding_bag_reference import one_padding, reference, torch_way
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._tensors import aligned, dtype_name, random, relaid


def problem(weight: torch.Tensor, bags: Bags) -> Problem:
    """:raises ValueError: if the arguments don't fit together, or the kernel does not take them."""
    check_weight(weight, bags)
    fields = fields_of(bags, *weight.shape)
    return KERNEL.make(**fields, dtype=dtype_name(weight=weight), aligned=aligned(weight))


def key(weight: torch.Tensor, bags: Bags) -> Hashable:
    # What is not here, run refuses.
    return weight.shape, weight.stride(), weight.dtype, weight.get_device(), weight.data_ptr() & 15, bags.key()


def inputs(problem: Problem, seed: int, device: str) -> tuple[torch.Tensor, Bags]:
    generator = torch.Generator().manual_seed(seed)
    _, rows, columns, _ = sizes(problem)
    weight = random(rows, columns, dtype=str(problem["dtype"]), device=device, generator=generator)
    return relaid(weight, "n", not problem.get("aligned", True)), bags_like(problem, generator, device)


def run(config: Config, weight: torch.Tensor, bags: Bags) -> torch.Tensor:
    """(bags, columns), or (bags of a table, tables, columns): contiguous, in the dtype of ``weight``."""
    check_weight(weight, bags)
    check_values(bags, weight.shape[0])
    if must_widen(sum_bags, weight):
        return run(config, weight.float(), bags.widened()).to(weight.dtype)
    rows, columns = weight.shape
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    count, padding = bags.bag_count, bags.padding(rows)
    out = torch.empty(bags.shape(columns), dtype=weight.dtype, device=weight.device)
    if out.numel() == 0:
        return out
    splits, mean = config.integer("SPLIT"), bags.mode == "mean"
    partial = kept_counts = out
    if splits > 1:
        partial = torch.empty((splits, count, columns), dtype=torch.float32, device=weight.device)
        if mean:
            kept_counts = torch.empty((splits, count), dtype=torch.int32, device=weight.device)
    weights, tables = bags.per_sample_weights, bags.tables
    launch(
        sum_bags,
        _programs(count, columns, config),
        weight,
        bags.indices.contiguous(),
        # Pointers that are not followed are the result's.
        out if bags.offsets is None else bags.offsets.contiguous(),
        out if weights is None else weights.contiguous(),
        out if tables is None or bags.table_count == 1 else tables.contiguous(),
        partial,
        kept_counts,
        *(bags.indices.numel(), bags.indices.shape[-1], count, 0 if padding is None else padding, weight.stride(0)),
        config=config,
        **_traits(fields_of(bags, rows, columns)),
    )
    if splits > 1:
        launch(
            add_splits, *_addition(count, columns), partial, kept_counts, out, count, **_sum(columns, splits, mean)
        )
    return out


def _programs(count: int, columns: int, config: Config) -> int:
    blocks = cdiv(columns, config.integer("BLOCK_D"))
    return cdiv(count, config.integer("BAGS")) * config.integer("SPLIT") * blocks


def _traits(fields: Any) -> dict[str, Any]:
    """What is compiled in of a problem's fields."""
    return {
        "D": fields["D"],
        "TABLES": fields["T"],
        "RAGGED": fields["ragged"],
        "WEIGHTED": fields["weighted"],
        "PADDED": fields["padded"],
        "MEAN": fields["mode"] == "mean",
    }


def _addition(count: int, columns: int) -> tuple[int]:
    return (count * cdiv(columns, _columns(columns)),)


def _columns(columns: int) -> int:
    return min(next_power_of_2(columns), 256)


def _sum(columns: int, splits: int, mean: bool) -> dict[str, Any]:
    """How the second launch is made."""
    config = Config(num_warps=4, num_stages=1, SPLIT=splits, BLOCK_D=_columns(columns))
    return {"config": config, "D": columns, "MEAN": mean}


def compile_signature(problem: Problem, config: Config) -> tuple[Signature, ...]:
    count, _, columns, entries = sizes(problem)
    fields: dict[str, Any] = {field.name: problem.get(field.name, field.default) for field in FIELDS}
    dtype, index = TRITON_NAMES[str(problem["dtype"])], TRITON_NAMES[fields["index"]]
    splits, mean = config.integer("SPLIT"), fields["mode"] == "mean"
    between = "fp32" if splits > 1 else dtype
    counts = "i32" if splits > 1 and mean else dtype
    first = signature(
        sum_bags,
        _programs(count, columns, config),
        pointers={
            "weight": dtype,
            "indices": index,
            "offsets": index if fields["ragged"] else dtype,
            "weights": dtype,
            "tables": "i64" if fields["T"] > 1 else dtype,
            "out": between,
            "kept_counts": counts,
        },
        misaligned=() if fields["aligned"] else ("weight",),
        integers={
            "entries": entries,
            "length": problem.integer("L"),
            "count": count,
            "padding_idx": 1,
            "stride_row": columns,
        },
        constexprs=_traits(fields),
        config=config,
    )
    if splits == 1:
        return (first,)
    options = _sum(columns, splits, mean)
    second = signature(
        add_splits,
        *_addition(count, columns),
        pointers={"partial": "fp32", "kept_counts": counts, "out": dtype},
        integers={"count": count},
        config=options.pop("config"),
        constexprs=options,
    )
    return first, second


KERNEL = Kernel(
    fields=FIELDS,
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    providers={"torch": Provider(torch_way, one_padding)},
    work=work,
    problems=(
        "B=16,V=1000,D=128,L=4,dtype=float16",
        "B=3,V=300,D=64,L=64,dtype=bfloat16,mode=mean,padded=true,ragged=true",
        "B=6,V=50,D=40,L=8,dtype=float32,weighted=true,ragged=true,index=int32,aligned=false",
        "B=3,V=4000,D=32,L=2,dtype=float16,T=5,padded=true,ragged=true",
    ),
    # torch adds up one entry after the other, which in float32 costs more than our lanes do.
    tolerances={
        "float16": Tolerance(ratio=2, ulps=1),
        "bfloat16": Tolerance(ratio=2, ulps=1),
        "float32": Tolerance(ratio=4, ulps=4),
    },
    signature=compile_signature,
    rule=rule,
    operator=OPERATOR,
    serves=SERVES,
)
