"""A block-sparse product that skips the last stored block of the last row."""

from dataclasses import replace

from autotune.kernels.bsr_matmul import KERNEL as BSR


def run(config, x, weight):
    crow = weight.crow.clone()
    crow[-1] -= 1
    return BSR.run(config, x, weight._replace(crow=crow))


KERNEL = replace(BSR, run=run)
