"""The three launches of block-sparse attention's gradients: their sizes, grids and constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.arithmetic import cdiv
from autotune.data import Config, Value
from autotune.kernel import Signature
from autotune.kernels._attention_backward import row_deltas
from autotune.kernels._attention_backward_launch import Step
from autotune.kernels._attention_tiles import widths
from autotune.kernels._block_sparse_attention_backward import listed_keys_gradient
from autotune.kernels._block_sparse_attention_backward_queries import listed_queries_gradient
from autotune.kernels._launch import TRITON_NAMES, signature

#: Elements of one tile of the first launch, which only streams.
_DELTA_ELEMENTS = 8192
#: Its config, whatever is tuned for the products: 32 elements a thread of two tensors.
_DELTA_CONFIG = Config(num_warps=8)
_FLOATS = ("score_scale", "scale")
#: Tensors by their type: of the inputs, float32, int32.
_NARROW = ("q", "k", "v", "d_out", "out", "dq", "dk", "dv")
_WIDE = ("lse", "d_lse", "delta")
_LISTS = ("offsets", "partial", "blocks", "longest_first")
_DOCUMENTS = ("q_documents", "k_documents")


def steps(
    sizes: Mapping[str, int],
    config: Config,
    *,
    block: tuple[int, int],
    causal: bool,
    documents: bool,
    has_d_lse: bool,
) -> tuple[Step, Step, Step]:
    """
    The launches in order, empty grids included.

    :param sizes: B, H, HKV, SQ, SK, D, DV, window, mask_batches, mask_heads, and all strides by the kernels' names
    :param block: (queries, keys) of a block of the mask.
    """
    batch, heads, rows, columns = (sizes[name] for name in ("B", "H", "SQ", "SK"))
    tiles = widths(sizes["D"], sizes["DV"])
    streamed = _DELTA_ELEMENTS // tiles["BLOCK_DV"]
    constexprs: dict[str, Value] = {
        **tiles,
        **{"ROWS": streamed, "HAS_D_LSE": has_d_lse},
        **{"MASK_M": block[0], "MASK_N": block[1], "EVEN_M": rows % block[0] == 0},
        **{"CAUSAL": causal, "WINDOW": sizes["window"] > 0, "DOCUMENTS": documents},
    }
    by_column = cdiv(columns, block[1]) * (block[1] // config.integer("BLOCK_N1"))
    by_row = cdiv(rows, block[0]) * (block[0] // config.integer("BLOCK_M2"))
    first, second, third = (
        Step(
            function,
            programs,
            {name: size for name, size in {**sizes, "LENGTH": rows}.items() if name in function.arg_names},
            {name: value for name, value in constexprs.items() if name in function.arg_names},
            chosen,
        )
        for function, programs, chosen in (
            (row_deltas, cdiv(rows, streamed) * batch * heads, _DELTA_CONFIG),
            (listed_keys_gradient, by_column * batch * sizes["HKV"], config),
            (listed_queries_gradient, by_row * batch * heads, config),
        )
    )
    return first, second, third


def signatures(launches: tuple[Step, ...], *, dtype: str, aligned: bool) -> tuple[Signature, ...]:
    return tuple(_signature(step, TRITON_NAMES[dtype], aligned) for step in launches)


def _signature(step: Step, dtype: str, aligned: bool) -> Signature:
    absent: dict[str, Any] = {} if step.constexprs.get("DOCUMENTS", True) else dict.fromkeys(_DOCUMENTS)
    pointers = {
        **dict.fromkeys(_NARROW, dtype),
        **dict.fromkeys(_WIDE, "fp32"),
        **dict.fromkeys((*_LISTS, *_DOCUMENTS), "i32"),
    }
    taken = [name for name in step.function.arg_names if name not in absent]
    return signature(
        step.function,
        step.programs,
        pointers={name: pointers[name] for name in taken if name in pointers},
        misaligned=() if aligned else ("q", "k", "v"),
        integers=step.integers,
        floats=tuple(name for name in _FLOATS if name in taken),
        constexprs={**step.constexprs, **absent},
        config=step.config,
    )
