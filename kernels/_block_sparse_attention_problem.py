"""Problems of block-sparse attention, forward and backward: what of a mask they name, and masks drawn to be so."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from autotune.arithmetic import cdiv
from autotune.data import Problem
from autotune.kernel import Field
from autotune.kernels._attention_tiles import MAX_HEAD_DIM, whole_groups
from autotune.kernels._block_mask import BLOCKS, BlockMask
from autotune.kernels._block_mask_lists import BlockLists, decoded, grid_of, listed
from autotune.kernels._density import DENSITIES, density_step
from autotune.kernels._tensors import random, relaid

_SIZES = ("B", "H", "HKV", "SQ", "SK", "D")

FIELDS = (
    # Queries and keys may be empty; heads and head_dim may not.
    *(Field(name, "size", minimum=0 if name in ("B", "SQ", "SK") else 1) for name in _SIZES[:-1]),
    Field("D", "size", minimum=1, maximum=MAX_HEAD_DIM),
    # Traits, not sizes: a config tuned for blocks of 32 says nothing about blocks of 128.
    Field("BLOCK_Q", "choice", choices=BLOCKS),
    Field("BLOCK_KV", "choice", choices=BLOCKS),
    Field("density", "size", choices=DENSITIES),
    Field("dtype", "dtype"),
    # The rules that hide a part of some blocks.
    Field("causal", "flag", default=False),
    Field("window", "flag", default=False),
    Field("documents", "flag", default=False),
    # All blocks that the causal rule leaves, or without a rule all there are: torch's attention needs no mask then.
    Field("plain", "flag", default=False),
    # A mask for each query head.
    Field("per_head", "flag", default=False),
    Field("layout", "choice", "bhsd", choices=("bhsd", "bshd", "s")),
    Field("aligned", "flag", default=True),
    # As D, and none.
    Field("DV", "size", default=0, maximum=MAX_HEAD_DIM),
)


def sizes(problem: Problem) -> tuple[int, ...]:
    """B, H, HKV, SQ, SK, D, DV."""
    return *(problem.integer(name) for name in _SIZES), problem.integer("DV", 0) or problem.integer("D")


def fullness(mask: BlockMask) -> tuple[int, bool]:
    """
    (density, plain), the fields that the number of listed blocks decides. Host-static.

    In place of that number in keys: it is another with each batch of documents, and so would each key be.
    """
    return _fullness(mask.by_row.blocks.numel(), mask.q_documents is not None, mask[4:])


@lru_cache(2**12)
def _fullness(blocks: int, documents: bool, rest: tuple[Any, ...]) -> tuple[int, bool]:
    """:param rest: of a mask all after its documents"""
    shape, block, batches, heads, causal, window = rest
    rows, columns = grid_of(shape, block)
    density = density_step(blocks, batches * heads * rows * columns)
    # All of the causal rule, on equally many queries and keys; or without a rule all blocks.
    may_be = not window and not documents and (not causal or shape[0] == shape[1])
    return density, may_be and blocks == _most(shape, block, causal) * batches * heads


def traits(mask: BlockMask) -> dict[str, int | bool]:
    """The fields of a problem that a mask decides."""
    density, plain = fullness(mask)
    return {
        "BLOCK_Q": mask.block[0],
        "BLOCK_KV": mask.block[1],
        "density": density,
        "causal": mask.is_causal,
        "window": mask.window > 0,
        "documents": mask.q_documents is not None,
        "plain": plain,
        "per_head": mask.heads > 1,
    }


def rule(problem: Problem) -> str | None:
    causal, plain = bool(problem.get("causal", False)), bool(problem.get("plain", False))
    if plain and (_hides_more(problem) or (causal and problem["SQ"] != problem["SK"])):
        return "plain=true is for no rule, or for causal alone with SQ equal to SK"
    shape, block, (rows, columns) = _shape(problem)
    whole = density_step(_most(shape, block, causal), rows * columns)
    if problem.integer("density") > whole or (plain and problem["density"] != whole):
        return f"density={problem['density']} does not fit: of all blocks the rules leave {whole} percent"
    return whole_groups(problem)


def _hides_more(problem: Problem) -> bool:
    return bool(problem.get("window", False) or problem.get("documents", False))


def _planes(problem: Problem) -> int:
    return problem.integer("H") if problem.get("per_head", False) else 1


def kept_blocks(problem: Problem) -> int:
    """Blocks that a mask of :func:`draw_mask` lists for each head, on average and rounded down."""
    return _all_blocks(problem) // _planes(problem)


def _all_blocks(problem: Problem) -> int:
    shape, block, (rows, columns) = _shape(problem)
    causal, count = bool(problem.get("causal", False)), _planes(problem)
    most, total = count * _most(shape, block, causal), count * rows * columns
    if problem.get("plain", False):
        return most
    if not _hides_more(problem) and (not causal or shape[0] == shape[1]):
        # One more would be a plain mask.
        most = max(0, most - 1)
    named = problem.integer("density")
    below = total * named // 100
    near = sorted((min(most, below), min(most, below + 1)), key=lambda blocks: abs(blocks - total * named / 100))
    return next((blocks for blocks in near if density_step(blocks, total) == named), near[0])


def _shape(problem: Problem) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(elements, elements of a block, blocks) of a plane."""
    shape = problem.integer("SQ"), problem.integer("SK")
    block = problem.integer("BLOCK_Q"), problem.integer("BLOCK_KV")
    return shape, block, grid_of(shape, block)


def _most(shape: tuple[int, int], block: tuple[int, int], causal: bool) -> int:
    """Blocks of a plane that hold a pair which may see each other."""
    rows, columns = grid_of(shape, block)
    if not causal:
        return rows * columns
    return sum(min(columns, cdiv(min((row + 1) * block[0], shape[0]), block[1])) for row in range(rows))


def draw_mask(problem: Problem, generator: torch.Generator, device: str) -> BlockMask:
    """A mask of the problem's traits: the tightest of its kind with blocks enough, of which a few are left out."""
    _, _, grid = _shape(problem)
    heads, blocks = _planes(problem), _all_blocks(problem)
    mask = _tightest(problem, -(-blocks // heads), generator)
    row, column, whole = (of.repeat(heads) for of in decoded(mask.by_row))
    row += torch.arange(heads).repeat_interleave(len(row) // heads) * grid[0]
    keep = torch.randperm(len(row), generator=generator)[:blocks].sort().values
    lists = listed(row[keep], column[keep], whole[keep], heads, grid)
    by_row, by_column = (BlockLists(*(part.to(device) for part in one)) for one in lists)
    documents = [None if ids is None else ids.to(device) for ids in (mask.q_documents, mask.k_documents)]
    return mask._replace(
        by_row=by_row, by_column=by_column, q_documents=documents[0], k_documents=documents[1], heads=heads
    )


def _tightest(problem: Problem, blocks: int, generator: torch.Generator) -> BlockMask:
    """With the most documents, then the narrowest window, that leave ``blocks`` blocks; on the CPU."""
    shape, block, grid = _shape(problem)
    causal, longest = bool(problem.get("causal", False)), max(*shape, 1)
    cuts = torch.rand(longest, generator=generator)

    def made(documents: int, window: int | None) -> BlockMask:
        if documents:
            # The same cuts, in proportion, of queries and of keys.
            some = cuts[: documents - 1].sort().values
            ids = [torch.searchsorted(some, torch.arange(size) / max(1, size), right=True) for size in shape]
            return BlockMask.document(ids[0], block, k_document_ids=ids[1], causal=causal, window=window)
        if window:
            return BlockMask.sliding_window(*shape, window, block, causal=causal)
        return BlockMask.from_blocks(torch.ones(grid, dtype=torch.bool), *shape, block, causal=causal)

    def enough(documents: int, window: int | None) -> bool:
        return made(documents, window).by_row.blocks.numel() >= blocks

    documents, window = int(bool(problem.get("documents", False))), None
    while documents and 2 * documents <= longest and enough(2 * documents, window):
        documents *= 2
    if problem.get("window", False):
        low, window = 0, longest
        while window - low > 1:
            middle = (low + window) // 2
            low, window = (low, middle) if enough(documents, middle) else (middle, window)
    return made(documents, window)


def draw_heads(problem: Problem, generator: torch.Generator, device: str) -> tuple[torch.Tensor, ...]:
    """Random q, k and v in the problem's layout."""
    batch, heads, kv_heads, rows, columns, head_dim, value_dim = sizes(problem)
    layout, off = problem.get("layout", "bhsd"), not problem.get("aligned", True)

    def one(heads: int, length: int, width: int) -> torch.Tensor:
        drawn = random(batch, heads, length, width, dtype=str(problem["dtype"]), device=device, generator=generator)
        if layout == "bshd":
            return relaid(drawn.transpose(1, 2), "n", off).transpose(1, 2)
        return relaid(drawn, "s" if layout == "s" else "n", off)

    return one(heads, rows, head_dim), one(kv_heads, columns, head_dim), one(kv_heads, columns, value_dim)
