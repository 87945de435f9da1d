"""Which structures and tiles ``lora`` may use, by architecture.

Ranges from what vLLM, sglang and Punica ship for their shrink and expand kernels. By default a batch that may be
decoding goes token by token, a larger one by tiles of tokens as they lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces._lora_resources import (
    by_rows,
    feeds_warps,
    itemsize,
    ranks_of,
    registers_hold,
    scatters_little,
    shared_bytes,
    unrolls_little,
)
from autotune.search_spaces._rules import (
    fits_shared_memory,
    largest_up_to,
    smallest,
    worth_interpreting,
)
from autotune.space import Ranges, SearchSpace, by_arch

_SHARED: Ranges = {
    "STRUCTURE": ("gathered", "fused", "runs", "grouped"),
    "BLOCK_M": (16, 32, 64, 128),
    "BLOCK_R": (1, 2, 4, 8, 16, 32, 64, 128),
    "BLOCK_K": (64, 128, 256, 512),
    "BLOCK_N": (64, 128, 256, 512),
    "SPLIT_K": (1, 2, 4, 8, 16),
    # Programs that share a token's columns.
    "SPLIT_N": (1, 2, 4, 8, 16),
}
_NVIDIA: Ranges = {**_SHARED, "num_warps": (1, 2, 4, 8), "num_stages": (1, 2, 3, 4)}

RANGES: Mapping[str, Ranges] = {
    "sm_80": _NVIDIA,
    "gfx942": {**_SHARED, "num_warps": (1, 2, 4, 8), "num_stages": (1, 2), "waves_per_eu": (0, 2)},
    # Warps and stages change nothing there, so they are no choice.
    "interpreter": {**_SHARED, "num_warps": (4,), "num_stages": (2,)},
}

#: Tokens up to which a batch may be decoding, each with an adapter of its own.
DECODED = 256
#: Tokens from which reading weights for each of them is hopeless.
MOST_ROWS = 2048
#: Rank up to which to shrink again costs less than a second launch.
MOST_FUSED = 64
#: Of the interpreter.
_STEPS_A_PROGRAM = 4
#: Waves of programs from which splitting K only adds traffic.
MOST_WAVES_TO_SPLIT = 4


@lru_cache(maxsize=64)
def params(problem: Problem, device: Device) -> Ranges:
    """The architecture's, without blocks that would mostly be padding."""
    ranges = by_arch(RANGES, device.arch)
    sizes = (("BLOCK_M", "T", 16), ("BLOCK_R", "R", 16), ("BLOCK_K", "K", 64), ("BLOCK_N", "N", 64))
    covering = {name: max(least, next_power_of_2(problem.integer(size))) for name, size, least in sizes}
    return {
        name: tuple(value for value in values if name not in covering or int(value) <= covering[name])
        for name, values in ranges.items()
    }


def default(problem: Problem, device: Device) -> Config:
    rows = problem.integer("T") <= DECODED
    sizes = _row_sizes(problem, device) if rows else _tile_sizes(problem, device)
    while True:
        config = _completed("gathered" if rows else "runs", sizes, problem, device)
        if not any(rule(config, problem, device) for rule in _RULES):
            return config
        # Pipelining is given up first, then what a tile holds.
        order = ("num_stages", "BLOCK_K", "BLOCK_N", "BLOCK_M", "BLOCK_R")
        name = next(name for name in order if sizes[name] > _least(name, rows, problem, device))
        sizes[name] = largest_up_to(sizes[name] - 1, params(problem, device), name)


def _least(name: str, rows: bool, problem: Problem, device: Device) -> int:
    return 16 if name == "BLOCK_R" and not rows else smallest(params(problem, device), name)


def _row_sizes(problem: Problem, device: Device) -> dict[str, int]:
    """32 elements of weights a thread, long rows first."""
    ranges = params(problem, device)
    block_r = min(ranks_of(problem), 16)
    return {
        "BLOCK_M": smallest(ranges, "BLOCK_M"),
        "BLOCK_R": block_r,
        "BLOCK_K": largest_up_to(4096 // block_r, ranges, "BLOCK_K"),
        "BLOCK_N": largest_up_to(4096 // block_r, ranges, "BLOCK_N"),
        "num_stages": largest_up_to(3, ranges, "num_stages"),
    }


def _tile_sizes(problem: Problem, device: Device) -> dict[str, int]:
    ranges, narrow = params(problem, device), itemsize(problem) == 2
    return {
        "BLOCK_M": largest_up_to(64 if narrow else 32, ranges, "BLOCK_M"),
        "BLOCK_R": min(max(16, ranks_of(problem)), 64 if narrow else 32),
        "BLOCK_K": largest_up_to(128 if device.arch == "interpreter" else 64, ranges, "BLOCK_K"),
        "BLOCK_N": largest_up_to(128 if narrow else 64, ranges, "BLOCK_N"),
        "num_stages": largest_up_to(3, ranges, "num_stages"),
    }


def _completed(structure: str, sizes: Mapping[str, int], problem: Problem, device: Device) -> Config:
    ranges = params(problem, device)
    chosen: dict[str, Value] = {
        **{name: values[0] for name, values in ranges.items()},
        **sizes,
        "STRUCTURE": structure,
    }
    chosen["num_warps"] = _warps(chosen, problem, device)
    room = 1 if device.arch == "interpreter" else 2 * device.sm_count
    parts = min(room // max(1, _shrinking(Config(chosen), problem)), _steps(chosen, problem))
    chosen["SPLIT_K"] = largest_up_to(parts, ranges, "SPLIT_K")
    return Config(SPACE.settle(chosen, problem, device, ranges))


def _warps(chosen: Mapping[str, Value], problem: Problem, device: Device) -> int:
    """Four where all have something to do, eight where a thread of four would hold too much."""
    known = params(problem, device)["num_warps"]
    tried = {number: Config({**chosen, "num_warps": number}) for number in (4, 8, 2, 1) if number in known}
    fed = [number for number, config in tried.items() if feeds_warps(config, problem, device) is None]
    return next((number for number in fed if registers_hold(tried[number], problem, device) is None), fed[0])


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    """Each structure, then other parts of K and widths."""
    base, ranges = default(problem, device), params(problem, device)
    rows, tiles = _row_sizes(problem, device), _tile_sizes(problem, device)
    splits = base.integer("SPLIT_K")
    changes: Sequence[Mapping[str, Value]] = (
        {**rows, "STRUCTURE": "gathered"},
        {**rows, "STRUCTURE": "fused", "SPLIT_N": 1},
        {**rows, "STRUCTURE": "fused", "SPLIT_N": 4},
        {**tiles, "STRUCTURE": "runs"},
        {**tiles, "STRUCTURE": "grouped"},
        {**tiles, "STRUCTURE": "grouped", "BLOCK_M": 16, "num_stages": 2},
        {"SPLIT_K": max(1, splits // 2)},
        {"SPLIT_K": splits * 2},
        {"BLOCK_N": max(64, base.integer("BLOCK_N") // 2)},
    )
    wanted = ({**base, **change} for change in changes)
    return [Config(SPACE.settle(each, problem, device, ranges)) for each in wanted]


def _steps(config: Mapping[str, Value], problem: Problem) -> int:
    return max(1, cdiv(problem.integer("K"), int(config["BLOCK_K"])))


def _shrinking(config: Config, problem: Problem) -> int:
    """Programs of the first launch with one part of K."""
    tokens = problem.integer("T")
    rows = tokens if by_rows(config) else cdiv(tokens, config.integer("BLOCK_M"))
    return rows * cdiv(problem.integer("R"), config.integer("BLOCK_R"))


def structure_serves(config: Config, problem: Problem, device: Device) -> str | None:
    tokens, rank = problem.integer("T"), problem.integer("R")
    if by_rows(config) and tokens > MOST_ROWS:
        return f"STRUCTURE={config['STRUCTURE']} reads weights for each of T={tokens} tokens, over {MOST_ROWS}"
    if config["STRUCTURE"] == "fused" and rank > MOST_FUSED:
        return f"STRUCTURE=fused takes ranks up to {MOST_FUSED}, and R={rank}"
    if config["STRUCTURE"] == "grouped" and tokens <= config.integer("BLOCK_M"):
        return f"STRUCTURE=grouped sorts T={tokens} tokens that are one tile anyway; runs does the same"
    return None


def ranks_fit(config: Config, problem: Problem, device: Device) -> str | None:
    """Tensor cores take 16 ranks at least; more than there are is padding."""
    if config["STRUCTURE"] == "fused":
        return None
    block, least = config.integer("BLOCK_R"), 1 if by_rows(config) else 16
    most = max(least, ranks_of(problem))
    if least <= block <= most:
        return None
    return (
        f"BLOCK_R={block} is not within {least} and {most} for R={problem['R']} in STRUCTURE={config['STRUCTURE']}"
    )


def tile_is_usual(config: Config, problem: Problem, device: Device) -> str | None:
    """Wide rows are for one token; for tiles of tokens they would only fill the registers."""
    if by_rows(config) or max(config.integer("BLOCK_K"), config.integer("BLOCK_N")) <= 256:
        return None
    return f"BLOCK_K={config['BLOCK_K']} and BLOCK_N={config['BLOCK_N']} are at most 256 in tiles of tokens"


def splits_pay(config: Config, problem: Problem, device: Device) -> str | None:
    parts, columns = config.integer("SPLIT_K"), config.integer("SPLIT_N")
    steps_of_k, tiles = _steps(config, problem), cdiv(problem.integer("N"), config.integer("BLOCK_N"))
    if parts > steps_of_k:
        return f"SPLIT_K={parts} is over the {steps_of_k} steps of BLOCK_K"
    if parts > 1 and _shrinking(config, problem) >= MOST_WAVES_TO_SPLIT * device.sm_count:
        return f"SPLIT_K={parts} gains nothing: {_shrinking(config, problem)} programs fill {device.sm_count} SMs"
    if columns > max(1, tiles):
        return f"SPLIT_N={columns} is over the {tiles} tiles of BLOCK_N"
    return None


def _by_tiles(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    return chosen["STRUCTURE"] in ("runs", "grouped")


def _twice(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    return chosen["STRUCTURE"] != "fused"


def _once(chosen: Mapping[str, Value], problem: Problem, device: Device) -> bool:
    return chosen["STRUCTURE"] == "fused"


def steps(config: Config, problem: Problem) -> int:
    """Tile products and sums, and what it takes a program to find its token and store its results.

    A tile of tokens makes a visit for each adapter that it may have.
    """
    tokens, adapters = problem.integer("T"), problem.integer("A")
    tiles_n, steps_of_k = cdiv(problem.integer("N"), config.integer("BLOCK_N")), _steps(config, problem)
    if config["STRUCTURE"] == "fused":
        return tokens * (config.integer("SPLIT_N") * (steps_of_k + _STEPS_A_PROGRAM) + 2 * tiles_n)
    ranks, parts = cdiv(problem.integer("R"), config.integer("BLOCK_R")), config.integer("SPLIT_K")
    a_visit = ranks * (max(parts, steps_of_k) + _STEPS_A_PROGRAM * parts) + tiles_n * (ranks + _STEPS_A_PROGRAM)
    if by_rows(config):
        return tokens * a_visit
    tiles = cdiv(tokens, config.integer("BLOCK_M"))
    mixed = min(adapters, config.integer("BLOCK_M")) if tokens <= DECODED else 2
    visits = tiles + adapters if config["STRUCTURE"] == "grouped" else tiles * mixed
    return min(visits, tokens + tiles) * a_visit


_RULES = (
    structure_serves,
    ranks_fit,
    tile_is_usual,
    splits_pay,
    feeds_warps,
    registers_hold,
    unrolls_little,
    scatters_little,
    fits_shared_memory(shared_bytes),
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    matters={
        "BLOCK_M": _by_tiles,
        "BLOCK_R": _twice,
        "SPLIT_K": _twice,
        "SPLIT_N": _once,
    },
    seeds=seeds,
)
