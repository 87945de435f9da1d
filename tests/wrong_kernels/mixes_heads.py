"""Attention that gives every group of queries the first key and value head."""

from dataclasses import replace

from autotune.kernels.attention import KERNEL as ATTENTION


def run(config, q, k, v, causal=False, scale=None):
    return ATTENTION.run(config, q, k[:, :1], v[:, :1], causal, scale)


KERNEL = replace(ATTENTION, run=run)
