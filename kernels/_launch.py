"""What every launch wrapper needs: one way to launch, and the interpreter's gaps papered over."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

from autotune.data import Config, Value
from autotune.kernel import Signature

#: torch dtype names to the names in Triton signatures.
TRITON_NAMES: Mapping[str, str] = {
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
    "float8_e4m3fn": "fp8e4nv",
    "float8_e5m2": "fp8e5",
    "int8": "i8",
    "int32": "i32",
    "int64": "i64",
}

# The interpreter patches Triton's modules while a kernel runs, so only one thread may be in it.
_INTERPRETER = threading.Lock()

# Compiler options that mean nothing to the interpreter, which would take them for kernel arguments.
_NOT_INTERPRETED = ("maxnreg", "waves_per_eu", "matrix_instr_nonkdim", "kpack")

#: Programs of a persistent kernel where there is no device to ask: several, each with several tiles.
_INTERPRETED_PROCESSORS = 3


def launch(
    function: Any, programs: int, *args: Any, config: Config, descriptors: bool = False, **constexprs: Value
) -> None:
    """``function[(programs,)](*args, **constexprs, **config)`` on the device of the first tensor.

    The grid has one axis, since the other two end at 65535 programs. FP fusion is always set: Triton 3.9
    warns where it is not, and 3.10 changes the default.

    :param config: as :func:`split` reads it
    :param descriptors: the function makes tensor descriptors, which need memory of their own on a device
    """
    parameters, options = split(function, config)
    if isinstance(function, InterpretedFunction):
        options = {name: value for name, value in options.items() if name not in _NOT_INTERPRETED}
        with _INTERPRETER:
            function[(programs,)](*args, **constexprs, **parameters, **options)
        return
    # A context of its own: the application may have set an allocator for its kernels.
    context = contextvars.copy_context()
    if descriptors:
        context.run(triton.set_allocator, _allocate)
    with torch.cuda.device(args[0].device):
        context.run(function[(programs,)], *args, **constexprs, **parameters, **options, enable_fp_fusion=True)


def split(function: Any, config: Config) -> tuple[dict[str, Value], dict[str, Value]]:
    """What of a config are parameters of the function, and what compiler options.

    Options are in small letters, and one that Triton does not know is its error. What is in capitals and no
    parameter of this function is for another one of the same kernel. ``maxnreg=0`` is no limit.
    """
    parameters = {name: value for name, value in config.items() if name in function.arg_names}
    options = {name: value for name, value in config.items() if name.islower() and name not in parameters}
    if options.get("maxnreg") == 0:
        del options["maxnreg"]
    return parameters, options


def _allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Memory for the descriptors of one launch: torch's allocator keeps it until the stream has passed it."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def multiprocessors(tensor: torch.Tensor) -> int:
    """How many programs of a persistent kernel run side by side on the tensor's device."""
    return _multiprocessors(tensor.get_device()) if tensor.is_cuda else _INTERPRETED_PROCESSORS


@cache
def _multiprocessors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


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

    :param programs: size of the grid; of a persistent kernel, the number of tiles, from which its grid follows
    :param misaligned: pointers that are no multiples of 16 bytes.
    """
    parameters, options = split(function, config)
    constants = {**constexprs, **parameters}
    # Under the interpreter a function does not keep the list, and nothing is compiled.
    specialized = {n: value for n, value in integers.items() if n not in getattr(function, "do_not_specialize", ())}
    constants.update({name: 1 for name, value in specialized.items() if value == 1})
    types = {name: f"*{dtype}" for name, dtype in pointers.items()}
    types.update({name: "i32" if value < 2**31 else "i64" for name, value in integers.items()})
    types.update(dict.fromkeys(floats, "fp32"))
    types.update(dict.fromkeys(constants, "constexpr"))
    aligned = (name for name in pointers if name not in misaligned)
    divisible = (*aligned, *(name for name, value in specialized.items() if value % 16 == 0))
    return Signature(
        function=function,
        types={name: types[name] for name in function.arg_names},
        constexprs=constants,
        divisible=divisible,
        options={**options, "enable_fp_fusion": True},
        programs=programs,
    )
