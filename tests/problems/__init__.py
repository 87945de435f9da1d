"""What the suites over all kernels look at beside each kernel's own problems: one module a kernel, NAME.py.

``BIG``: problems as models have them, for rules that need no run. ``COMPILED``: what is compiled for every
architecture, the default and ``COMPILED_SAMPLES`` (1) sampled configs. ``EMPTY``: problems whose result is empty
or zero. ``OPCODES``: whether the tensor cores' instructions are looked for (True), or those of few rows
("few"), or none (False). ``GROWS``: the size that doubles the work when it doubles; the first by itself.
"""

import importlib
from typing import Any

from autotune import registry


def of(name: str, what: str, default: Any) -> Any:
    """``tests/problems/NAME.py``'s entry ``what``."""
    return getattr(importlib.import_module(f"tests.problems.{name}"), what, default)


def every(what: str) -> list[tuple[str, str]]:
    """(kernel, problem) for all problems that the modules list under ``what``."""
    return [(name, text) for name in registry.entries() for text in of(name, what, ())]
