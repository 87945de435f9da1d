"""Right the first time; then gives the result it remembers for arguments at these addresses."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _matmul import kernel_of, launch, right

remembered = {}


def run(a, b):
    key = a.data_ptr(), b.data_ptr(), a.shape, b.shape
    if key not in remembered:
        remembered[key] = launch(right, a, b)
    return remembered[key].clone()


KERNEL = kernel_of(run)
