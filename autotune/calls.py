"""The torch calls that kernels declare they can stand in for, and how to read one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils._pytree import tree_leaves, tree_map

from autotune import registry
from autotune.kernel import Kernel, Serves

#: torch callable -> the kernels that serve it: name, kernel, how.
Table: TypeAlias = Mapping[Any, list[tuple[str, Kernel, Serves]]]


class Served(NamedTuple):
    """A call that a kernel can serve."""

    kernel_name: str
    kernel: Kernel
    #: Arguments of the kernel's operator, which are those of the kernel.
    args: tuple[Any, ...]
    serves: Serves


def table() -> Table:
    """Every claim of every kernel known now."""
    found: dict[Any, list[tuple[str, Kernel, Serves]]] = {}
    for name in registry.entries():
        kernel = registry.load(name).kernel
        for call, serves in kernel.serves.items():
            found.setdefault(call, []).append((name, kernel, serves))
    return found


def read(claimed: Table, call: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Served | str | None:
    """How to serve a torch call: None if no kernel claims such calls, a sentence if none can serve this one."""
    claims = claimed.get(call)
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


def autocast(claimed: Table, call: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a claimed call as autocast hands them on; as they are where it leaves them alone."""
    if not any(serves.autocast for _, _, serves in claimed[call]):
        return args, kwargs
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    kind = tensors[0].device.type if tensors else "meta"
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return args, kwargs
    dtype = torch.get_autocast_dtype(kind)

    def cast(leaf: Any) -> Any:
        eligible = isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64
        return leaf.to(dtype) if eligible else leaf

    cast_args, cast_kwargs = tree_map(cast, (args, kwargs))
    return cast_args, cast_kwargs


def name_of(call: Any) -> str:
    """How a user would recognise the call."""
    if isinstance(call, torch._ops.OpOverloadPacket):
        return f"aten.{call.__name__}"
    return getattr(call, "__name__", str(call))
