"""How a config is written where a person reads it."""

from __future__ import annotations

from autotune.data import Config

#: Short forms of parameter names, so that a config fits a column: m64 n128 k32 w4 s3.
_LETTERS = {"BLOCK_M": "m", "BLOCK_N": "n", "BLOCK_K": "k", "GROUP_M": "g", "num_warps": "w", "num_stages": "s"}
#: What is not worth a word: nothing is split, limited or switched on.
_OFF = {
    **dict.fromkeys(("SPLIT", "SPLIT_K", "SPLIT_KV", "SPLIT_N", "EPILOGUE_SUBTILE"), 1),
    **{"maxnreg": 0, "waves_per_eu": 0, "CACHE": ""},
}


def short(config: Config) -> str:
    """``tiled m64 n128 k32 w4 s3 SPLIT_K=4``: the structure, the usual parameters by letter, others by name."""
    words = [str(config["STRUCTURE"])] if "STRUCTURE" in config else []
    words += [f"{letter}{config[name]}" for name, letter in _LETTERS.items() if name in config]
    for name, value in config.items():
        if name not in _LETTERS and name != "STRUCTURE" and value is not False and value != _OFF.get(name):
            words.append(name if value is True else f"{name}={value}")
    return " ".join(words)
