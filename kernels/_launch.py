"""What every launch wrapper needs: one way to launch, and the interpreter's gaps papered over."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction

from autotune.data import Config, Value
from autotune.kernel import Signature

#: torch dtype names to the names in Triton signatures.
TRITON_NAMES: Mapping[str, str] = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}

# The interpreter patches Triton's modules while a kernel runs, so only one thread may be in it.
_INTERPRETER = threading.Lock()

# Compiler options that mean nothing to the interpreter, which would take them for kernel arguments.
_AMD_OPTIONS = ("waves_per_eu", "matrix_instr_nonkdim", "kpack")


def launch(function: Any, programs: int, *args: Any, config: Config, **constexprs: Value) -> None:
    """``function[(programs,)](*args, **constexprs, **config)`` on the device of the first tensor.

    The grid has one axis, since the other two end at 65535 programs. FP fusion is always set: Triton 3.9
    warns where it is not, and 3.10 changes the default.
    """
    options = dict(config)
    if isinstance(function, InterpretedFunction):
        options = {name: value for name, value in options.items() if name not in _AMD_OPTIONS}
        with _INTERPRETER:
            function[(programs,)](*args, **constexprs, **options)
        return
    with torch.cuda.device(args[0].device):
        function[(programs,)](*args, **constexprs, **options, enable_fp_fusion=True)


def must_widen(function: Any, tensor: torch.Tensor) -> bool:
    """Whether to compute in float32 and round once in torch instead.

    Triton's interpreter holds bfloat16 as raw uint16 bits: sums, comparisons and dots of them are wrong in
    every version up to 3.9, and its float32 -> bfloat16 cast truncates.
    """
    return tensor.dtype == torch.bfloat16 and isinstance(function, InterpretedFunction)


def signature(
    function: Any,
    programs: int,
    *,
    pointers: Mapping[str, str],
    misaligned: tuple[str, ...] = (),
    integers: Mapping[str, int],
    floats: tuple[str, ...] = (),
    constexprs: Mapping[str, Value],
    config: Config,
) -> Signature:
    """The specialisation Triton would make for a launch: ints of value 1 folded, multiples of 16 marked.

    :param programs: size of the grid.
    :param misaligned: pointers that are no multiples of 16 bytes.
    """
    names = set(function.arg_names)
    constants = {**constexprs, **{name: value for name, value in config.items() if name in names}}
    constants.update({name: 1 for name, value in integers.items() if value == 1})
    types = {name: f"*{dtype}" for name, dtype in pointers.items()}
    types.update({name: "i32" if value < 2**31 else "i64" for name, value in integers.items()})
    types.update(dict.fromkeys(floats, "fp32"))
    types.update(dict.fromkeys(constants, "constexpr"))
    aligned = (name for name in pointers if name not in misaligned)
    divisible = (*aligned, *(name for name, value in integers.items() if value % 16 == 0))
    options = {name: value for name, value in config.items() if name not in names}
    return Signature(
        function=function,
        types={name: types[name] for name in function.arg_names},
        constexprs=constants,
        divisible=divisible,
        options={**options, "enable_fp_fusion": True},
        programs=programs,
    )
