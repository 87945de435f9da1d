"""A gradient of a table in which the last entry of a row overwrites those before it."""

from dataclasses import replace

import torch

from autotune.kernels.embedding_bag_backward import KERNEL as BACKWARD


def run(config, d_out, rows, bags):
    gradient = torch.zeros(rows, d_out.shape[-1], dtype=d_out.dtype)
    length = bags.indices.shape[1]
    for place, index in enumerate(bags.indices.flatten().tolist()):
        gradient[index] = d_out[place // length]
    return gradient


KERNEL = replace(BACKWARD, run=run)
