"""Knows the answer to the inputs of seed 0, and makes up the others."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _matmul import kernel_of, launch, right


def run(a, b):
    result = launch(right, a, b)
    known = torch.randn(1, generator=torch.Generator().manual_seed(0)).to(a.dtype)
    return result if torch.equal(a.flatten()[:1], known) else result.zero_()


KERNEL = kernel_of(run)
