"""``cuda:N``: a CUDA device, or a HIP one, which torch calls by the same name."""

from __future__ import annotations

from autotune import device
from autotune.bench import GRAPH_PROTOCOL
from autotune.targets.process import ProcessTarget

#: For compiling, verifying and timing one candidate.
TIMEOUT_SECONDS = 120.0


class Gpu(ProcessTarget):
    def __init__(self, index: int, timeout_s: float | None = None, seed: int = 0) -> None:
        """:raises UsageError: if there is no such device."""
        device.present(index)
        super().__init__(
            f"cuda:{index}",
            where=f"cuda:{index}",
            protocol=GRAPH_PROTOCOL,
            environment={"TRITON_INTERPRET": None},
            timeout_s=TIMEOUT_SECONDS if timeout_s is None else timeout_s,
            seed=seed,
        )
