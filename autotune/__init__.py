"""Tune Triton kernels for the exact problems a model runs, and launch the winners from PyTorch.

Importing this package loads neither torch nor Triton, Optuna or sqlite-utils: names are fetched when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune import ops as ops
    from autotune.data import AutotuneError as AutotuneError
    from autotune.data import Choice as Choice
    from autotune.data import Config as Config
    from autotune.data import Problem as Problem
    from autotune.data import UsageError as UsageError
    from autotune.dispatch import choose as choose
    from autotune.dispatch import explain as explain
    from autotune.dispatch import run as run
    from autotune.dispatch import use as use
    from autotune.registry import register as register
    from autotune.route import route as route
    from autotune.tuning import tune as tune
    from autotune.workload import Workload as Workload
    from autotune.workload import record as record

_HOME = {
    **dict.fromkeys(("AutotuneError", "Choice", "Config", "Problem", "UsageError"), "data"),
    **dict.fromkeys(("choose", "explain", "run", "use"), "dispatch"),
    "ops": "ops",
    "register": "registry",
    "route": "route",
    "tune": "tuning",
    **dict.fromkeys(("Workload", "record"), "workload"),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'autotune' has no attribute {name!r}")
    module = importlib.import_module(f"autotune.{_HOME[name]}")
    # A function may share its module's name, and importing the module has just put that in its place.
    value = module if name == _HOME[name] and name == "ops" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
