"""A product's problem, read once: sizes, bytes an element, and what kinds of launch it lends itself to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from autotune.arithmetic import cdiv
from autotune.data import ITEMSIZE, Device, Problem, Value

#: What a skinny launch takes: its rows are summed one by one, without tensor cores.
MOST_SKINNY_ROWS = 16


@dataclass(frozen=True)
class Product:
    """(batch, M, K) @ (batch, K, N)."""

    batch: int
    M: int
    #: Columns of b: with swiglu, of the gate and of what it gates.
    N: int
    K: int
    dtype: str
    itemsize: int
    out_itemsize: int
    #: Letters of a and b: n rows contiguous, t columns contiguous, s neither.
    layout: str
    aligned: bool
    gated: bool
    #: An activation or a residual comes after the product.
    finished: bool
    tf32: bool
    batch_invariant: bool

    def tiles(self, config: Mapping[str, Value]) -> int:
        """Tiles of one part of K; a skinny tile holds all rows."""
        rows = 1 if config["STRUCTURE"] == "skinny" else cdiv(self.M, _int(config["BLOCK_M"]))
        return self.batch * rows * cdiv(self.N, _int(config["BLOCK_N"]))

    @property
    def scattered(self) -> tuple[bool, bool]:
        """Whether a and b are loaded element by element: rows in pieces, or that start at no multiple of 16."""
        inner_a = self.K if self.layout[0] == "n" else self.M
        inner_b = self.N if self.layout[1] == "n" else self.K
        return (
            not self.aligned or self.layout[0] == "s" or inner_a % 16 != 0,
            not self.aligned or self.layout[1] == "s" or inner_b % 16 != 0,
        )

    def on_plain_cores(self, device: Device) -> bool:
        """NVIDIA's tensor cores have no float32 but tf32: each multiply-add is an instruction of a thread."""
        return self.dtype == "float32" and not self.tf32 and device.arch.startswith("sm_")


@lru_cache(maxsize=64)
def read(problem: Problem) -> Product:
    dtype, out = str(problem["dtype"]), str(problem.get("out", "default"))
    if out == "default":
        scaled = problem.get("scale", "none") != "none"
        narrow = "bfloat16" if dtype.startswith("float8") or scaled else "int32"
        out = dtype if ITEMSIZE[dtype] > 1 else narrow
    return Product(
        batch=problem.integer("B", 1),
        M=problem.integer("M"),
        N=problem.integer("N"),
        K=problem.integer("K"),
        dtype=dtype,
        itemsize=ITEMSIZE[dtype],
        out_itemsize=ITEMSIZE[out],
        layout=str(problem.get("layout", "nn")),
        aligned=bool(problem.get("aligned", True)),
        gated=problem.get("activation", "none") == "swiglu",
        finished=problem.get("activation", "none") != "none" or bool(problem.get("residual", False)),
        tf32=bool(problem.get("tf32", False)),
        batch_invariant=bool(problem.get("batch_invariant", False)),
    )


def is_at_least(device: Device, generation: int) -> bool:
    """Whether it is NVIDIA's compute capability ``generation`` (90 for sm_90) or later."""
    return device.arch.startswith("sm_") and int(device.arch.removeprefix("sm_")) >= generation


def no_descriptor(product: Product) -> str | None:
    """None if all of its tensors can be described to the tensor memory accelerator, else why not."""
    if product.batch != 1:
        return f"takes one product, not a batch of {product.batch}"
    if product.K == 0:
        return "takes no empty tensor, and K=0"
    if "s" in product.layout:
        return f"takes rows or columns that are contiguous, and layout={product.layout} has neither"
    if not product.aligned:
        return "takes addresses and strides that are multiples of 16 bytes, and aligned=false"
    a, b = product.layout[0], product.layout[1]
    result = product.N // 2 if product.gated else product.N
    rows = (
        ("a", product.K if a == "n" else product.M, product.itemsize),
        ("b", product.N if b == "n" else product.K, product.itemsize),
        ("the result", result, product.out_itemsize),
    )
    for name, size, itemsize in rows:
        if size * itemsize % 16:
            return f"takes strides that are multiples of 16 bytes, and {name}'s are {size} x {itemsize} bytes"
    if product.gated and b == "n" and result * product.itemsize % 16:
        return f"takes halves of rows of 16 bytes or a multiple, and b's are {result} x {product.itemsize} bytes"
    return None


def _int(value: Value) -> int:
    return int(value)
