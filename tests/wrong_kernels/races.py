"""Gives another last bit now and then, as unordered atomic adds do."""

import itertools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _matmul import kernel_of, launch, right

calls = itertools.count()


def run(a, b):
    result = launch(right, a, b)
    if next(calls) % 3 == 0:
        result[0, 0] = torch.nextafter(result[0, 0], result[0, 0] + 1)
    return result


KERNEL = kernel_of(run)
