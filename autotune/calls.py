"""The torch calls that kernels declare they can stand in for, and how to read one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from autotune import registry
from autotune.kernel import Kernel, Serves


class Served(NamedTuple):
    """A call that a kernel can serve."""

    kernel_name: str
    kernel: Kernel
    #: Arguments of the kernel's operator, which are those of the kernel.
    args: tuple[Any, ...]
    serves: Serves


@lru_cache(maxsize=1)
def table() -> dict[Any, list[tuple[str, Kernel, Serves]]]:
    """torch callable -> the kernels that serve it."""
    found: dict[Any, list[tuple[str, Kernel, Serves]]] = {}
    for name in registry.entries():
        kernel = registry.load(name).kernel
        for call, serves in kernel.serves.items():
            found.setdefault(call, []).append((name, kernel, serves))
    return found


def read(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Served | str | None:
    """How to serve a torch call: None if no kernel claims such calls, a sentence if none can serve this one."""
    claims = table().get(call)
    if claims is None:
        return None
    refusals = []
    for name, kernel, serves in claims:
        try:
            taken = serves.args(*args, **kwargs)
        except TypeError:
            taken = "it is called with other arguments"
        if not isinstance(taken, str):
            return Served(name, kernel, taken, serves)
        refusals.append(taken)
    return "; ".join(refusals)


def name_of(call: Any) -> str:
    """How a user would recognise the call."""
    if isinstance(call, torch._ops.OpOverloadPacket):
        return f"aten.{call.__name__}"
    return getattr(call, "__name__", str(call))
