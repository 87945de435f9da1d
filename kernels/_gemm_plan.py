"""Which launches make a product, from plain numbers: the same for tensors at hand and for a problem on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import ITEMSIZE, Config, Value
from autotune.kernels._gemm_descriptor import descriptor
from autotune.kernels._gemm_persistent import persistent
from autotune.kernels._gemm_reduce import reduce
from autotune.kernels._gemm_skinny import skinny
from autotune.kernels._gemm_tiled import tiled

FP8 = ("float8_e4m3fn", "float8_e5m2")

#: Rows that the structure without tensor cores takes.
MAX_SKINNY_ROWS = 16

#: What a config says that has no such parameter.
_OFF: Mapping[str, Value] = {
    "SPLIT_K": 1,
    "EPILOGUE_SUBTILE": 1,
    "FLATTEN": False,
    "WARP_SPECIALIZE": False,
}

#: float8 products that the tensor cores of sm_90 add up by themselves, in 14 bits, before float32 takes them over:
#: as many as in DeepGEMM. ``fast_accum`` leaves all of them to the tensor cores.
_IMPRECISE = 128

#: Of the launch that adds up parts: elements a program takes, and its warps.
_REDUCE_ELEMENTS = 1024
_REDUCE_CONFIG = Config(num_warps=4)


@dataclass(frozen=True)
class Product:
    """One call: a (batch, M, K) times b (batch, K, N), and what follows."""

    batch: int
    M: int
    N: int
    K: int
    dtype: str
    #: Of the result.
    out_dtype: str
    #: Of a and b, in elements, by dimension.
    strides_a: tuple[int, ...]
    strides_b: tuple[int, ...]
    #: BLAS letters of a and b.
    layout: str
    #: The base addresses of a, b and the result are multiples of 16.
    on_16_bytes: bool
    activation: str = "none"
    scale: str = "none"
    tf32: bool = False
    fast_accum: bool = False

    @property
    def columns(self) -> int:
        """Of the result."""
        return self.N // 2 if self.activation == "swiglu" else self.N

    @property
    def sum_dtype(self) -> str:
        return "int32" if self.dtype == "int8" else "float32"

    def fits_descriptors(self) -> bool:
        """One matrix each, with a contiguous dimension, and rows that start at multiples of 16 bytes."""
        size, out_size = ITEMSIZE[self.dtype], ITEMSIZE[self.out_dtype]
        if self.batch != 1 or not self.on_16_bytes or self.columns * out_size % 16:
            return False
        for (_, rows, columns), by_row, by_column, letter in (
            (self.strides_a, self.K, self.M, self.layout[0]),
            (self.strides_b, self.N, self.K, self.layout[1]),
        ):
            if letter == "s":
                return False
            stride, length = (rows, by_row) if letter == "n" else (columns, by_column)
            if stride * size % 16 or stride < length:
                return False
        # With rows of b along N, the second half of one starts within it.
        halved = self.activation == "swiglu" and self.layout[1] == "n"
        return not (halved and self.columns * size % 16)


@dataclass(frozen=True)
class Launch:
    function: Any
    #: Programs, or tiles of a persistent kernel.
    programs: int
    integers: Mapping[str, int]
    constexprs: Mapping[str, Any]
    config: Config
    persistent: bool = False
    #: What it writes are parts of a sum, that another launch finishes.
    partial: bool = False

    @property
    def descriptors(self) -> bool:
        return self.function is descriptor

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the function's arguments before its constants."""
        names = self.function.arg_names
        return tuple(name for name in names if name not in self.constexprs and name not in self.config)

    def operand(self, argument: str) -> str:
        """Which of the call's tensors an argument is; a name that no tensor has where it is none of them."""
        if not self.partial:
            return argument
        return {"a": "a", "b": "b", "c": "parts"}.get(argument, "")


def structure(product: Product, config: Config) -> str:
    """The config's, or one that can do what it can't: descriptors have conditions, few rows may become many."""
    wanted = str(config.get("STRUCTURE", "tiled"))
    if wanted == "descriptor" and not product.fits_descriptors():
        wanted = "persistent"
    # Persistent loops have no business with an empty inner one: Triton 3.7 and 3.8 flatten it wrongly.
    if product.K == 0 or (wanted == "skinny" and product.M > MAX_SKINNY_ROWS):
        return "tiled"
    return wanted


@lru_cache(maxsize=4096)
def launches(product: Product, config: Config) -> tuple[Launch, ...]:
    """In order. Partial results between two are (SPLIT_K, batch, M, N) of :attr:`Product.sum_dtype`."""
    kind = structure(product, config)
    block_n, block_k = config.integer("BLOCK_N"), config.integer("BLOCK_K")
    sizes: dict[str, int] = {"M": product.M, "N": product.N, "K": product.K}
    constexprs: dict[str, Any] = {"ACTIVATION": product.activation, "SCALE": product.scale}
    exact = product.dtype in FP8 and not product.fast_accum
    precision = {
        "PRECISION": "tf32" if product.tf32 else "ieee",
        "IMPRECISE": min(_IMPRECISE, block_k) if exact else None,
    }
    tiles_m = 1 if kind == "skinny" else cdiv(product.M, config.integer("BLOCK_M"))
    tiles = product.batch * tiles_m * cdiv(product.N, block_n)
    if kind == "descriptor":
        by_column = {"A_BY_COLUMN": product.layout[0] == "t", "B_BY_COLUMN": product.layout[1] == "t"}
        (_, a_row, a_column), (_, b_row, b_column) = product.strides_a, product.strides_b
        strides = {
            "stride_a": a_column if by_column["A_BY_COLUMN"] else a_row,
            "stride_b": b_column if by_column["B_BY_COLUMN"] else b_row,
        }
        constexprs |= precision | by_column
        return (_launch(descriptor, tiles, sizes | strides, constexprs, config, persistent=True),)

    names = [f"stride_{operand}{dim}" for operand, dims in (("a", "bmk"), ("b", "bkn")) for dim in dims]
    strides = dict(zip(names, (*product.strides_a, *product.strides_b), strict=True))
    integers = {"B": product.batch, **sizes, **strides}
    constexprs["EVEN_K"] = product.K % block_k == 0
    if kind == "persistent":
        return (_launch(persistent, tiles, integers, constexprs | precision, config, persistent=True),)
    split = config.integer("SPLIT_K", 1)
    if kind == "skinny":
        lanes = min(block_k, 16 // ITEMSIZE[product.dtype]) if product.layout[1] == "t" else 1
        constexprs |= {"ROWS": next_power_of_2(product.M), "LANES": lanes}
        constexprs["STAGES"] = config.integer("num_stages")
        first = _launch(skinny, split * tiles, integers, constexprs, config, partial=split > 1)
    else:
        first = _launch(tiled, split * tiles, integers, constexprs | precision, config, partial=split > 1)
    return (first,) if split == 1 else (first, _reduction(product, split))


def _reduction(product: Product, split: int) -> Launch:
    columns = min(256, next_power_of_2(product.columns))
    rows = min(_REDUCE_ELEMENTS // columns, next_power_of_2(product.M))
    programs = product.batch * cdiv(product.M, rows) * cdiv(product.columns, columns)
    integers = {"B": product.batch, "M": product.M, "N": product.N}
    constexprs: dict[str, Any] = {"ACTIVATION": product.activation, "SCALE": product.scale}
    constexprs |= {"ROWS": rows, "COLUMNS": columns, "SPLIT_K": split}
    return Launch(reduce, programs, integers, constexprs, _REDUCE_CONFIG)


def _launch(
    function: Any,
    programs: int,
    integers: Mapping[str, int],
    constexprs: dict[str, Any],
    config: Config,
    **kind: bool,
) -> Launch:
    off = {name: value for name, value in _OFF.items() if name not in config and name in function.arg_names}
    return Launch(function, programs, integers, constexprs | off, config, **kind)
