"""Problems small enough for the interpreter, of the same class as the large ones they stand for."""

from __future__ import annotations

from autotune.data import Problem

#: Sizes that are halved together, and what they are at most then: a window stays a part of the keys.
GROUPS = (
    (("M",), 64),
    (("N",), 128),
    (("K",), 256),
    (("SQ", "SK", "window"), 128),
    (("D", "DV"), 64),
    (("page",), 32),
    # Tokens, but the tables of embedding_bag are few.
    (("T",), 64),
    (("V",), 1024),
    (("L", "R"), 32),
    (("A",), 32),
)
#: Where blocks of 128 would leave too few of them for a density.
BLOCK = 16
BLOCKS = ("BLOCK_ROWS", "BLOCK_COLUMNS", "BLOCK_Q", "BLOCK_KV")
MOST_GROUPS = MOST_IMBALANCE = 4
MOST_BATCHES = MOST_KV_HEADS = 2


def scaled(problem: Problem) -> Problem:
    """Smaller sizes with the same remainders by 16: odd stays odd, 1 stays 1. A KV head keeps its query heads."""
    values = dict(problem)
    for names, most in GROUPS:
        sizes = {name: problem.integer(name) for name in names if name in problem}
        halvings = 0
        while any(_halved(size, halvings) > most for size in sizes.values()):
            halvings += 1
        values |= {name: _halved(size, halvings) for name, size in sizes.items()}
    values |= {name: BLOCK for name in BLOCKS if name in problem}
    if "imbalance" in problem:
        values["imbalance"] = min(MOST_IMBALANCE, problem.integer("imbalance"))
    if "G" in problem:
        values["G"] = min(MOST_GROUPS, problem.integer("G"))
    if "B" in problem:
        values["B"] = min(MOST_BATCHES, problem.integer("B"))
    if "HKV" in problem:
        heads, kv_heads = problem.integer("H"), problem.integer("HKV")
        values["HKV"] = min(MOST_KV_HEADS, kv_heads)
        values["H"] = heads // kv_heads * min(MOST_KV_HEADS, kv_heads)
    return Problem(values)


def _halved(size: int, times: int) -> int:
    """The multiple of 16 in ``size`` halved ``times``, though not to nothing."""
    sixteens, rest = divmod(size, 16)
    return rest if sixteens == 0 else 16 * max(1, sixteens >> times) + rest
