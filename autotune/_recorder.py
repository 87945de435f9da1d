"""The two torch modes behind :func:`autotune.record`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from autotune import calls, ops, registry  # noqa: F401  (ops registers the operators, whose calls are counted too)
from autotune.calls import Table
from autotune.kernel import Operator, Serves
from autotune.workload import Workload


class _Functions(TorchFunctionMode):
    """Sees calls of the Python API, with the meaning the caller gave them: attention as attention."""

    def __init__(self, workload: Workload, claimed: Table) -> None:
        super().__init__()
        self.workload, self.claimed = workload, claimed
        #: What is known of the call under way: what it comes down to is then no news.
        self.inside: calls.Served | str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.claimed:
            self.inside = self.count(func, *calls.autocast(self.claimed, func, args, kwargs))
        try:
            return func(*args, **kwargs)
        finally:
            self.inside = None

    def count(
        self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], note: bool = True
    ) -> calls.Served | str | None:
        """Take one torch call into the workload; ``note``: count it too if it is refused."""
        served = calls.read(self.claimed, call, args, kwargs)
        if isinstance(served, calls.Served):
            try:
                self.workload.calls[served.kernel_name, served.kernel.problem(*served.args)] += 1
            # RuntimeError: a tensor without data (fake, or inside torch.func) can't be asked for its address.
            except (ValueError, RuntimeError) as error:
                served = str(error)
        if isinstance(served, str) and note:
            self.workload.skipped[calls.name_of(call), served] += 1
        return served


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
            known = self.functions.count(func.overloadpacket, args, kwargs, note=outer is None)
            if not isinstance(known, calls.Served):
                # In inference mode composite operators (einsum) arrive whole; what they come down to counts.
                with self:
                    result = func.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
        return func(*args, **kwargs)


def _claims() -> Table:
    """What the kernels claim, and their own operators: a model that calls ``autotune.ops`` records as well."""
    claimed = dict(calls.table())
    for name in registry.entries():
        kernel = registry.load(name).kernel
        if kernel.operator is not None:
            packet = getattr(torch.ops.autotune, kernel.operator.front.__name__)
            claimed[packet] = [(name, kernel, _own(kernel.operator))]
    return claimed


def _own(operator: Operator) -> Serves:
    return Serves(lambda *args: operator.kernel_args(*args), autocast=False)


@contextmanager
def recording(workload: Workload) -> Iterator[None]:
    functions = _Functions(workload, _claims())
    with _Operators(functions), functions:
        yield
