"""Which launches make a ``lora``, from plain numbers: the same for tensors at hand and for a problem on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config
from autotune.kernels._lora_rows import expand_row, fused_row, shrink_row
from autotune.kernels._lora_tiles import expand_tile, shrink_tile


@dataclass(frozen=True)
class Sizes:
    """One call: x (T, K), a (A, R, K), b (A, N, R)."""

    T: int
    K: int
    N: int
    R: int
    A: int
    #: In elements: of x by token; of a by adapter, rank and element; of b by adapter, column and rank.
    stride_xt: int
    strides_a: tuple[int, ...]
    strides_b: tuple[int, ...]
    #: By token; 0 where there is no base.
    stride_base: int
    stride_out: int
    in_place: bool = False


@dataclass(frozen=True)
class Launch:
    function: Any
    programs: int
    integers: Mapping[str, int]
    constexprs: Mapping[str, Any]

    def given(self, *among: str) -> tuple[str, ...]:
        """Arguments of the function, in order, that are none of its constants."""
        return tuple(name for name in self.function.arg_names if name in among)


def sorts(config: Config) -> bool:
    """Whether tokens go in order of their adapters."""
    return config["STRUCTURE"] == "grouped"


def launches(sizes: Sizes, config: Config) -> tuple[Launch, ...]:
    constexprs = {
        "R": sizes.R,
        "RANKS": next_power_of_2(sizes.R),
        "EVEN_K": sizes.K % config.integer("BLOCK_K") == 0,
        "STAGES": config.integer("num_stages"),
        "IN_PLACE": sizes.in_place,
        **dict(zip(("stride_ar", "stride_ak"), sizes.strides_a[1:], strict=True)),
        **dict(zip(("stride_bn", "stride_br"), sizes.strides_b[1:], strict=True)),
    }
    integers = {
        **{name: getattr(sizes, name) for name in ("T", "K", "N", "A", "stride_xt", "stride_base", "stride_out")},
        "stride_aa": sizes.strides_a[0],
        "stride_ba": sizes.strides_b[0],
    }

    def made(function: Any, programs: int) -> Launch:
        taken = function.arg_names
        return Launch(
            function,
            programs,
            {name: value for name, value in integers.items() if name in taken},
            {name: value for name, value in constexprs.items() if name in taken},
        )

    tiles_n, ranks = cdiv(sizes.N, config.integer("BLOCK_N")), cdiv(sizes.R, config.integer("BLOCK_R"))
    if config["STRUCTURE"] == "fused":
        return (made(fused_row, sizes.T * config.integer("SPLIT_N")),)
    if config["STRUCTURE"] == "gathered":
        rows, shrink, expand = sizes.T, shrink_row, expand_row
    else:
        rows, shrink, expand = cdiv(sizes.T, config.integer("BLOCK_M")), shrink_tile, expand_tile
    return made(shrink, rows * ranks * config.integer("SPLIT_K")), made(expand, rows * tiles_n)
