"""A sampled product that leaves out the last of the K terms, as a loop over whole tiles does."""

from dataclasses import replace

from autotune.kernels.sddmm import KERNEL as SDDMM


def run(config, a, b, *pattern):
    return SDDMM.run(config, a[:, :-1], b[:-1], *pattern)


KERNEL = replace(SDDMM, run=run)
