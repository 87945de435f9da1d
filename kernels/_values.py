"""Whether to look at numbers that lie on a device: offsets of sequences, tables of pages.

Where they lie in host memory looking costs nothing, and is always done. On a GPU it makes the host wait for the
device, and is not possible while a CUDA graph is recorded: there it is done only on request.
"""

from __future__ import annotations

import os

import torch

#: ``1``: look on a GPU too.
VARIABLE = "AUTOTUNE_CHECK_VALUES"


def checks_values(tensor: torch.Tensor) -> bool:
    """Whether a bad number in ``tensor`` is to be found before the launch."""
    return tensor.device.type == "cpu" or os.environ.get(VARIABLE) == "1"
