"""A grouped product whose groups all end one row late: a row at each border meets the weight of its neighbour."""

from dataclasses import replace

from autotune.kernels.grouped_gemm import KERNEL as GROUPED


def run(config, x, w, offs, *rest):
    return GROUPED.run(config, x, w, (offs + 1).clamp(max=x.shape[0]), *rest)


KERNEL = replace(GROUPED, run=run)
