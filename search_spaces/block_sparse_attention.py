"""Which tiles ``block_sparse_attention`` may use, by architecture.

Those of ``attention`` that divide the mask's blocks: the loops are alike but for where the keys come from, so what
the compiler makes of a tile is, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces import _attention_resources as dense
from autotune.search_spaces._attention_resources import itemsize, live_elements, unrolls_little, value_dim
from autotune.search_spaces._rules import fits_registers, fits_shared_memory, worth_interpreting
from autotune.search_spaces.attention import default as dense_default
from autotune.space import Ranges, SearchSpace, by_arch

_OFF_OR_ON = (False, True)

_NVIDIA: Ranges = {
    "BLOCK_M": (16, 32, 64, 128, 256),
    "BLOCK_N": (16, 32, 64, 128),
    "num_warps": (1, 2, 4, 8),
    "num_stages": (1, 2, 3, 4, 5),
    "PACK_GQA": _OFF_OR_ON,
    "LONGEST_FIRST": _OFF_OR_ON,
}
_FROM_SM_90: Ranges = {**_NVIDIA, "num_stages": (1, 2, 3, 4), "DESCRIPTOR": _OFF_OR_ON}

RANGES: Mapping[str, Ranges] = {
    "sm_80": _NVIDIA,
    "sm_90": _FROM_SM_90,
    "gfx942": {**_NVIDIA, "num_warps": (1, 2, 4, 8), "num_stages": (1, 2), "waves_per_eu": (0, 2, 3)},
    # Warps and stages change nothing there, so they are no choice.
    "interpreter": {**_FROM_SM_90, "num_warps": (4,), "num_stages": (2,)},
}


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


def default(problem: Problem, device: Device) -> Config:
    """The tile of ``attention``, cut to the blocks; a group of heads fills it where a block of queries does not."""
    wanted = dense_default(problem, device)
    chosen: dict[str, Value] = {"waves_per_eu": 0, "DESCRIPTOR": False}
    chosen |= {name: wanted[name] for name in ("num_warps", "num_stages")}
    chosen["PACK_GQA"] = _packs({}, problem, device) and wanted.integer("BLOCK_M") > problem.integer("BLOCK_Q")
    block_m = min(wanted.integer("BLOCK_M"), _most_rows(problem, bool(chosen["PACK_GQA"])))
    block_n = min(wanted.integer("BLOCK_N"), problem.integer("BLOCK_KV"))
    chosen["LONGEST_FIRST"] = _rows_differ({}, problem, device)
    chosen["num_warps"] = _warps(block_m, problem, device, wanted.integer("num_warps"))
    while True:
        chosen |= {"BLOCK_M": block_m, "BLOCK_N": block_n}
        config = Config({name: chosen[name] for name in params(problem, device)})
        smallest = (block_m, block_n, config["num_stages"]) == (16, 16, 1)
        if smallest or all(rule(config, problem, device) is None for rule in _RULES):
            return config
        # Give up pipelining first, then width, as attention does.
        if config.integer("num_stages") > 1:
            chosen["num_stages"] = config.integer("num_stages") - 1
        elif block_n > 16:
            block_n //= 2
        else:
            block_m //= 2


def _warps(block_m: int, problem: Problem, device: Device, most: int) -> int:
    """Those that have 16 rows of the products each, and 4 at least; in float32, where none has to, as attention."""
    if itemsize(problem) == 4 or device.arch == "interpreter":
        return most
    return min(most, max(4, block_m // 16))


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    base = default(problem, device)
    shapes = ((128, 128, 8), (128, 64, 8), (64, 64, 4), (64, 128, 4), (64, 32, 4), (32, 32, 4), (16, 64, 4))
    plain = [Config({**base, "BLOCK_M": m, "BLOCK_N": n, "num_warps": warps}) for m, n, warps in shapes]
    described = (
        [Config({**config, "DESCRIPTOR": True}) for config in (base, *plain)] if "DESCRIPTOR" in base else []
    )
    return [*described, *plain]


def _group(problem: Problem) -> int:
    """Heads whose queries may share a tile: those that share their keys and the mask."""
    return 1 if problem.get("per_head", False) else problem.integer("H") // problem.integer("HKV")


def _most_rows(problem: Problem, packed: bool) -> int:
    """Rows of the largest tile that is not mostly padding."""
    return next_power_of_2(problem.integer("BLOCK_Q") * (_group(problem) if packed else 1))


def _packs(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    return _group(problem) > 1


def _rows_differ(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    """Whether some block rows may list more blocks than others."""
    return not problem.get("plain", False) or bool(problem.get("causal", False))


def _describes(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    """Descriptors need rows of keys and values that begin at multiples of 16 bytes and have no gaps."""
    return (
        bool(problem.get("aligned", True))
        and problem.get("layout") != "s"
        and problem.integer("SK") > 0
        and all(width * itemsize(problem) % 16 == 0 for width in (problem.integer("D"), value_dim(problem)))
    )


def divides_blocks(config: Config, problem: Problem, device: Device) -> str | None:
    most = _most_rows(problem, bool(config["PACK_GQA"]))
    if config.integer("BLOCK_M") > most:
        return f"BLOCK_M={config['BLOCK_M']} is over the {most} rows that a block of queries has"
    if config.integer("BLOCK_N") > problem.integer("BLOCK_KV"):
        return f"BLOCK_N={config['BLOCK_N']} is over a block of keys, BLOCK_KV={problem['BLOCK_KV']}"
    return None


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    """That of ``attention``'s tiles, and the pipelined numbers of documents."""
    documents = 4 * config.integer("BLOCK_N") * config.integer("num_stages") if problem.get("documents") else 0
    return dense.shared_bytes(config, problem, device) + documents


def steps(config: Config, problem: Problem) -> int:
    """Tile products of a mask as full as the problem's density says, and as much again a program for the rest."""
    group = _group(problem) if config["PACK_GQA"] else 1
    tiles = cdiv(problem.integer("BLOCK_Q") * group, config.integer("BLOCK_M")) * problem.integer("H") // group
    rows = cdiv(problem.integer("SQ"), problem.integer("BLOCK_Q"))
    keys = cdiv(problem.integer("SK"), config.integer("BLOCK_N")) * problem.integer("density") / 100
    return int(problem.integer("B") * tiles * rows * (2 + keys))


_RULES = (
    divides_blocks,
    fits_registers(live_elements, limit=320),
    unrolls_little,
    fits_shared_memory(shared_bytes),
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    matters={"PACK_GQA": _packs, "LONGEST_FIRST": _rows_differ, "DESCRIPTOR": _describes},
    seeds=seeds,
)
