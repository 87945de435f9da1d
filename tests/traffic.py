"""What kernels load in Triton's interpreter: how often each element of a tensor was read, by which program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from triton.runtime import interpreter


class Traffic:
    """Loads recorded while :func:`recorded` is open."""

    def __init__(self) -> None:
        self._loads: list[tuple[int, np.ndarray]] = []
        self._program = -1

    def begin(self) -> None:
        """Another program starts."""
        self._program += 1

    def add(self, addresses: np.ndarray) -> None:
        self._loads.append((self._program, addresses))

    def loads(self, tensor: torch.Tensor) -> torch.Tensor:
        """How often each element of a contiguous tensor was loaded, in its shape."""
        counts = np.zeros(tensor.numel(), dtype=np.int64)
        for _, places in self._within(tensor):
            np.add.at(counts, places, 1)
        return torch.from_numpy(counts).view(tensor.shape)

    def programs(self, tensor: torch.Tensor) -> dict[int, Counter[int]]:
        """Program, numbered over all launches in order -> how many elements of each ``tensor[i]`` it loaded."""
        whole = tensor[0].numel()
        found: dict[int, Counter[int]] = {}
        for program, places in self._within(tensor):
            found.setdefault(program, Counter()).update((places // whole).tolist())
        return found

    def _within(self, tensor: torch.Tensor) -> Iterator[tuple[int, np.ndarray]]:
        assert tensor.is_contiguous()
        begin, size = tensor.data_ptr(), tensor.element_size()
        for program, addresses in self._loads:
            inside = addresses[(addresses >= begin) & (addresses < begin + tensor.numel() * size)]
            if inside.size:
                yield program, (inside - begin) // size


@contextmanager
def recorded() -> Iterator[Traffic]:
    """Within, every element that interpreted kernels load, mask applied, is noted by its address."""
    traffic, builder = Traffic(), interpreter.InterpreterBuilder
    load, start = builder.create_masked_load, builder.set_grid_idx

    def noted(self, ptrs, mask, *rest, **named):
        traffic.add(ptrs.data[mask.data].astype(np.int64).ravel())
        return load(self, ptrs, mask, *rest, **named)

    def started(self, *place):
        traffic.begin()
        return start(self, *place)

    builder.create_masked_load, builder.set_grid_idx = noted, started
    try:
        yield traffic
    finally:
        builder.create_masked_load, builder.set_grid_idx = load, start
