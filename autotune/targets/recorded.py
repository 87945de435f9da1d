"""What a database, or an export of one, has recorded of one device under one protocol."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from autotune import device, exchange
from autotune.data import Config, Device, Problem, Trial, UsageError
from autotune.protocol import Objective, is_native, objective_of
from autotune.row import to_trial
from autotune.store import Store, StoreError

#: kernel -> problem, as recorded -> source -> config -> trial, in the order of the measurements.
Trials: TypeAlias = Mapping[str, Mapping[Problem, Mapping[str, Mapping[Config, Trial]]]]

_SQLITE = b"SQLite format 3\0"
_KEY = re.compile(r"([^/]+)/([0-9]+)sm/([0-9]+)GiB/(.+)")


@dataclass(frozen=True)
class Recorded:
    device: Device
    protocol: str
    #: Of the latest trial.
    triton: str
    torch: str
    trials: Trials
    #: What else was in the file and is left out: the other protocols of this device.
    other_protocols: tuple[str, ...] = ()


def read(path: Path, text: str = "", objective: Objective = "throughput") -> Recorded:
    """The trials of a database or of JSON lines, of the device whose key contains ``text``.

    Of several protocols the one of this objective with the most rows.

    :raises UsageError: if the file is missing, has no trial, or more than one device to choose from.
    :raises StoreError: if it can't be read.
    """
    if not path.is_file():
        raise UsageError(f"no file {path}; replay a database, an export of one, or a table KERNEL@DEVICE.csv.gz")
    rows = _rows(path)
    key = _chosen_device(path, sorted({row["device"] for row in rows}), text)
    rows = [row for row in rows if row["device"] == key]
    protocol, *others = _protocols(path, rows, objective)
    found: dict[str, dict[Problem, dict[str, dict[Config, Trial]]]] = {}
    try:
        trials = [to_trial(row) for row in rows if row["protocol"] == protocol]
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    for trial in sorted(trials, key=lambda trial: (trial.created_at, str(trial.config))):
        sources = found.setdefault(trial.kernel, {}).setdefault(trial.problem, {})
        sources.setdefault(trial.source, {})[trial.config] = trial
    latest = max(trials, key=lambda trial: trial.created_at)
    where = replace(_device(key), driver=latest.driver)
    return Recorded(where, protocol, latest.triton, latest.torch, found, tuple(others))


def _rows(path: Path) -> list[dict[str, Any]]:
    # Through the door that checks what comes from outside: a database of ours, for as long as this takes.
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "replay.db"
        with path.open("rb") as stream:
            is_database = stream.read(len(_SQLITE)) == _SQLITE
        if is_database:
            exchange.merge([path], taken)
        else:
            try:
                with path.open(encoding="utf-8-sig") as lines:
                    exchange.import_(taken, lines)
            except StoreError as error:
                raise UsageError(f"{path} is no database, export or table KERNEL@DEVICE.csv.gz: {error}") from error
        with Store(taken, readonly=True) as store:
            rows = list(store.rows())
    if not rows:
        raise UsageError(f"{path} has no trials; record some with `autotune tune --db {path}`")
    return rows


def _chosen_device(path: Path, keys: Sequence[str], text: str) -> str:
    """A device's key: the only one with ``text`` in it, or the only one that is no interpreter."""
    fitting = [key for key in keys if text in key]
    real = [key for key in fitting if key != device.INTERPRETER.key]
    for chosen in (fitting, real):
        if len(chosen) == 1:
            return chosen[0]
    if not fitting:
        raise UsageError(f"{path} has no device with {text!r} in its key; it has {', '.join(keys)}")
    raise UsageError(
        f"{path} has trials of {', '.join(fitting)}, and {len(fitting)} of them fit; "
        f"name one by a part of it: replay:{path}#TEXT"
    )


def _protocols(path: Path, rows: Sequence[Mapping[str, Any]], objective: Objective) -> list[str]:
    """Those with a kernel's time, the one to replay first: of the objective asked for, then of the most rows."""
    timed = {row["protocol"] for row in rows if row["median_ms"] is not None and not is_native(row["protocol"])}
    if not timed:
        raise UsageError(f"{path} has failures only of kernels on {rows[0]['device']}; there is no time to replay")
    counts = Counter(row["protocol"] for row in rows)
    return sorted(timed, key=lambda name: (objective_of(name) != objective, -counts[name], name))


def _device(key: str) -> Device:
    """The device of a key, with facts from its profile if there is one."""
    if key == device.INTERPRETER.key:
        return device.INTERPRETER
    match = _KEY.fullmatch(key)
    if match is None:
        raise UsageError(f"device {key!r} is not ARCH/NUMBERsm/NUMBERGiB/NAME; nothing can be replayed on it")
    arch, sm_count, memory_gib, name = match.groups()
    facts: dict[str, Any] = {"sm_count": int(sm_count), "memory_bytes": int(memory_gib) * 2**30}
    for profile in map(device.profile, device.profiles()):
        if (profile.arch, profile.name) == (arch, name):
            return replace(profile, **facts)
    # No limit on shared memory: configs that asked for too much are recorded as failed. L2: not known.
    warp_size = 64 if arch.startswith("gfx9") else 32
    return Device(name=name, arch=arch, shared_bytes_per_block=2**31, l2_bytes=0, warp_size=warp_size, **facts)
