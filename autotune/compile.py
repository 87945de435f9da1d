"""Compile a candidate for a device that need not be present, and read what it costs in resources."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.errors import TritonError

from autotune.data import Config, Device, Failure, Problem, Reason
from autotune.registry import Entry
from autotune.worker import Worker, WorkerDied, WorkerTimeout

#: One config takes well under a second once the compiler is warm; ptxas on a spilling one may take minutes.
TIMEOUT_SECONDS = 60.0
PROTOCOL = "compile"


@dataclass(frozen=True)
class Resources:
    """What the compiled code needs. Registers and spills are None where no tool can read them (AMD)."""

    shared_bytes: int
    registers: int | None
    spill_bytes: int | None
    #: The device's assembly, PTX or AMDGCN.
    assembly: str


def compile_config(entry: Entry, problem: Problem, config: Config, device: Device) -> Resources:
    """Compile in this process, which must not be interpreting. A bad config may abort the process."""
    signature = entry.load().kernel.signature(problem, config)
    names = list(signature.types)
    position = {name: (index,) for index, name in enumerate(names)}
    source = ASTSource(
        signature.function,
        dict(signature.types),
        {position[name]: value for name, value in signature.constexprs.items()},
        {position[name]: [["tt.divisibility", 16]] for name in signature.divisible},
    )
    compiled = triton.compile(source, target=_target(device), options=dict(signature.options))
    registers, spills = _registers(compiled.asm["cubin"]) if "cubin" in compiled.asm else (None, None)
    return Resources(
        shared_bytes=compiled.metadata.shared,
        registers=registers,
        spill_bytes=spills,
        assembly=compiled.asm.get("ptx") or compiled.asm["amdgcn"],
    )


def _compile(entry: Entry, problem: Problem, config: Config, device: Device) -> Resources | Failure:
    entry.load()  # a kernel file that does not load is no fault of the config
    try:
        return compile_config(entry, problem, config, device)
    # Triton refuses with errors of its own, with assertions and with RuntimeError("PassManager::run failed").
    except (TritonError, AssertionError, RuntimeError) as error:
        return Failure(Reason.COMPILE, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", PROTOCOL)


def _target(device: Device) -> GPUTarget:
    if device.arch.startswith("sm_"):
        return GPUTarget("cuda", int(device.arch.removeprefix("sm_")), device.warp_size)
    return GPUTarget("hip", device.arch, device.warp_size)


def _registers(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of local memory a thread, which is where spills go."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    if registers is None or stack is None:
        raise RuntimeError(f"cuobjdump printed no REG and STACK: {text}")
    return int(registers.group(1)), int(stack.group(1))


class Compiler:
    """Compiles in a worker process: an abort or an endless ptxas run costs one candidate, not the caller."""

    def __init__(self) -> None:
        # This process may be interpreting; what Triton's decorators made here then can't be compiled.
        self._worker = Worker({"TRITON_INTERPRET": None})

    def compile(self, entry: Entry, problem: Problem, config: Config, device: Device) -> Resources | Failure:
        """What it needs, or why it does not compile."""
        try:
            return self._worker.call(_compile, entry, problem, config, device, timeout_s=TIMEOUT_SECONDS)
        except WorkerTimeout as error:
            return Failure(Reason.TIMEOUT, str(error), PROTOCOL)
        except WorkerDied as error:
            return Failure(Reason.COMPILE, f"the compiler was {error}", PROTOCOL)

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *exc: object) -> None:
        self._worker.close()
