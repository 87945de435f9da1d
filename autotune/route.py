"""Send the torch calls of an unmodified model through the dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from autotune import calls, ops  # noqa: F401  (ops registers the operators that the fronts call)


class _Router(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        # Read here and not at each call, so that torch.compile finds a plain dict.
        self.claimed = calls.table()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.claimed or _transformed():
            return func(*args, **kwargs)
        cast_args, cast_kwargs = calls.autocast(self.claimed, func, args, kwargs)
        served = calls.read(self.claimed, func, cast_args, cast_kwargs)
        if not isinstance(served, calls.Served) or served.kernel.operator is None:
            return func(*args, **kwargs)
        result = served.kernel.operator(*served.args)
        finish = served.serves.finish
        return result if finish is None else finish(result, *cast_args, **cast_kwargs)


def _transformed() -> bool:
    """Within torch.func transforms and forward-mode AD, for which the operators have no rules."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


@contextmanager
def route() -> Iterator[None]:
    """Within, ``torch.nn.functional.linear``, ``torch.matmul``, ``scaled_dot_product_attention`` and what
    else the kernels serve run on the tuned kernels; calls that they can't serve stay torch's.

    ::

        with autotune.route():
            model(batch)

    Activation checkpointing computes again outside of it, unless it is told:
    ``checkpoint(layer, x, use_reentrant=False, context_fn=lambda: (nullcontext(), autotune.route()))``.
    Calls made inside torch's C++, ``torch.nn.MultiheadAttention``'s among them, are not seen. Like any torch
    function mode it switches off torch's nested-tensor fast path of ``TransformerEncoder``, whose outputs at
    padded places then differ from the fast path's zeros.
    """
    with _Router():
        yield
