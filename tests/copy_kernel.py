"""A kernel that copies N elements, and whose compilation may be told to misbehave.

BLOCK changes its code, num_stages changes nothing (there is no loop), ``does`` is what signature() does.
"""

import os
import signal
from dataclasses import replace

import triton
import triton.language as tl

from autotune.data import Config
from autotune.kernel import Field, Kernel, Signature, Work
from autotune.space import SearchSpace


@triton.jit
def _copy(source, target, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + offsets, tl.load(source + offsets, mask=offsets < n), mask=offsets < n)


def signature(problem, config):
    if config.get("does") == "abort":
        os.abort()
    if config.get("does") == "hang":
        signal.pause()
    if config.get("does") == "raise":
        raise ZeroDivisionError("a tile of\nno size")
    launch = Signature(
        function=_copy,
        types={"source": "*fp16", "target": "*fp16", "n": "i32", "BLOCK": "constexpr"},
        constexprs={"BLOCK": config["BLOCK"]},
        divisible=("source", "target"),
        options={"num_warps": 4, "num_stages": config.get("num_stages", 2), "enable_fp_fusion": True},
        programs=-(-problem["N"] // config["BLOCK"]),
    )
    return (launch, replace(launch, constexprs={"BLOCK": 512})) if config.get("does") == "copy again" else launch


def unused(*args):
    raise AssertionError("compiling runs nothing")


KERNEL = Kernel(
    fields=(Field("N", "size"),),
    problem=unused,
    key=unused,
    inputs=unused,
    run=unused,
    reference=unused,
    work=lambda problem: Work(flops=0, bytes=4 * problem["N"]),
    problems=("N=1000",),
    tolerances={},
    signature=signature,
)
SPACE = SearchSpace(
    params=lambda problem, device: {"BLOCK": (128, 256), "num_stages": (2, 3)},
    default=lambda problem, device: Config(BLOCK=256, num_stages=2),
)
