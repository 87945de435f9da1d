"""Reads a as if its rows were contiguous."""

import sys
from pathlib import Path

import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parent))
from _matmul import kernel_of, launch


@triton.jit
def matmul(a, b, c, M, N, K, am, ak, bk, bn, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, K, BLOCK):
        left = tl.load(a + rows[:, None] * K + (start + inner)[None, :] * 1)
        right = tl.load(b + (start + inner)[:, None] * bk + columns[None, :] * bn)
        total = tl.dot(left, right, total)
    tl.store(c + rows[:, None] * N + columns[None, :], total.to(c.dtype.element_ty))


KERNEL = kernel_of(lambda a, b: launch(matmul, a, b))
