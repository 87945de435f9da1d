"""Where a parameter of ``gemm`` changes anything, and what it may not be, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autotune.arithmetic import cdiv, next_power_of_2
from autotune.data import Config, Device, Problem, Value
from autotune.search_spaces import _rules
from autotune.search_spaces._gemm_problem import (
    MOST_SKINNY_ROWS,
    Product,
    is_at_least,
    no_descriptor,
    read,
)
from autotune.search_spaces._rules import little_padding
from autotune.space import Constraint, Effect, Ranges

#: Steps of BLOCK_K that a part of K keeps, as in triton_kernels.
LEAST_STEPS_A_PART = 4
#: Waves of tiles from which on splitting K only adds traffic: the device is full without.
MOST_WAVES_TO_SPLIT = 2

Chosen = Mapping[str, Value]


def _number(chosen: Chosen, name: str) -> int:
    return int(chosen[name])


def _by_tiles(chosen: Chosen, problem: Problem, device: Device) -> bool:
    return chosen["STRUCTURE"] != "skinny"


def _in_parts(chosen: Chosen, problem: Problem, device: Device) -> bool:
    return chosen["STRUCTURE"] in ("tiled", "skinny")


def _in_order(chosen: Chosen, problem: Problem, device: Device) -> bool:
    """One row or column of tiles has only one order."""
    product = read(problem)
    return (
        chosen["STRUCTURE"] != "skinny"
        and cdiv(product.M, _number(chosen, "BLOCK_M")) > 1
        and cdiv(product.N, _number(chosen, "BLOCK_N")) > 1
    )


def _by_descriptor(chosen: Chosen, problem: Problem, device: Device) -> bool:
    return chosen["STRUCTURE"] == "descriptor"


def _in_rounds(chosen: Chosen, problem: Problem, device: Device) -> bool:
    """Where a program has a next tile."""
    return chosen["STRUCTURE"] in ("persistent", "descriptor") and read(problem).tiles(chosen) > device.sm_count


def _in_warp_groups(chosen: Chosen, problem: Problem, device: Device) -> bool:
    """Triton 3.9 specialises the loop over tiles on sm_90 for wgmma of 4 warps, unless flattened, and on sm_10x.

    Elsewhere it says nothing and compiles the same code.
    """
    if chosen["STRUCTURE"] != "descriptor" or read(problem).on_plain_cores(device):
        return False
    if device.arch.startswith("sm_10"):
        return True
    one_group = chosen["num_warps"] == 4 and _number(chosen, "BLOCK_M") >= 64
    return device.arch == "sm_90" and one_group and not chosen["FLATTEN"]


def _limits_registers(chosen: Chosen, problem: Problem, device: Device) -> bool:
    return any(_binds(limit, chosen, device) for limit in (128, 168, 232))


def _on_matrix_cores(chosen: Chosen, problem: Problem, device: Device) -> bool:
    return chosen["STRUCTURE"] != "skinny"


def _wide_and_tall(chosen: Chosen, problem: Problem, device: Device) -> bool:
    """Smaller tiles take the instruction of 16 rows and columns anyway."""
    return chosen["STRUCTURE"] != "skinny" and min(_number(chosen, "BLOCK_M"), _number(chosen, "BLOCK_N")) >= 32


MATTERS: Mapping[str, Effect] = {
    "BLOCK_M": _by_tiles,
    "SPLIT_K": _in_parts,
    "GROUP_M": _in_order,
    "EPILOGUE_SUBTILE": _by_descriptor,
    "FLATTEN": _in_rounds,
    "WARP_SPECIALIZE": _in_warp_groups,
    "maxnreg": _limits_registers,
    "matrix_instr_nonkdim": _wide_and_tall,
    "kpack": _on_matrix_cores,
}


def lacks_dtype(problem: Problem, device: Device) -> str | None:
    """Triton compiles e4m3 for sm_89 and later; on AMD it is emulated in 16 bits, as e5m2 is before sm_89."""
    dtype = read(problem).dtype
    if dtype != "float8_e4m3fn" or not device.arch.startswith("sm_") or is_at_least(device, 89):
        return None
    return f"{dtype} needs sm_89 or later, and this is {device.arch}; float8_e5m2 runs there"


def structure_serves(config: Config, problem: Problem, device: Device) -> str | None:
    product, structure = read(problem), config["STRUCTURE"]
    if product.K == 0 and structure != "tiled":
        return f"STRUCTURE={structure} has nothing to sum up where K=0; the tiled one fills the result"
    if structure == "skinny" and product.M > MOST_SKINNY_ROWS:
        return f"STRUCTURE=skinny takes up to {MOST_SKINNY_ROWS} rows, and M={product.M}"
    if structure == "descriptor":
        why = no_descriptor(product) or _narrow_box(config, product)
        return None if why is None else f"STRUCTURE=descriptor {why}"
    tiles = product.tiles(config)
    if structure == "persistent" and tiles <= device.sm_count:
        return f"STRUCTURE=persistent is the tiled one: {tiles} tiles are no second round for {device.sm_count} SMs"
    return None


def _narrow_box(config: Config, product: Product) -> str | None:
    """The innermost row of each box is 16 bytes or more, 32 in 8 bits."""
    width = _number(config, "BLOCK_N") // (2 if product.gated else 1)
    a, b = product.layout[0], product.layout[1]
    boxes = (
        (_number(config, "BLOCK_K") if a == "n" else _number(config, "BLOCK_M"), product.itemsize),
        (width if b == "n" else _number(config, "BLOCK_K"), product.itemsize),
        (width // _number(config, "EPILOGUE_SUBTILE"), product.out_itemsize),
    )
    for elements, itemsize in boxes:
        least = 32 if itemsize == 1 else 16 // itemsize
        if elements < least:
            return (
                f"moves rows of {least} elements or more of {itemsize} bytes, and a box of this tile has {elements}"
            )
    return None


def split_pays(config: Config, problem: Problem, device: Device) -> str | None:
    """Parts of K fill a device that the tiles alone leave idle, and each should be worth its start."""
    parts = _number(config, "SPLIT_K")
    if parts == 1:
        return None
    product = read(problem)
    steps = cdiv(product.K, _number(config, "BLOCK_K"))
    if parts > steps // LEAST_STEPS_A_PART:
        return f"SPLIT_K={parts} leaves under {LEAST_STEPS_A_PART} of the {steps} steps of BLOCK_K to a part"
    tiles = product.tiles(config)
    if tiles >= MOST_WAVES_TO_SPLIT * device.sm_count:
        return f"SPLIT_K={parts} gains nothing: {tiles} tiles fill {device.sm_count} SMs"
    return None


def pads_little(params: Callable[[Problem, Device], Ranges]) -> Constraint:
    """As for all tiles, but the rows of a skinny one are padded apart, and those of a batch-invariant one fixed."""
    rows = little_padding({"BLOCK_M": "M"}, params)
    rest = little_padding({"BLOCK_N": "N", "BLOCK_K": "K"}, params)

    def rule(config: Config, problem: Problem, device: Device) -> str | None:
        fixed = config["STRUCTURE"] == "skinny" or read(problem).batch_invariant
        return rest(config, problem, device) or (None if fixed else rows(config, problem, device))

    return rule


def feeds_warps(params: Callable[[Problem, Device], Ranges]) -> Constraint:
    """A warp has 256 outputs, or of a skinny tile as many elements of b, to work on."""

    def shared_out(config: Config, problem: Problem) -> int:
        other = "BLOCK_K" if config["STRUCTURE"] == "skinny" else "BLOCK_M"
        return config.integer("BLOCK_N") * config.integer(other)

    return _rules.feeds_warps(shared_out, params)


def band_fits(params: Callable[[Problem, Device], Ranges]) -> Constraint:
    """A band is cut to the tile rows there are: the smallest that holds them all does what larger ones do."""

    def rule(config: Config, problem: Problem, device: Device) -> str | None:
        band = _number(config, "GROUP_M")
        if config["STRUCTURE"] == "skinny" or band <= 4:
            return None
        rows = cdiv(read(problem).M, _number(config, "BLOCK_M"))
        enough = min(
            (int(value) for value in params(problem, device)["GROUP_M"] if int(value) >= rows), default=band
        )
        return (
            None if band <= enough else f"GROUP_M={band} is over the {rows} rows of tiles; {enough} does the same"
        )

    return rule


def warp_groups_fit(config: Config, problem: Problem, device: Device) -> str | None:
    """Where Triton 3.9's compiler stops.

    On sm_90 at operands of 8 or 32 bits that wgmma, which takes rows along K alone, needs turned; with FLATTEN at
    the two products of a gated tile.
    """
    if not config.get("WARP_SPECIALIZE", False):
        return None
    product = read(problem)
    if device.arch == "sm_90" and product.itemsize != 2 and product.layout != "nt":
        return f"WARP_SPECIALIZE takes {product.dtype} in layout nt on {device.arch}, not {product.layout}"
    if product.gated and config["FLATTEN"]:
        return "WARP_SPECIALIZE does not take FLATTEN where a tile is gated"
    return None


def _binds(limit: int, chosen: Chosen, device: Device) -> bool:
    """Whether accumulators take half of ``limit`` or more, and leave 40 for addresses: ptxas refuses under 26."""
    if chosen["STRUCTURE"] == "skinny" or chosen.get("WARP_SPECIALIZE", False):
        return False
    tile = _number(chosen, "BLOCK_M") * _number(chosen, "BLOCK_N")
    return limit // 2 <= tile // (device.warp_size * _number(chosen, "num_warps")) <= limit - 40


def register_limit_binds(config: Config, problem: Problem, device: Device) -> str | None:
    limit = int(config.get("maxnreg", 0))
    if limit == 0 or _binds(limit, config, device):
        return None
    return f"maxnreg={limit} is for tiles whose accumulators take from half of it to all but 40"


def rows_of_skinny(product: Product) -> int:
    return next_power_of_2(product.M)
