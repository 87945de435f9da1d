"""A block-sparse product that skips the last stored block of the last row."""

from dataclasses import replace

from autotune.kernels.bsr_matmul import KERNEL as BSR


def run(config, x, weight, *rest):
    crow = weight.crow.clone()
    crow[-1] -= 1
    fewer = weight._replace(crow=crow, columns=weight.columns[:-1], values=weight.values[:-1])
    return BSR.run(config, x, fewer, *rest)


KERNEL = replace(BSR, run=run)
