"""How a grouped product is launched, from plain numbers: alike for tensors at hand and for a problem on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import ITEMSIZE, Config
from autotune.kernels._grouped_gemm_descriptor import descriptor
from autotune.kernels._grouped_gemm_tiles import persistent, tiled

#: Offsets that a program looks at together.
_MOST_GROUPS = 1024


@dataclass(frozen=True)
class Grouped:
    """One call: T rows of x, in groups, times each group's (K, N)."""

    T: int
    K: int
    N: int
    groups: int
    dtype: str
    #: In elements: of x (T, K), and of w (groups, K, N).
    strides_x: tuple[int, ...]
    strides_w: tuple[int, ...]
    #: BLAS letters of x and of each weight.
    layout: str
    #: The base addresses are multiples of 16.
    on_16_bytes: bool
    activation: str = "none"

    @property
    def columns(self) -> int:
        """Of the result."""
        return self.N // 2 if self.activation == "swiglu" else self.N

    def tile_rows(self, block_m: int) -> int:
        """The most rows of tiles that groups of any sizes, and the rows of none, take together."""
        return min(self.T, (self.T + (self.groups + 1) * (block_m - 1)) // block_m)

    def fits_descriptors(self) -> bool:
        """A contiguous dimension each, of x that along K, and rows that start at multiples of 16 bytes."""
        if not self.on_16_bytes or self.layout[0] != "n" or self.layout[1] == "s" or not self.K:
            return False
        size, (by_group, by_inner, by_column) = ITEMSIZE[self.dtype], self.strides_w
        rows = by_inner if self.layout[1] == "n" else by_column
        length = self.N if self.layout[1] == "n" else self.K
        strides = self.strides_x[0], rows, by_group
        return rows >= length and all(stride > 0 and stride * size % 16 == 0 for stride in strides)


@dataclass(frozen=True)
class Launch:
    function: Any
    #: Programs, or tiles of a persistent kernel.
    programs: int
    integers: Mapping[str, int]
    constexprs: Mapping[str, Any]

    @property
    def persistent(self) -> bool:
        return self.function is not tiled


@lru_cache(maxsize=4096)
def plan(product: Grouped, config: Config) -> Launch:
    structure = str(config["STRUCTURE"])
    if structure == "descriptor" and not product.fits_descriptors():
        structure = "persistent"
    block_m, block_n = config.integer("BLOCK_M"), config.integer("BLOCK_N")
    rows = product.tile_rows(block_m)
    programs = rows * cdiv(product.N, block_n)
    integers = {"T": product.T, "N": product.N, "K": product.K, "G": product.groups}
    constexprs: dict[str, Any] = {
        "GROUPS": min(_MOST_GROUPS, next_power_of_2(product.groups + 1)),
        "ACTIVATION": product.activation,
    }
    by_group, by_inner, by_column = product.strides_w
    if structure == "descriptor":
        along_k = product.layout[1] == "t"
        integers |= {
            "stride_x": product.strides_x[0],
            "stride_wg": by_group,
            "stride_w": by_column if along_k else by_inner,
        }
        return Launch(descriptor, programs, integers, {**constexprs, "W_BY_COLUMN": along_k})
    names = ("stride_xt", "stride_xk", "stride_wg", "stride_wk", "stride_wn")
    integers |= dict(zip(names, (*product.strides_x, *product.strides_w), strict=True))
    constexprs["EVEN_K"] = product.K % config.integer("BLOCK_K") == 0
    if structure == "persistent":
        return Launch(persistent, programs, integers, constexprs)
    return Launch(tiled, programs, {"ROWS": rows, **integers}, constexprs)
