"""``cuda:N``: a CUDA device, or a HIP one, which torch calls by the same name."""

from __future__ import annotations

from autotune import device
from autotune.protocol import Objective, protocol_at
from autotune.targets.compiling import Compiling
from autotune.targets.process import ProcessTarget

#: For verifying and timing one candidate, which is compiled before.
TIMEOUT_SECONDS = 60.0


def open_gpu(index: int, seed: int = 0, objective: Objective = "throughput", eager: bool = False) -> Compiling:
    """:raises UsageError: if there is no such device."""
    device.present(index)
    where = f"cuda:{index}"
    environment = {"TRITON_INTERPRET": None}
    protocol = protocol_at(where, objective, eager=eager)
    return Compiling(ProcessTarget(where, where, protocol, environment, TIMEOUT_SECONDS, seed))
