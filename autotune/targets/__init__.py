"""Where candidates are measured. ``open_target("auto")`` picks what is present."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from autotune.data import Device, UsageError

if TYPE_CHECKING:
    from autotune.protocol import Objective
    from autotune.targets.replay import Replay
    from autotune.targets.target import Machine, Target

SPELLINGS = "auto, cuda:N, interpreter or replay:FILE"

_REPLAY = "replay:"


def resolve(name: str) -> str:
    """``auto`` -> ``cuda:0`` where torch sees a GPU, else ``interpreter``; other names as they are.

    :raises UsageError: if no target has this name.
    """
    if name == "auto":
        import torch

        return "cuda:0" if torch.cuda.is_available() else "interpreter"
    if name == "cuda":
        return "cuda:0"
    if name == _REPLAY:
        raise UsageError("target replay: names no file; write replay:tuning.db")
    if name != "interpreter" and not replays(name) and not re.fullmatch(r"cuda:[0-9]{1,3}", name):
        raise UsageError(f"unknown target {name!r}; use {SPELLINGS}")
    return name


def replays(name: str) -> bool:
    """Whether the target called ``name`` answers from a file, so that the file says what can be asked."""
    return name.startswith(_REPLAY)


def open_target(name: str, seed: int = 0, objective: Objective = "throughput", eager: bool = False) -> Target:
    """Start the target called ``name``; use it as a context manager.

    :param objective: what the score of a candidate is; of a replay, which rows answer if there are several kinds
    :param eager: on a GPU, time single launches and no graphs
    :raises UsageError: if it is unknown or not present.
    """
    if replays(resolve(name)):
        return open_replay(name, objective)
    return open_machine(name, seed, objective, eager)


def open_replay(name: str, objective: Objective = "throughput") -> Replay:
    """:raises UsageError: if the file is missing, or not in order."""
    from autotune.targets.replay import Replay

    return Replay(name.removeprefix(_REPLAY), objective)


def open_machine(name: str, seed: int = 0, objective: Objective = "throughput", eager: bool = False) -> Machine:
    """Like :func:`open_target`, for work that runs kernels.

    :raises UsageError: if it is unknown, not present, or a replay.
    """
    name = resolve(name)
    if eager and not name.startswith("cuda"):
        raise UsageError(f"eager timing is for GPUs, the target is {name}; leave --eager out")
    if replays(name):
        raise UsageError(f"nothing runs on {name}; use --target auto, cuda:N or interpreter")
    # Late, since torch and Triton come with them, and a misspelt name needs neither.
    if name == "interpreter":
        from autotune.targets.interpreter import Interpreter

        return Interpreter(seed=seed, objective=objective)
    from autotune.targets.gpu import open_gpu

    return open_gpu(int(name.partition(":")[2]), seed, objective, eager)


def device_of(name: str) -> Device:
    """The device of the target called ``name``, without starting it.

    :raises UsageError: if it is unknown or not present.
    """
    name = resolve(name)
    if replays(name):
        return open_target(name).device
    from autotune import device

    return device.INTERPRETER if name == "interpreter" else device.present(int(name.partition(":")[2]))
