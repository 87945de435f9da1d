"""Time one callable: on a GPU as a CUDA graph with a cold L2 cache, elsewhere by the wall clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy
import torch

from autotune.data import Device, Timing

#: Names of the two protocols. Whoever changes how a time is taken changes the name: times don't compare then.
GRAPH_PROTOCOL = "cudagraph-coldL2-1"
WALL_PROTOCOL = "wall-1"


#: AMD reports one die's L2 and not the 256 MB behind it.
MIN_FLUSH_BYTES = 512 * 2**20 if torch.version.hip else 256 * 2**20


def wall(function: Callable[[], object], budget_s: float = 0.5, most: int = 5) -> Timing:
    """The function's own wall time: repeats until ``budget_s`` is spent or ``most`` runs are done."""
    samples: list[float] = []
    started = time.perf_counter()
    while not samples or (len(samples) < most and time.perf_counter() - started < budget_s):
        begun = time.perf_counter()
        function()
        samples.append((time.perf_counter() - begun) * 1e3)
    return summary(samples, WALL_PROTOCOL)


def graph(function: Callable[[], object], device: Device, budget_s: float = 0.1, most: int = 200) -> Timing:
    """Replays of a CUDA graph of one call, each after the L2 cache was overwritten.

    The graph takes the launch cost out, as inference engines do; the overwritten cache is what a layer of a
    large model finds. Each replay has its own pair of events. Must run where the device is current.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # where the inputs were written
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()  # compiles, and fills the allocator
        stream.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=stream):
            function()
        # Well over the cache, and long enough to write that the replay is queued before it ends.
        flush = torch.empty(max(4 * device.l2_bytes, MIN_FLUSH_BYTES), dtype=torch.int8, device="cuda")
        estimate_ms = _replay(captured, flush, 3)
        repeats = int(min(most, max(10, budget_s * 1e3 / max(1e-3, statistics.median(estimate_ms)))))
        samples = _replay(captured, flush, repeats)
    return summary(samples, GRAPH_PROTOCOL)


def _replay(captured: torch.cuda.CUDAGraph, flush: torch.Tensor, repeats: int) -> list[float]:
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in pairs:
        flush.zero_()
        begin.record()
        captured.replay()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs]


def summary(samples_ms: Sequence[float], protocol: str) -> Timing:
    """Median and the 20th and 80th percentile, between samples where they fall between."""
    p20, median, p80 = (float(value) for value in numpy.quantile(samples_ms, (0.2, 0.5, 0.8)))
    return Timing(median_ms=median, p20_ms=p20, p80_ms=p80, n=len(samples_ms), protocol=protocol)
