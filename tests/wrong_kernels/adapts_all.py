"""Low-rank adapters that take -1, which passes through, for the first one."""

from dataclasses import replace

from autotune.kernels.lora import KERNEL as LORA

KERNEL = replace(LORA, run=lambda config, x, a, b, ids, *rest: LORA.run(config, x, a, b, ids.clamp(min=0), *rest))
