"""How a config is written where a person reads it."""

from __future__ import annotations

from autotune.data import Config

#: Short forms of parameter names, so that a config fits a column: m64 n128 k32 w4 s3.
_LETTERS = {"BLOCK_M": "m", "BLOCK_N": "n", "BLOCK_K": "k", "GROUP_M": "g", "num_warps": "w", "num_stages": "s"}


def short(config: Config) -> str:
    """``m64 n128 k32 w4 s3``: the usual parameters by letter, others by name."""
    known = [f"{letter}{config[name]}" for name, letter in _LETTERS.items() if name in config]
    return " ".join([*known, *(f"{name}={value}" for name, value in config.items() if name not in _LETTERS)])
