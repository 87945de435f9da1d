"""The two torch modes behind :func:`autotune.record`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from autotune.workload import Workload, count


class _Functions(TorchFunctionMode):
    """Sees calls of the Python API, with the meaning the caller gave them: attention as attention."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.workload = workload
        self.inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not count(self.workload, func, args, kwargs):
            return func(*args, **kwargs)
        self.inside = True
        try:
            return func(*args, **kwargs)
        finally:
            self.inside = False


class _Operators(TorchDispatchMode):
    """Sees what no Python call announced: calls from C++ modules, and the backward pass."""

    def __init__(self, functions: _Functions) -> None:
        super().__init__()
        self.functions = functions

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.functions.inside:
            count(self.functions.workload, func.overloadpacket, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def recording(workload: Workload) -> Iterator[None]:
    functions = _Functions(workload)
    with _Operators(functions), functions:
        yield
