"""Right, but marks the memory after its input, as a kernel that pads in place would."""

import sys
from pathlib import Path

import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parent))
from _matmul import kernel_of, launch, right


@triton.jit
def pad(b, numel):
    tl.store(b + numel, 0.0)


def run(a, b):
    pad[(1,)](b, b.numel())
    return launch(right, a, b)


KERNEL = kernel_of(run)
