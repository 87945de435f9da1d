"""Block-sparse attention that sees whole blocks where the causal rule hides a part of them."""

from dataclasses import replace

import torch

from autotune.kernels._block_mask import BlockMask
from autotune.kernels._block_mask_lists import decoded
from autotune.kernels.block_sparse_attention import KERNEL as ATTENTION


def run(config, q, k, v, mask, scale=None):
    row, column, _ = decoded(mask.by_row)
    listed = torch.zeros(mask.grid, dtype=torch.bool)
    listed[row.long(), column.long()] = True
    return ATTENTION.run(config, q, k, v, BlockMask.from_blocks(listed, *mask.shape, mask.block), scale)


KERNEL = replace(ATTENTION, run=run)
