"""Where candidates are measured. ``open_target("auto")`` picks what is present."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from autotune.data import UsageError

if TYPE_CHECKING:
    from autotune.targets.process import ProcessTarget

SPELLINGS = "auto, cuda:N or interpreter"


def resolve(name: str) -> str:
    """``auto`` -> ``cuda:0`` where torch sees a GPU, else ``interpreter``; other names as they are.

    :raises UsageError: if no target has this name.
    """
    if name == "auto":
        import torch

        return "cuda:0" if torch.cuda.is_available() else "interpreter"
    if name == "cuda":
        return "cuda:0"
    if name != "interpreter" and not re.fullmatch(r"cuda:[0-9]{1,3}", name):
        raise UsageError(f"unknown target {name!r}; use {SPELLINGS}")
    return name


def open_target(name: str, seed: int = 0) -> ProcessTarget:
    """Start the target called ``name``; use it as a context manager.

    :raises UsageError: if it is unknown or not present.
    """
    name = resolve(name)
    # Late, since torch and Triton come with them, and a misspelt name needs neither.
    if name == "interpreter":
        from autotune.targets.interpreter import Interpreter

        return Interpreter(seed=seed)
    from autotune.targets.gpu import Gpu

    return Gpu(int(name.partition(":")[2]), seed=seed)
