"""Which device is this: the accelerator that is present, Triton's interpreter, or a profile of another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from autotune.data import Device, UsageError

_PROFILES = Path(__file__).parent / "devices"

#: Triton's interpreter. One identity on every host, so that its rows can be shared; never a GPU's.
INTERPRETER = Device(
    name="Triton interpreter",
    arch="interpreter",
    sm_count=1,
    shared_bytes_per_block=2**31,
    memory_bytes=2**40,
    l2_bytes=2**25,
)

#: A CPU outside the interpreter: no Triton kernel runs there, torch does.
CPU = Device(name="CPU", arch="cpu", sm_count=1, shared_bytes_per_block=2**31, memory_bytes=2**40, l2_bytes=2**25)


def interpreting() -> bool:
    """Whether kernels loaded in this process run in Triton's interpreter (``TRITON_INTERPRET=1``)."""
    import triton  # late: `import autotune` must not load it

    return bool(triton.knobs.runtime.interpret)


def present(index: int = 0) -> Device:
    """The CUDA or HIP device ``index``.

    :raises UsageError: if it is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        have = f"this machine has {count}" if count else "torch sees no GPU on this machine"
        raise UsageError(f"no device cuda:{index}: {have}; use --target interpreter")
    facts: Any = torch.cuda.get_device_properties(index)
    hip = torch.version.hip is not None
    return Device(
        name=facts.name,
        arch=facts.gcnArchName.split(":")[0] if hip else f"sm_{facts.major}{facts.minor}",
        sm_count=facts.multi_processor_count,
        shared_bytes_per_block=getattr(facts, "shared_memory_per_block_optin", facts.shared_memory_per_block),
        memory_bytes=facts.total_memory,
        l2_bytes=facts.L2_cache_size,
        warp_size=facts.warp_size,
        driver=_driver(),
    )


def _driver() -> str:
    version = getattr(torch._C, "_cuda_getDriverVersion", None)
    return str(version()) if version is not None and torch.version.cuda else str(torch.version.hip or "")


def of(tensor: torch.Tensor) -> Device:
    """The device whose configs serve kernels on this tensor."""
    if tensor.is_meta:
        return CPU  # there is no data; torch works out the shape
    if interpreting():
        return INTERPRETER
    return present(tensor.get_device()) if tensor.is_cuda else CPU


def profiles() -> tuple[str, ...]:
    """Names of the devices whose facts are on file, for compiling and checking without them."""
    return tuple(path.stem for path in sorted(_PROFILES.glob("*.json")))


def profile(name: str) -> Device:
    """The facts on file of a device that need not be present. Vendor figures, not measured.

    :raises UsageError: if there is no such profile.
    """
    if name not in profiles():
        raise UsageError(f"no device profile {name!r}; there are {', '.join(profiles())}")
    return Device(**json.loads((_PROFILES / f"{name}.json").read_text(encoding="utf-8")))
