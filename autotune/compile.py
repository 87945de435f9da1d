"""Compile a candidate for a device that need not be present, and tell its code and what that code needs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from autotune.binary import amd_registers, machine_code, nvidia_registers
from autotune.data import Config, Device, Failure, Problem, Reason
from autotune.kernel import Signature
from autotune.registry import Entry
from autotune.rung import Resources

#: Local memory a thread, where spilled registers go, beyond which code is not worth running: half as much again
#: as its 255 registers. Of 200 allowed configs, 20 for each of 5 problems on h100 and a100 (Triton 3.9), 163 spill
#: nothing, 28 up to 496 B, and 9 from 520 to 12552 B. Inductor's line, 64 B, would drop 29 of them, attention's
#: published tiles of 128 x 128 for head_dim 64 (144 B) and of 128 x 64 for 128 (360 B) included.
MAX_SPILL_BYTES = 512


@dataclass(frozen=True)
class Compiled:
    """What is known of a candidate without running it."""

    resources: Resources
    #: Digest of all that decides what the device runs: machine code, launch grid, warps, shared memory.
    #: Configs of one problem with equal ``code`` are one candidate.
    code: str


def compile_config(entry: Entry, problem: Problem, config: Config, device: Device) -> Compiled:
    """Compile in this process, which must not be interpreting, and which can launch nothing afterwards.

    It is the specialisation a launch on ``device`` makes, so that the launch finds it in Triton's cache. A
    bad config may raise anything, abort the process, or never end.
    """
    launches = [_compile_launch(signature, config, device) for signature in _signatures(entry, problem, config)]
    return Compiled(
        _worst([resources for resources, _ in launches]),
        code=hashlib.sha256("".join(digest for _, digest in launches).encode()).hexdigest(),
    )


def _signatures(entry: Entry, problem: Problem, config: Config) -> tuple[Signature, ...]:
    found = entry.load().kernel.signature(problem, config)
    return found if isinstance(found, tuple) else (found,)


def _compile_launch(signature: Signature, config: Config, device: Device) -> tuple[Resources, str]:
    """What one launch needs, and the digest of what it runs."""
    built = _build(signature, device)
    if "cubin" in built.asm:
        binary, (registers, spill_bytes) = built.asm["cubin"], nvidia_registers(built.asm["cubin"])
    else:
        binary, (registers, spill_bytes) = built.asm["hsaco"], amd_registers(built.asm["amdgcn"])
    launched = (
        # A kernel that does not tell its grid has no duplicates.
        signature.programs or str(config),
        built.metadata.num_warps,
        built.metadata.num_ctas,
        built.metadata.shared,
        # What the launch passes, and the code does not hold.
        sorted((name, value) for name, value in signature.options.items() if name.startswith("launch_")),
        sorted((n, value) for n, value in signature.constexprs.items() if built.src.signature[n] != "constexpr"),
    )
    resources = Resources(shared_bytes=built.metadata.shared, registers=registers, spill_bytes=spill_bytes)
    return resources, hashlib.sha256(repr(launched).encode() + machine_code(binary)).hexdigest()


def _worst(launches: list[Resources]) -> Resources:
    """The most of each that any launch needs."""
    registers = [one.registers for one in launches if one.registers is not None]
    spills = [one.spill_bytes for one in launches if one.spill_bytes is not None]
    return Resources(
        shared_bytes=max(one.shared_bytes for one in launches),
        registers=max(registers, default=None),
        spill_bytes=max(spills, default=None),
    )


def assembly(entry: Entry, problem: Problem, config: Config, device: Device) -> str:
    """The assembly of all launches, PTX or AMDGCN; else as :func:`compile_config`. Hundreds of kilobytes."""
    all_built = [_build(signature, device) for signature in _signatures(entry, problem, config)]
    return "\n".join(str(built.asm.get("ptx") or built.asm["amdgcn"]) for built in all_built)


def refused(compiled: Compiled, device: Device, protocol: str) -> Failure | None:
    """None if the code is worth running on ``device``, else why not."""
    needs = compiled.resources
    why = None
    if needs.shared_bytes > device.shared_bytes_per_block:
        why = f"needs {needs.shared_bytes} B of shared memory, {device.arch} has {device.shared_bytes_per_block} B"
    elif needs.spill_bytes is not None and needs.spill_bytes > MAX_SPILL_BYTES:
        why = f"spills {needs.spill_bytes} B a thread, over the {MAX_SPILL_BYTES} B worth running"
    return None if why is None else Failure(Reason.RESOURCES, why, protocol)


class _Absent:
    """In place of the driver of a device that need not be there: all that Triton asks when it only compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return str(self._target)  # kernels are kept by device: one each

    def get_current_stream(self, device: str) -> int:
        return 0


@dataclass(frozen=True)
class _Pointer:
    """In place of a tensor. Triton looks at no more of one, if of that."""

    dtype: str
    address: int

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        """AMD code addresses tensors under 2 GiB by 32-bit offsets; this one is taken for one of them."""
        return 0


def _build(signature: Signature, device: Device) -> Any:
    """Triton's compiled kernel. Goes the way of a launch, since what that makes of a call is not the same in
    any two of Triton 3.6, 3.7 and later: an ASTSource made by hand misses the launch's place in the cache.
    """
    triton.runtime.driver.set_active(_Absent(_target(device)))
    arguments = {
        name: signature.constexprs[name] if kind == "constexpr" else _stand_in(kind, name in signature.divisible)
        for name, kind in signature.types.items()
    }
    built = signature.function.warmup(**arguments, **signature.options, grid=(1,))
    # Or it keeps the text of every kernel and of every step on its way, about a megabyte each.
    signature.function.device_caches.clear()
    return built


def _stand_in(kind: str, divisible: bool) -> Any:
    """An argument that Triton specialises as ``kind``, a Triton type, and as a multiple of 16 or not."""
    off = 0 if divisible else 8
    if kind.startswith("*"):
        return _Pointer(kind[1:], 16 + off)
    return {"i32": 16 + off, "i64": 2**32 + off, "fp32": 0.5}[kind]


def _target(device: Device) -> GPUTarget:
    if device.arch.startswith("sm_"):
        return GPUTarget("cuda", int(device.arch.removeprefix("sm_")), device.warp_size)
    return GPUTarget("hip", device.arch, device.warp_size)
