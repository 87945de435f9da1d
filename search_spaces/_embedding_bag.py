"""What the spaces of ``embedding_bag`` and its backward pass share: programs that gather rows for several groups.

A group is a bag, or a piece of the gradient of one row.
"""

from __future__ import annotations

from collections.abc import Mapping

from autotune.arithmetic import cdiv, clamp, next_power_of_2
from autotune.data import ITEMSIZE, Config, Device, Problem
from autotune.search_spaces._rules import largest_up_to
from autotune.space import Constraint, Ranges

#: Columns of the second launch, which adds up what several programs have of one row.
SECOND_LAUNCH_COLUMNS = 256
#: What a thread has on the way from memory by default: four loads of 16 bytes.
BYTES_A_THREAD = 64


def itemsize(problem: Problem) -> int:
    return ITEMSIZE[str(problem["dtype"])]


def bags_of(problem: Problem) -> int:
    return problem.integer("B") * problem.integer("T", 1)


def default_tile(
    name: str, groups: int, unroll: int, problem: Problem, device: Device, ranges: Ranges
) -> Mapping[str, int]:
    """BLOCK_D, UNROLL, groups and warps: what four warps gather at once, less where few groups feed the device.

    :param name: the parameter that says how many groups a program has
    :param groups: that there are
    :param unroll: rows of a group at once, if there is room
    """
    block_d = largest_up_to(next_power_of_2(problem.integer("D")), ranges, "BLOCK_D")
    rows = max(1, BYTES_A_THREAD * 4 * device.warp_size // (block_d * itemsize(problem)))
    unroll = largest_up_to(min(unroll, rows), ranges, "UNROLL")
    programs = groups * cdiv(problem.integer("D"), block_d)
    each = clamp(programs // (4 * device.sm_count), 1, max(1, rows // unroll))
    each = largest_up_to(min(each, next_power_of_2(groups)), ranges, name)
    warps = each * unroll * block_d * itemsize(problem) // (16 * device.warp_size)
    return {
        "BLOCK_D": block_d,
        "UNROLL": unroll,
        name: each,
        "num_warps": largest_up_to(min(4, warps), ranges, "num_warps"),
    }


def tile(config: Config, name: str) -> int:
    """Elements that a program gathers at once."""
    return config.integer(name) * config.integer("UNROLL") * config.integer("BLOCK_D")


def live_elements(config: Config, problem: Problem, name: str) -> int:
    """Sums and what is added to them, and a 64-bit address for each 16 bytes."""
    return tile(config, name) * (16 + itemsize(problem)) // 8


def covers_columns(config: Config, problem: Problem, device: Device) -> str | None:
    most = max(16, next_power_of_2(problem.integer("D")))
    if config.integer("BLOCK_D") <= most:
        return None
    return f"BLOCK_D={config['BLOCK_D']} is mostly padding for D={problem['D']}; {most} covers it"


def feeds_threads(name: str) -> Constraint:
    def rule(config: Config, problem: Problem, device: Device) -> str | None:
        gathered, warps = tile(config, name) * itemsize(problem), config.integer("num_warps")
        if device.arch == "interpreter" or warps == 1 or gathered >= 4 * device.warp_size * warps:
            return None
        return f"{warps} warps gather {gathered} B at a time; under 4 B a thread they idle"

    return rule


def shared_bytes(config: Config, name: str, several_launches: bool) -> int:
    """Scratch of sums over lanes in several warps, or of looked-up indices; of two launches the more."""
    groups, unroll, block_d, warps = (config.integer(key) for key in (name, "UNROLL", "BLOCK_D", "num_warps"))
    first = max(4 * groups * block_d * min(warps, unroll), 8 * groups * unroll)
    return max(first, 16 * SECOND_LAUNCH_COLUMNS if several_launches else 0)
