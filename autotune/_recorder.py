"""The two torch modes behind :func:`autotune.record`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from autotune import calls
from autotune.workload import Workload


class _Functions(TorchFunctionMode):
    """Sees calls of the Python API, with the meaning the caller gave them: attention as attention."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.workload = workload
        #: What is known of the call under way: what it comes down to is then no news.
        self.inside: calls.Served | str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.inside = _count(self.workload, func, args, kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            self.inside = None


class _Operators(TorchDispatchMode):
    """Sees what no Python call announced: calls from C++ modules, and the backward pass."""

    def __init__(self, functions: _Functions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.functions = functions

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outer = self.functions.inside
        if not isinstance(outer, calls.Served):
            # A call refused as a whole may come down to ones that can be served, but is refused only once.
            _count(self.functions.workload, func.overloadpacket, args, kwargs, note=outer is None)
        return func(*args, **kwargs)


def _count(
    workload: Workload, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], note: bool = True
) -> calls.Served | str | None:
    """Take one torch call into the workload; ``note``: count it too if it is refused."""
    served = calls.read(call, args, kwargs)
    if isinstance(served, calls.Served):
        try:
            workload.calls[served.kernel_name, served.kernel.problem(*served.args)] += 1
        except ValueError as error:
            served = str(error)
    if isinstance(served, str) and note:
        workload.skipped[calls.name_of(call), served] += 1
    return served


@contextmanager
def recording(workload: Workload) -> Iterator[None]:
    functions = _Functions(workload)
    with _Operators(functions), functions:
        yield
