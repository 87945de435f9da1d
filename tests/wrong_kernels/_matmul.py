"""What the wrong kernels share: a launch of one program per tile, and gemm's KERNEL with another ``run``."""

from dataclasses import replace

import torch
import triton

from autotune.kernels.gemm import KERNEL as GEMM

BLOCK = 32


def kernel_of(run):
    return replace(GEMM, run=lambda config, a, b: run(a, b))


def launch(function, a, b, dtype=None):
    c = torch.empty(a.shape[0], b.shape[1], dtype=dtype or a.dtype)
    grid = (triton.cdiv(a.shape[0], BLOCK), triton.cdiv(b.shape[1], BLOCK))
    function[grid](a, b, c, *c.shape, a.shape[1], *a.stride(), *b.stride(), BLOCK=BLOCK)
    return c
