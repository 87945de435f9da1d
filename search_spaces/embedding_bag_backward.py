"""How ``embedding_bag_backward`` may sum gradients by row: pieces and rows at once, and the most of a piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config, Device, Problem
from autotune.search_spaces import _embedding_bag as shared
from autotune.search_spaces._rules import fits_registers, largest_up_to, worth_interpreting
from autotune.space import Ranges, SearchSpace, by_arch

_SHARED: Ranges = {
    "BLOCK_D": (16, 32, 64, 128, 256, 512),
    "PIECES": (1, 2, 4, 8, 16, 32),
    # Rows of a piece at once.
    "UNROLL": (1, 2, 4, 8, 16, 32),
    # Entries that one program sums of a row at most.
    "CHUNK": (16, 32, 64, 128, 256, 512),
}
_GPU: Ranges = {**_SHARED, "num_warps": (1, 2, 4, 8)}

RANGES: Mapping[str, Ranges] = {"sm_80": _GPU, "gfx942": _GPU, "interpreter": {**_SHARED, "num_warps": (4,)}}


def params(problem: Problem, device: Device) -> Ranges:
    return by_arch(RANGES, device.arch)


def default(problem: Problem, device: Device) -> Config:
    """Most rows are asked for seldom, and a few by most entries."""
    ranges = params(problem, device)
    chunk = largest_up_to(max(16, min(64, next_power_of_2(_entries(problem)))), ranges, "CHUNK")
    unroll = 4 if _entries(problem) > problem.integer("V") else 2
    tile = shared.default_tile("PIECES", _pieces(problem, chunk), unroll, problem, device, ranges)
    chosen = {**tile, "CHUNK": chunk}
    return Config({name: chosen[name] for name in ranges})


def seeds(problem: Problem, device: Device) -> Sequence[Config]:
    """Windows first, then rows in flight."""
    base = default(problem, device)
    unroll, pieces = base.integer("UNROLL"), base.integer("PIECES")
    return [
        *(Config({**base, "CHUNK": chunk}) for chunk in (128, 32, 256)),
        *(Config({**base, "UNROLL": rows}) for rows in (2 * unroll, 4 * unroll, max(1, unroll // 2))),
        *(Config({**base, "PIECES": each}) for each in (2 * pieces, max(1, pieces // 2))),
        *(Config({**base, "num_warps": warps}) for warps in (1, 2, 4)),
    ]


def _entries(problem: Problem) -> int:
    return shared.bags_of(problem) * problem.integer("L")


def _pieces(problem: Problem, chunk: int) -> int:
    """That the launch has programs for."""
    entries = _entries(problem)
    return min(entries, problem.integer("V") + 1 + cdiv(entries, chunk))


def covers_entries(config: Config, problem: Problem, device: Device) -> str | None:
    most = max(16, next_power_of_2(_entries(problem)))
    for name in ("PIECES", "CHUNK"):
        if config.integer(name) > most:
            return f"{name}={config[name]} is over the {_entries(problem)} entries there are"
    return None


def covers_pieces(config: Config, problem: Problem, device: Device) -> str | None:
    if config.integer("UNROLL") <= config.integer("CHUNK"):
        return None
    return f"UNROLL={config['UNROLL']} is over CHUNK={config['CHUNK']}, the most entries of a piece"


def shared_bytes(config: Config, problem: Problem, device: Device) -> int:
    return shared.shared_bytes(config, "PIECES", _entries(problem) > config.integer("CHUNK"))


def steps(config: Config, problem: Problem) -> int:
    """Programs, each with its gathers, in the time that a tile product takes the interpreter."""
    chunk, columns = config.integer("CHUNK"), problem.integer("D")
    programs = cdiv(_pieces(problem, chunk), config.integer("PIECES")) * cdiv(columns, config.integer("BLOCK_D"))
    # As many steps as there are entries, or fewer where pieces run side by side; and each program has some.
    gathered = cdiv(_entries(problem), config.integer("UNROLL")) * cdiv(columns, config.integer("BLOCK_D"))
    second = cdiv(_entries(problem), chunk) * cdiv(columns, shared.SECOND_LAUNCH_COLUMNS)
    return 10 * programs + 4 * min(gathered, programs * cdiv(chunk, config.integer("UNROLL"))) + 6 * second


_RULES = (
    shared.covers_columns,
    covers_entries,
    covers_pieces,
    shared.feeds_threads("PIECES"),
    fits_registers(lambda config, problem: shared.live_elements(config, problem, "PIECES")),
)

SPACE = SearchSpace(
    params=params,
    default=default,
    constraints=(*_RULES, worth_interpreting(steps, default)),
    seeds=seeds,
)
