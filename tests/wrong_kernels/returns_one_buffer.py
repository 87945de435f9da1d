"""Right, but writes every result into the same memory, over the one it gave out before."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _matmul import kernel_of, launch, right

buffers = {}


def run(a, b):
    result = launch(right, a, b)
    return buffers.setdefault(result.shape, result).copy_(result)


KERNEL = kernel_of(run)
