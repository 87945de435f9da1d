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

    def compute(*args: Any, **out: torch.Tensor) -> Any:
        kind = args[0].device.type
        if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
            return dispatch.run(kernel, *operator.kernel_args(*args), **out)
        # The result's dtype is the arguments', as the fake says; torch's reference must not be cast either.
        with torch.autocast(kind, enabled=False):
            return dispatch.run(kernel, *operator.kernel_args(*args), **out)

    torch.library.define(name, operator.schema)
    torch.library.impl(name, "default")(compute)
    torch.library.register_fake(name)(operator.fake)
    _differentiate(name, operator)
    if operator.out:
        _define_out(name, operator.schema, compute)


def _differentiate(name: str, operator: Operator) -> None:
    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        values = [*inputs, *(results if operator.saves_results else ())]
        tensors = [isinstance(value, torch.Tensor) for value in values]
        ctx.save_for_backward(*(value for value in values if isinstance(value, torch.Tensor)))
        ctx.others = [None if is_tensor else value for is_tensor, value in zip(tensors, values, strict=True)]
        ctx.is_tensor, ctx.input_count = tensors, len(inputs)
        # A result that nothing depends on has no gradient, rather than one of zeros.
        ctx.set_materialize_grads(False)

    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        if operator.backward is None:
            # Without this torch would hand on zeros.
            raise RuntimeError(f"{name} has no gradient; detach its arguments, or call it in torch.no_grad()")
        # Once: checkpointing computes them anew each time.
        tensors = ctx.saved_tensors
        saved = iter(tensors)
        values = [
            next(saved) if is_tensor else other for is_tensor, other in zip(ctx.is_tensor, ctx.others, strict=True)
        ]
        inputs, results = tuple(values[: ctx.input_count]), tuple(values[ctx.input_count :])
        if all(gradient is None for gradient in gradients):
            return (None,) * len(inputs)
        kind = tensors[0].device.type
        if not torch.amp.is_autocast_available(kind):
            return operator.backward(gradients, inputs, results)
        with torch.autocast(kind, enabled=False):
            return operator.backward(gradients, inputs, results)

    torch.library.register_autograd(name, backward, setup_context=save)


def _define_out(name: str, schema: str, compute: Callable[..., Any]) -> None:
    """``NAME_out``: the same with a keyword argument ``out`` that takes the result."""
    arguments, _, _ = schema.rpartition(") -> ")

    def compute_out(*args: Any, out: torch.Tensor) -> None:
        compute(*args, out=out)
        if not out.is_inference():
            # So that whoever keeps ``out`` for a backward pass, or what was made of it, learns that it has changed.
            torch.autograd.graph.increment_version(out)

    torch.library.define(f"{name}_out", f"{arguments}, *, Tensor(a!) out) -> ()")
    torch.library.impl(f"{name}_out", "default")(compute_out)
    torch.library.register_fake(f"{name}_out")(lambda *args, out: None)


#: Functions and the classes of their arguments, by name.
_public: dict[str, Any] = {}


def _register() -> None:
    """Define the operators of all kernels that have none yet."""
    for name in registry.entries():
        operator = registry.load(name).kernel.operator
        if operator is not None and operator.front.__name__ not in _public:
            _define(name, operator)
            _public[operator.front.__name__] = operator.front
            _public.update({kind.__name__: kind for kind in operator.types})
    # Module attributes, so that torch.compile sees plain functions.
    globals().update(_public)


_register()


def __getattr__(name: str) -> Any:
    """Operators of kernels that were registered after this module was imported."""
    _register()
    if name not in _public:
        raise AttributeError(f"no operator {name!r}; there are {', '.join(sorted(_public))}")
    return _public[name]
