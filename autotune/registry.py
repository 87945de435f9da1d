"""NAME -> kernel, space and source hash, loaded when first asked for.

Three roads lead here, the same for all: the files of ``autotune/kernels`` and ``autotune/search_spaces``, the
entry-point group ``autotune.kernels``, and :func:`register`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from autotune.data import Config, Device, Problem, UsageError
from autotune.kernel import Kernel
from autotune.source import source_hash
from autotune.space import SearchSpace

_PACKAGE = Path(__file__).parent
_ENTRY_POINTS = "autotune.kernels"


@dataclass(frozen=True)
class Entry:
    """Where a kernel and its space live: each a module's dotted name, or a file's path ending in ``.py``.

    Small and picklable, so that a worker process finds the same kernel.
    """

    name: str
    kernel: str
    space: str

    def load(self) -> Loaded:
        return _load(self)


@dataclass(frozen=True)
class Loaded:
    entry: Entry
    kernel: Kernel
    space: SearchSpace
    #: sha256 over the code of the kernel's file and of the helpers it imports.
    source: str

    @property
    def name(self) -> str:
        return self.entry.name

    def why_not(self, config: Config, problem: Problem, device: Device) -> str | None:
        """None if ``config``, the kernel's own or a provider's name, may serve the problem; else why not."""
        if config.provider is None:
            return self.space.why_not(config, problem, device)
        provider = self.kernel.providers.get(config.provider)
        if provider is None or len(config) > 1:
            return f"{config} is none of its providers: {', '.join(self.kernel.providers) or 'it has none'}"
        return provider.unavailable(problem, device)

    def providers(self, problem: Problem, device: Device) -> list[Config]:
        """What stands beside the space: a config for each provider that can serve the problem on the device."""
        named = [Config(provider=name) for name in self.kernel.providers]
        return [config for config in named if self.why_not(config, problem, device) is None]


_registered: dict[str, Entry] = {}


def register(name: str, kernel: str, space: str) -> None:
    """Make a kernel known under ``name``, in this process.

    :param kernel: module or ``.py`` file that defines ``KERNEL``
    :param space: module or ``.py`` file that defines ``SPACE``
    :raises UsageError: if the name is taken by another kernel.
    """
    entry = Entry(name, kernel, space)
    if entries().get(name, entry) != entry:
        raise UsageError(f"a kernel named {name!r} exists already; choose another name")
    _registered[name] = entry


def entries() -> dict[str, Entry]:
    """Every known kernel, by name, in order. Loads none of them."""
    return dict(sorted({**_installed(), **_registered}.items()))


def load(name: str) -> Loaded:
    """:raises UsageError: if no kernel has this name."""
    entry = (_registered.get(name) or _installed().get(name)) if isinstance(name, str) else None
    if entry is None:
        raise UsageError(f"unknown kernel {name!r}; known are {', '.join(entries())}")
    return entry.load()


@lru_cache(maxsize=1)
def _installed() -> dict[str, Entry]:
    names = [path.stem for path in sorted((_PACKAGE / "kernels").glob("[!_]*.py"))]
    found = {name: Entry(name, f"autotune.kernels.{name}", f"autotune.search_spaces.{name}") for name in names}
    for point in entry_points(group=_ENTRY_POINTS):
        # One module with both KERNEL and SPACE.
        found.setdefault(point.name, Entry(point.name, point.value, point.value))
    return found


@cache
def _load(entry: Entry) -> Loaded:
    kernel_module, space_module = _module(entry.kernel), _module(entry.space)
    kernel, space = getattr(kernel_module, "KERNEL", None), getattr(space_module, "SPACE", None)
    if not isinstance(kernel, Kernel):
        raise UsageError(f"{entry.kernel} defines no KERNEL; it must be an autotune.kernel.Kernel")
    if not isinstance(space, SearchSpace):
        raise UsageError(f"{entry.space} defines no SPACE; it must be an autotune.space.SearchSpace")
    return Loaded(entry, kernel, space, source_hash(Path(str(kernel_module.__file__))))


def _module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where).resolve()
    # A name of its own per path: two files called gemm.py are two modules.
    name = f"autotune_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise UsageError(f"no kernel file {where}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
