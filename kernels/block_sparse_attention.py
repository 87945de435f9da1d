"""``block_sparse_attention``: softmax(scale * q k^T) v over the blocks of queries and keys that a mask lists.

Blocks that are not listed cost nothing, neither products nor memory traffic. Causal, sliding-window and document
rules hide parts of some blocks, and are worked out from positions. ``_block_mask.py`` has the masks and
``_block_sparse_attention_forward.py`` the loop over a row's blocks.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from autotune.arithmetic import cdiv
from autotune.data import ITEMSIZE, Config, Problem
from autotune.kernel import Kernel, Signature, Work
from autotune.kernels._attention_tiles import TOLERANCES, check_width, describable, effective, strides, widths
from autotune.kernels._block_mask import BlockMask
from autotune.kernels._block_mask_lists import grid_of
from autotune.kernels._block_sparse_attention_forward import attend_blocks
from autotune.kernels._block_sparse_attention_operator import OPERATOR, check, check_values
from autotune.kernels._block_sparse_attention_problem import (
    FIELDS,
    draw_heads,
    draw_mask,
    fullness,
    kept_blocks,
    rule,
    sizes,
    traits,
)
from autotune.kernels._block_sparse_attention_reference import PROVIDERS, baseline, reference
from autotune.kernels._launch import TRITON_NAMES, launch, must_widen, signature
from autotune.kernels._masks import score_factors
from autotune.kernels._tensors import aligned, dtype_name, heads_layout


def problem(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float | None = None
) -> Problem:
    """:raises ValueError: if shapes, head counts, dtypes or devices don't fit together, or the scale its rule."""
    check(q, k, v, mask, scale)
    batch, heads, rows, head_dim = q.shape
    return KERNEL.make(
        B=batch,
        H=heads,
        HKV=k.shape[1],
        SQ=rows,
        SK=k.shape[2],
        D=check_width("q", head_dim),
        dtype=dtype_name(q=q, k=k, v=v),
        layout=heads_layout(q, k, v),
        aligned=aligned(q, k, v),
        DV=0 if v.shape[3] == head_dim else check_width("v", v.shape[3]),
        **traits(mask),
    )


def key(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float | None = None) -> Hashable:
    return (
        q.shape,
        k.shape,
        v.shape,
        q.stride(),
        k.stride(),
        v.stride(),
        q.dtype,
        q.dtype is k.dtype is v.dtype,
        q.get_device(),
        (q.data_ptr() | k.data_ptr() | v.data_ptr()) & 15,
        fullness(mask),
        mask.q_documents is None,
        # Shape, block, batches, heads, rules.
        mask[4:],
    )


def inputs(problem: Problem, seed: int, device: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    return *draw_heads(problem, generator, device), draw_mask(problem, generator, device), None


def run(
    config: Config,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: BlockMask,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse): (B, H, SQ, DV) in the dtype of ``q`` and (B, H, SQ) in float32, contiguous."""
    check(q, k, v, mask, scale)
    check_values(mask)
    if must_widen(attend_blocks, q):
        out, lse = run(config, q.float(), k.float(), v.float(), mask, scale)
        return out.to(q.dtype), lse
    batch, heads, rows, head_dim = q.shape
    kv_heads, columns, value_dim = v.shape[1:]
    out = torch.empty((batch, heads, rows, value_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, rows), dtype=torch.float32, device=q.device)
    if out.numel():
        group, documents = heads // kv_heads, mask.q_documents is not None
        config = _effective(config, group, mask.heads > 1, describable(k, v))
        score_scale, _ = score_factors(scale, None, head_dim)
        launch(
            attend_blocks,
            _programs(batch, heads, group, mask.grid[0], mask.block[0], config),
            *(q, k, v, out, lse, *mask.by_row),
            # Without documents these are not read, and any pointer will do.
            *((mask.q_documents, mask.k_documents) if documents else mask.by_row[:2]),
            *(score_scale, mask.window, heads, group, rows, columns, head_dim, value_dim),
            *(mask.grid[0], mask.batches, mask.heads, *q.stride(), *k.stride(), *v.stride()),
            config=config,
            descriptors=bool(config["DESCRIPTOR"]),
            **_constants(mask.block, head_dim, value_dim, mask.is_causal, mask.window, documents),
        )
    return out, lse


def _effective(config: Config, group: int, per_head: bool, may_describe: bool) -> Config:
    """``config`` with its flags off where they can't be: heads share a tile only if they share the mask."""
    return effective(config, 1 if per_head else group, 0, may_describe)


def _programs(batch: int, heads: int, group: int, block_rows: int, block_q: int, config: Config) -> int:
    """A block row's tiles after one another, then block rows, then heads."""
    group = group if config["PACK_GQA"] else 1
    return batch * heads // group * block_rows * cdiv(block_q * group, config.integer("BLOCK_M"))


def _constants(
    block: tuple[int, int], head_dim: int, value_dim: int, causal: bool, window: int | bool, documents: bool
) -> dict[str, int | bool]:
    return {
        "BLOCK_Q": block[0],
        "BLOCK_KV": block[1],
        **widths(head_dim, value_dim),
        "CAUSAL": causal,
        "WINDOW": window > 0,
        "DOCUMENTS": documents,
    }


def work(problem: Problem) -> Work:
    """Of whole blocks, hidden pairs included: that is what the tensor cores do."""
    batch, heads, kv_heads, rows, columns, head_dim, value_dim = sizes(problem)
    width, itemsize = head_dim + value_dim, ITEMSIZE[str(problem["dtype"])]
    pairs = kept_blocks(problem) * problem.integer("BLOCK_Q") * problem.integer("BLOCK_KV")
    moved = batch * width * (heads * rows + kv_heads * columns) * itemsize
    return Work(flops=2 * batch * heads * pairs * width, bytes=moved + 4 * batch * heads * rows)


def compile_signature(problem: Problem, config: Config) -> Signature:
    batch, heads, kv_heads, rows, columns, head_dim, value_dim = sizes(problem)
    group, per_head = heads // kv_heads, bool(problem.get("per_head", False))
    causal, documents = (bool(problem.get(name, False)) for name in ("causal", "documents"))
    block = problem.integer("BLOCK_Q"), problem.integer("BLOCK_KV")
    block_rows, window = grid_of((rows, columns), block)[0], bool(problem.get("window", False))
    config = _effective(config, group, per_head, True)
    integers = {
        # Some window; its value is looked at when it is 1 or a multiple of 16.
        **{"window": 1023 if window else 0, "H": heads, "GROUP": group, "SQ": rows, "SK": columns},
        **{"D": head_dim, "DV": value_dim, "ROWS": block_rows, "BATCHES": 1, "HEADS": heads if per_head else 1},
        **strides("q", "bhmd", (batch, heads, rows, head_dim), problem),
        **strides("k", "bhnd", (batch, kv_heads, columns, head_dim), problem),
        **strides("v", "bhnd", (batch, kv_heads, columns, value_dim), problem),
    }
    lists = "offsets", "partial", "blocks", "longest_first", "q_documents", "k_documents"
    return signature(
        attend_blocks,
        _programs(batch, heads, group, block_rows, block[0], config),
        pointers={
            **dict.fromkeys(("q", "k", "v", "out"), TRITON_NAMES[str(problem["dtype"])]),
            "lse": "fp32",
            **dict.fromkeys(lists, "i32"),
        },
        misaligned=() if problem.get("aligned", True) else ("q", "k", "v"),
        integers=integers,
        floats=("score_scale",),
        constexprs=_constants(block, head_dim, value_dim, causal, window, documents),
        config=config,
    )


KERNEL = Kernel(
    fields=FIELDS,
    problem=problem,
    key=key,
    inputs=inputs,
    run=run,
    reference=reference,
    baseline=baseline,
    work=work,
    problems=(
        "B=1,H=2,HKV=1,SQ=128,SK=128,D=64,BLOCK_Q=32,BLOCK_KV=64,density=75,dtype=float16,causal=true,plain=true",
        "B=1,H=2,HKV=1,SQ=50,SK=90,D=40,BLOCK_Q=32,BLOCK_KV=16,density=35,dtype=bfloat16,layout=bshd,DV=24",
        "B=1,H=2,HKV=2,SQ=64,SK=64,D=16,BLOCK_Q=32,BLOCK_KV=16,density=75,dtype=float32,window=true,per_head=true",
        "B=1,H=2,HKV=1,SQ=80,SK=80,D=32,BLOCK_Q=32,BLOCK_KV=32,density=35,dtype=float16,causal=true,documents=true",
        "B=1,H=1,HKV=1,SQ=64,SK=96,D=64,BLOCK_Q=32,BLOCK_KV=32,density=100,dtype=float16,plain=true",
    ),
    tolerances=TOLERANCES,
    signature=compile_signature,
    providers=PROVIDERS,
    flips="density",
    rule=rule,
    operator=OPERATOR,
)
