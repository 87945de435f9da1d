"""The three launches of attention's gradients: their sizes, grids and constants, dense and of packed sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton

from autotune.arithmetic import cdiv
from autotune.data import Config, Value
from autotune.kernel import Signature
from autotune.kernels._attention_backward import keys_gradient, row_deltas
from autotune.kernels._attention_backward_queries import queries_gradient
from autotune.kernels._attention_tiles import widths
from autotune.kernels._launch import TRITON_NAMES, signature

#: Elements of one tile of the first launch, which only streams.
_ROWS_ELEMENTS = 8192
#: Its config, whatever is tuned for the products: 32 elements a thread of two tensors.
_ROWS_CONFIG = Config(num_warps=8)
_FLOATS = ("score_scale", "cap_log2", "scale")

_DENSE = (row_deltas, keys_gradient, queries_gradient)
#: The same functions where lengths change with every batch: code for each of their divisors would compile again.
_VARLEN = tuple(
    triton.jit(
        function.fn,
        do_not_specialize=[name for name in ("SQ", "SK", "LENGTH", "stride_lh") if name in function.arg_names],
    )
    for function in _DENSE
)


@dataclass(frozen=True)
class Step:
    """One launch, short of its tensors."""

    function: Any
    programs: int
    integers: Mapping[str, int]
    constexprs: Mapping[str, Value]
    config: Config

    def positional(self, values: Mapping[str, Any]) -> list[Any]:
        """Tensors and floats, which come first, in the function's order."""
        return [values[name] for name in self.function.arg_names if name in values]

    def named(self) -> dict[str, Any]:
        """All other arguments."""
        return {**self.integers, **self.constexprs}


def steps(
    sizes: Mapping[str, int],
    config: Config,
    *,
    causal: bool,
    softcap: bool,
    has_d_lse: bool,
    varlen: bool,
) -> tuple[Step, Step, Step]:
    """
    The launches in order, empty grids included.

    :param sizes: B, H, HKV, SQ, SK, D, DV, window, LENGTH (rows of lse), and all strides by the kernels' names
    :param varlen: B is the number of sequences, SQ and SK are the longest ones.
    """
    batch, heads = sizes["B"], sizes["H"]
    tiles = widths(sizes["D"], sizes["DV"])
    rows = _ROWS_ELEMENTS // tiles["BLOCK_DV"]
    constexprs: dict[str, Value] = {
        **tiles,
        "ROWS": rows,
        "HAS_D_LSE": has_d_lse,
        "CAUSAL": causal,
        "WINDOW": sizes["window"] > 0,
        "SOFTCAP": softcap,
        "VARLEN": varlen,
    }
    planes = heads if varlen else batch * heads
    programs = (
        cdiv(sizes["LENGTH"], rows) * planes,
        cdiv(sizes["SK"], config.integer("BLOCK_N1")) * batch * sizes["HKV"],
        cdiv(sizes["SQ"], config.integer("BLOCK_M2")) * batch * heads,
    )
    functions, configs = _VARLEN if varlen else _DENSE, (_ROWS_CONFIG, config, config)
    first, second, third = (
        Step(
            function,
            count,
            {name: size for name, size in sizes.items() if name in function.arg_names},
            {name: value for name, value in constexprs.items() if name in function.arg_names},
            chosen,
        )
        for function, count, chosen in zip(functions, programs, configs, strict=True)
    )
    return first, second, third


def signatures(launches: tuple[Step, ...], *, dtype: str, aligned: bool, offsets: str) -> tuple[Signature, ...]:
    """:param offsets: Triton type of what stands for the sequences' offsets."""
    narrow = dict.fromkeys(("q", "k", "v", "d_out", "out", "dq", "dk", "dv"), TRITON_NAMES[dtype])
    pointers = {**narrow, "lse": "fp32", "d_lse": "fp32", "delta": "fp32", "cu_q": offsets, "cu_k": offsets}
    return tuple(
        signature(
            step.function,
            step.programs,
            pointers={name: kind for name, kind in pointers.items() if name in step.function.arg_names},
            misaligned=() if aligned else ("q", "k", "v"),
            integers=step.integers,
            floats=tuple(name for name in _FLOATS if name in step.function.arg_names),
            constexprs=step.constexprs,
            config=step.config,
        )
        for step in launches
    )


def row_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, its last stride 1."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def named(name: str, dims: str, tensor: torch.Tensor) -> dict[str, int]:
    """The tensor's first strides, as the kernels call them."""
    return {f"stride_{name}{dim}": stride for dim, stride in zip(dims, tensor.stride(), strict=False)}
