"""Which launches make a block-sparse product, from plain numbers: of tensors at hand or of a problem on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config
from autotune.kernels._bsr_rows import by_row, persistent
from autotune.kernels._bsr_split import by_chunk, sum_chunks

#: Of the launch that adds up chunks: elements a program takes, and its warps.
_SUM_ELEMENTS = 2048
_SUM_CONFIG = Config(num_warps=4)

#: What stands on the device, by the functions' names for it, and its type; everything else is of the call's dtype.
INDICES = ("starts", "column_of", "stored_of", "order", "chunks", "sums")


@dataclass(frozen=True)
class Product:
    """One call: x (batch, M, inner) times a weight whose walk has ``rows`` block rows of results."""

    batch: int
    M: int
    rows: int
    #: Rows and columns of a block as it is stored.
    block: tuple[int, int]
    transposed: bool
    #: In elements, by dimension; 0 for the batch where there is one product.
    strides_x: tuple[int, int, int]
    strides_out: tuple[int, int, int]
    activation: str = "none"

    @property
    def outputs(self) -> int:
        """Columns of the result that a block has to do with."""
        return self.block[1] if self.transposed else self.block[0]


@dataclass(frozen=True)
class Launch:
    function: Any
    #: Programs, or tiles of a persistent kernel.
    programs: int
    integers: Mapping[str, int]
    constexprs: Mapping[str, Any]
    config: Config
    persistent: bool = False

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the function's arguments that are tensors, or None."""
        others = {*self.integers, *self.constexprs, *self.config}
        return tuple(name for name in self.function.arg_names if name not in others)


def launches(
    product: Product, config: Config, chunk_counts: Callable[[int], tuple[int, int]]
) -> tuple[Launch, ...]:
    """In order.

    :param chunk_counts: most blocks of a chunk -> chunks, and rows of several
    """
    structure = config["STRUCTURE"]
    strides = dict(zip(("stride_ob", "stride_om", "stride_on"), product.strides_out, strict=True))
    integers = {
        "B": product.batch,
        "M": product.M,
        **dict(zip(("stride_xb", "stride_xm", "stride_xk"), product.strides_x, strict=True)),
        **strides,
    }
    constexprs: dict[str, Any] = {
        "BLOCK_ROWS": product.block[0],
        "BLOCK_COLUMNS": product.block[1],
        "TRANSPOSED": product.transposed,
        "ACTIVATION": product.activation,
    }
    tiles_m = product.batch * cdiv(product.M, config.integer("BLOCK_M"))
    parts = product.outputs // config.integer("BLOCK_N")
    if structure != "split":
        integers["ROWS"] = product.rows
        function = persistent if structure == "persistent" else by_row
        tiles = tiles_m * product.rows * parts
        return (Launch(function, tiles, integers, constexprs, config, structure == "persistent"),)
    chunks, long_rows = chunk_counts(config.integer("SPLIT"))
    first = Launch(by_chunk, tiles_m * chunks * parts, integers, constexprs, config)
    if not long_rows:
        return (first,)
    sum_m = min(next_power_of_2(product.M), max(1, _SUM_ELEMENTS // product.outputs))
    constexprs = {"OUTPUTS": product.outputs, "SUM_M": sum_m, "ACTIVATION": product.activation}
    integers = {"B": product.batch, "M": product.M, **strides}
    programs = product.batch * cdiv(product.M, sum_m) * long_rows
    return first, Launch(sum_chunks, programs, integers, constexprs, _SUM_CONFIG)
