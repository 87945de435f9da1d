"""Constraints that several spaces share, built from what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from autotune.arithmetic import next_power_of_2
from autotune.data import Config, Device, Problem
from autotune.space import Constraint, Ranges

Count: TypeAlias = Callable[[Config, Problem], int]

#: Tile products an interpreted candidate may take; each takes it about a millisecond.
INTERPRETER_STEPS = 2048
REGISTERS_PER_THREAD = 255


def smallest(ranges: Ranges, name: str) -> int:
    return min(value for value in ranges[name] if isinstance(value, int))


def largest_up_to(limit: int, ranges: Ranges, name: str) -> int:
    """The largest value of a parameter that is at most ``limit``; its smallest if all are above."""
    values = [value for value in ranges[name] if isinstance(value, int)]
    return max((value for value in values if value <= limit), default=min(values))


def pipeline_buffers(config: Config, device: Device) -> int:
    """Shared-memory buffers of a software-pipelined tile.

    From sm_90 on every stage has one; on sm_80 and AMD one of the ``num_stages`` tiles is in registers.
    Read off Triton 3.9's ``metadata.shared`` for a 128x128x64 tile; ``tests/test_compile.py`` holds it.
    """
    stages = config.integer("num_stages")
    hopper_or_later = device.arch.startswith("sm_") and int(device.arch.removeprefix("sm_")) >= 90
    return stages if hopper_or_later else max(1, stages - 1)


def barrier_bytes(device: Device) -> int:
    """Barriers of sm_100's tensor cores, and on NVIDIA of loops with indirect loads: 8 to 24 B are seen."""
    return 0 if device.arch.startswith("gfx") else 32


def default_warps(outputs: int, ranges: Ranges) -> int:
    """One warp for 2048 outputs, but four where they have something to do: fewer spill."""
    return largest_up_to(min(8, max(outputs // 2048, min(4, outputs // 256))), ranges, "num_warps")


def fits_shared_memory(needed_bytes: Callable[[Config, Problem, Device], int]) -> Constraint:
    def rule(config: Config, problem: Problem, device: Device) -> str | None:
        need = needed_bytes(config, problem, device)
        if need <= device.shared_bytes_per_block:
            return None
        return f"needs {need} B of shared memory, {device.arch} has {device.shared_bytes_per_block} B"

    return rule


def fits_registers(live_elements: Count, limit: int = REGISTERS_PER_THREAD) -> Constraint:
    """32-bit elements that are live together, spread over the threads, must not fill the register file."""

    def rule(config: Config, problem: Problem, device: Device) -> str | None:
        per_thread = live_elements(config, problem) // (device.warp_size * config.integer("num_warps"))
        if per_thread <= limit or device.arch == "interpreter":
            return None
        return (
            f"keeps {per_thread} values a thread, over {limit}, and a thread has {REGISTERS_PER_THREAD} registers; "
            "use more warps or a smaller tile"
        )

    return rule


def feeds_warps(outputs: Count, params: Callable[[Problem, Device], Ranges]) -> Constraint:
    def rule(config: Config, problem: Problem, device: Device) -> str | None:
        count, warps = outputs(config, problem), config.integer("num_warps")
        if warps <= max(smallest(params(problem, device), "num_warps"), count // 256):
            return None
        return f"{warps} warps share {count} outputs; with under 256 each they idle"

    return rule


def little_padding(covers: Mapping[str, str], params: Callable[[Problem, Device], Ranges]) -> Constraint:
    """A tile over twice the size it covers only computes padding. ``covers``: parameter -> problem's size."""

    def rule(config: Config, problem: Problem, device: Device) -> str | None:
        ranges = params(problem, device)
        for name, size in covers.items():
            most = max(16, smallest(ranges, name), next_power_of_2(problem.integer(size)))
            if config.integer(name) > most:
                return f"{name}={config[name]} is mostly padding for {size}={problem[size]}; {most} covers it"
        return None

    return rule


def worth_interpreting(steps: Count, default: Callable[[Problem, Device], Config]) -> Constraint:
    """Tiny tiles of a large problem take the interpreter minutes and teach nothing."""

    def rule(config: Config, problem: Problem, device: Device) -> str | None:
        if device.arch != "interpreter":
            return None
        limit = max(INTERPRETER_STEPS, 4 * steps(default(problem, device), problem))
        count = steps(config, problem)
        return None if count <= limit else f"takes {count} tile steps, over the {limit} worth interpreting"

    return rule
