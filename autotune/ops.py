"""The torch operators: ``autotune.ops.matmul``, ``attention``, ``bsr_matmul``, and those of other kernels.

Each kernel declares its operator; this module registers what it finds, under ``torch.ops.autotune``. The
operators trace under ``torch.compile(fullgraph=True)``, differentiate, and launch whatever dispatch chooses at
the time of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autotune import dispatch, registry
from autotune.kernel import Operator

_NAMESPACE = "autotune"


def _define(kernel: str, operator: Operator) -> None:
    name = f"{_NAMESPACE}::{operator.front.__name__}"

    def compute(*args: Any) -> Any:
        kind = args[0].device.type
        if not torch.is_autocast_enabled(kind):
            return dispatch.run(kernel, *operator.kernel_args(*args))
        # The result's dtype is the arguments', as the fake says; torch's reference must not be cast either.
        with torch.autocast(kind, enabled=False):
            return dispatch.run(kernel, *operator.kernel_args(*args))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, torch.Tensor)))
        tensors = [isinstance(value, torch.Tensor) for value in inputs]
        ctx.others = [
            (is_tensor, None if is_tensor else value) for is_tensor, value in zip(tensors, inputs, strict=True)
        ]

    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        tensors = iter(ctx.saved_tensors)
        inputs = [next(tensors) if is_tensor else value for is_tensor, value in ctx.others]
        with torch.autocast(gradient.device.type, enabled=False):
            return operator.backward(gradient, *inputs)

    torch.library.define(name, operator.schema)
    torch.library.impl(name, "default")(compute)
    torch.library.register_fake(name)(operator.fake)
    torch.library.register_autograd(name, backward, setup_context=save)


_fronts: dict[str, Callable[..., Any]] = {}


def _register() -> None:
    """Define the operators of all kernels that have none yet."""
    for name in registry.entries():
        operator = registry.load(name).kernel.operator
        if operator is not None and operator.front.__name__ not in _fronts:
            _define(name, operator)
            _fronts[operator.front.__name__] = operator.front
    # Module attributes, so that torch.compile sees plain functions.
    globals().update(_fronts)


_register()


def __getattr__(name: str) -> Any:
    """Operators of kernels that were registered after this module was imported."""
    _register()
    if name not in _fronts:
        raise AttributeError(f"no operator {name!r}; there are {', '.join(sorted(_fronts))}")
    return _fronts[name]
