"""Take samples: the host's clock, replays of a CUDA graph, or single launches. See autotune/protocol.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache

import torch

from autotune.data import Device
from autotune.protocol import Protocol
from autotune.timing import Stopwatch

#: The inputs' clones hold this many times the cache, so that each call finds its own evicted.
CACHES = 3
#: More clones than this are not worth their launches and captures: 150 MiB (H100) in inputs of 2.3 MiB.
MOST_CLONES = 64
#: AMD reports one die's L2 and not the 256 MiB behind it.
AMD_CACHE_BYTES = 256 * 2**20
#: Overwriting takes long enough (0.08 ms at 3.3 TB/s) that what is timed is queued before it ends.
LEAST_FLUSH_BYTES = 256 * 2**20


def cache_bytes(device: Device) -> int:
    """The last-level cache of a GPU."""
    return max(device.l2_bytes, AMD_CACHE_BYTES) if device.arch.startswith("gfx") else device.l2_bytes


def clones(input_bytes: int, device: Device) -> int:
    """Copies of a problem's inputs, the first included, that one graph should rotate over.

    One where it holds three times the last-level cache by itself, or where 64 copies don't; else as few as do,
    so that together they are under six caches.
    """
    wanted = -(-CACHES * cache_bytes(device) // max(1, input_bytes))
    return wanted if wanted <= MOST_CLONES else 1


class Wall:
    """The host's clock around a call that is done when it returns, as on a CPU."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def sample(self, repeats: int) -> list[float]:
        return [_host_ms(self._function) for _ in range(repeats)]


class Graph:
    """Replays of a CUDA graph that launches each function once: milliseconds a call, without launch cost.

    ``functions`` are one call on as many clones of its inputs as :func:`clones` says: each finds its inputs
    out of the cache, as a layer of a large model does. A single one has the cache overwritten before each replay.
    Must be made and used where the device is current.
    """

    def __init__(self, functions: Sequence[Callable[[], object]], device: Device) -> None:
        self._calls = len(functions)
        self._flush_bytes = _flush_bytes(device)
        self._stream = _side_stream(torch.cuda.current_device())
        self._stream.wait_stream(torch.cuda.current_stream())  # where the inputs were written
        self._graph = torch.cuda.CUDAGraph()
        self._functions = functions  # a graph does not keep the inputs alive
        with torch.cuda.stream(self._stream):
            # Compiles, fills the allocator, and works out what is kept on the inputs: not during a capture.
            for function in (functions[0], functions[0], *functions):
                function()
            self._stream.synchronize()
            with torch.cuda.graph(self._graph, stream=self._stream):
                for function in functions:
                    function()

    def sample(self, repeats: int) -> list[float]:
        pairs = _event_pairs(repeats)
        with torch.cuda.stream(self._stream):
            flush = torch.empty(self._flush_bytes, dtype=torch.int8, device="cuda")
            for number, (begin, end) in enumerate(pairs):
                # Also before the first of rotated clones: it keeps the device busy while the replays queue up.
                if self._calls == 1 or number == 0:
                    flush.zero_()
                begin.record()
                self._graph.replay()
                end.record()
            self._stream.synchronize()
        return [begin.elapsed_time(end) / self._calls for begin, end in pairs]


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all graphs: the allocator keeps blocks, the flush buffer's among them, for every stream."""
    return torch.cuda.Stream(device)


class Launches:
    """Single launches between two events, each after the cache was overwritten: eager throughput."""

    def __init__(self, function: Callable[[], object], device: Device) -> None:
        self._function = function
        self._flush_bytes = _flush_bytes(device)

    def sample(self, repeats: int) -> list[float]:
        pairs = _event_pairs(repeats)
        flush = torch.empty(self._flush_bytes, dtype=torch.int8, device="cuda")
        for begin, end in pairs:
            flush.zero_()
            begin.record()
            self._function()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in pairs]


class Eager:
    """The host's clock from the call to the idle device, launch cost included: latency, with a cold cache."""

    def __init__(self, function: Callable[[], object], device: Device) -> None:
        self._function = function
        self._flush_bytes = _flush_bytes(device)

    def sample(self, repeats: int) -> list[float]:
        flush = torch.empty(self._flush_bytes, dtype=torch.int8, device="cuda")
        samples = []
        for _ in range(repeats):
            flush.zero_()
            torch.cuda.synchronize()
            samples.append(_host_ms(self._run))
        return samples

    def _run(self) -> None:
        self._function()
        torch.cuda.synchronize()


def stopwatch_for(protocol: Protocol, functions: Sequence[Callable[[], object]], device: Device) -> Stopwatch:
    """The protocol's stopwatch on one call, given on each clone of its inputs; only a graph needs more than one."""
    if protocol.clock in ("wall", "native"):
        return Wall(functions[0])
    if protocol.clock == "cudagraph":
        return Graph(functions, device)
    eager = Eager if protocol.objective == "latency" else Launches
    return eager(functions[0], device)


def _flush_bytes(device: Device) -> int:
    return max(2 * cache_bytes(device), LEAST_FLUSH_BYTES)


def _host_ms(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return (time.perf_counter() - begun) * 1e3


def _event_pairs(repeats: int) -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
    return [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
