"""Send the torch calls of an unmodified model through the dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode

from autotune import calls, ops  # noqa: F401  (ops registers the operators that the fronts call)


class _Router(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        served = calls.read(func, args, kwargs)
        if not isinstance(served, calls.Served) or served.kernel.operator is None:
            return func(*args, **kwargs)
        result = served.kernel.operator.front(*served.args)
        finish = served.serves.finish
        return result if finish is None else finish(result, *args, **kwargs)


@contextmanager
def route() -> Iterator[None]:
    """Within, ``torch.nn.functional.linear``, ``torch.matmul``, ``scaled_dot_product_attention`` and what
    else the kernels serve run on the tuned kernels; calls that they can't serve stay torch's.

    ::

        with autotune.route():
            model(batch)

    Calls made inside torch's C++, ``torch.nn.MultiheadAttention``'s among them, are not seen.
    """
    with _Router():
        yield
