"""A kernel that doubles some of N elements, with providers: right, wrong, deadly, and not to be had."""

import os

import torch
import triton
import triton.language as tl

from autotune.data import Config
from autotune.kernel import Field, Kernel, Provider, Signature, Tolerance, Work
from autotune.space import SearchSpace


@triton.jit
def _double(source, target, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + offsets, 2 * tl.load(source + offsets, mask=offsets < n), mask=offsets < n)


def problem(x, density=100):
    return KERNEL.make(N=x.numel(), density=density)


def inputs(problem, seed, device):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(problem["N"], generator=generator).to(device), problem["density"]


def run(config, x, density=100):
    out = torch.empty_like(x)
    _double[(-(-x.numel() // config["BLOCK"]),)](x, out, x.numel(), BLOCK=config["BLOCK"])
    return out


def signature(problem, config):
    types = {"source": "*fp32", "target": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    options = {"num_warps": 4, "enable_fp_fusion": True}
    return Signature(_double, types, {"BLOCK": config["BLOCK"]}, ("source", "target"), options)


KERNEL = Kernel(
    fields=(Field("N", "size"), Field("density", "size", choices=(10, 20, 50, 100))),
    problem=problem,
    key=lambda x, density=100: (x.shape, x.dtype, x.get_device(), density),
    inputs=inputs,
    run=run,
    reference=lambda x, density=100: 2 * x,
    work=lambda problem: Work(flops=problem["N"], bytes=8 * problem["N"]),
    problems=("N=100,density=50",),
    tolerances={"float32": Tolerance(ratio=1, ulps=1)},
    signature=signature,
    providers={
        "addition": Provider(lambda x, density=100: x + x),
        "wrong": Provider(lambda x, density=100: 3 * x),
        "deadly": Provider(lambda x, density=100: os._exit(3)),
        "absent": Provider(lambda x, density=100: 1 / 0, lambda problem, device: "it is sold separately"),
    },
    flips="density",
)
SPACE = SearchSpace(
    params=lambda problem, device: {"BLOCK": (64, 128)}, default=lambda problem, device: Config(BLOCK=64)
)
