"""Right, but also stores one row past the end of the output."""

import sys
from pathlib import Path

import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parent))
from _matmul import kernel_of, launch, right


@triton.jit
def stray(c, M, N, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(c + (M * N) + columns, 0.0, mask=columns < N)


def run(a, b):
    c = launch(right, a, b)
    stray[(1,)](c, *c.shape, BLOCK=triton.next_power_of_2(c.shape[1]))
    return c


KERNEL = kernel_of(run)
