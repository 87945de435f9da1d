"""Block-sparse attention in plain torch: what the kernel must compute, and torch's own attention in its place."""

from __future__ import annotations

import torch

from autotune.data import ITEMSIZE, Device, Problem
from autotune.kernel import Provider
from autotune.kernels._attention_backward_launch import row_contiguous
from autotune.kernels._attention_operator import lse_dtype
from autotune.kernels._block_mask import BlockMask
from autotune.kernels._block_mask_kept import kept
from autotune.kernels._block_sparse_attention_operator import check, check_values
from autotune.kernels._block_sparse_attention_problem import fullness, sizes

aten = torch.ops.aten

#: Scores held at a time.
_SCORES = 2**24

#: The most memory that a dense mask is worth, in bytes.
_MOST_BYTES = 2**31


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) in float64 if the arguments are, else out in their dtype and lse in float32."""
    check(q, k, v, mask, scale)
    check_values(mask)
    batch, heads, rows, head_dim = q.shape
    kv_heads, columns, value_dim = v.shape[1:]
    scale = max(1, head_dim) ** -0.5 if scale is None else scale
    wide = lse_dtype(q)
    out = q.new_zeros((batch, heads, rows, value_dim))
    lse = q.new_full((batch, heads, rows), float("-inf"), dtype=wide)
    if not out.numel() or not columns:
        return out, lse
    group = heads // kv_heads
    # Of a mask a batch too, all of which are held.
    step = max(1, min(rows, _SCORES // (max(heads, mask.batches * mask.heads) * columns)))
    for row in range(0, rows, step):
        some = slice(row, min(row + step, rows))
        seen = mask.dense(some.start, some.stop)
        for number in range(batch):
            queries = q[number, :, some].reshape(kv_heads, group, some.stop - row, head_dim)
            keys, values = k[number, :, None], v[number, :, None]
            hidden = ~seen[number % mask.batches].expand(heads, -1, -1).unflatten(0, (kv_heads, group))
            scores = (queries.to(wide) @ keys.to(wide).mT * scale).masked_fill(hidden, float("-inf"))
            lse[number, :, some] = scores.logsumexp(-1).flatten(0, 1)
            weights = scores.softmax(-1).masked_fill(hidden.all(-1, keepdim=True), 0.0)
            # Rounded before the second product, as torch's own kernels and everybody's do.
            result = (weights.to(q.dtype).to(wide) @ values.to(wide)).to(q.dtype)
            out[number, :, some] = result.flatten(0, 1)
    return out, lse


def sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) by torch's fused attention, with a dense mask that is made once and kept with the block mask."""
    check(q, k, v, mask, scale)
    _, heads, rows, head_dim = q.shape
    kv_heads, columns, value_dim = v.shape[1:]
    if not q.numel() or not columns:
        return reference(q, k, v, mask, scale)
    q, k, v = row_contiguous(q), row_contiguous(k), row_contiguous(v)
    if kv_heads < heads:
        k, v = (tensor.repeat_interleave(heads // kv_heads, 1) for tensor in (k, v))
    _, plain = fullness(mask)
    bias, blind = (None, None) if plain else dense_bias(q, mask)
    causal = plain and mask.is_causal
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )
    elif plain and q.dtype != torch.float32 and head_dim == value_dim:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
    else:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, causal, scale=scale)
    # The last may pad its rows.
    lse = lse[..., :rows]
    if blind is not None:
        out = out.masked_fill(blind[..., None], 0.0)
        lse = lse.masked_fill(blind, float("-inf"))
    return out.contiguous(), lse.contiguous()


def dense_bias(q: torch.Tensor, mask: BlockMask) -> tuple[torch.Tensor, torch.Tensor | None]:
    """((B, H, SQ, SK): 0 where a key is seen, else -inf; the rows that see none, if any do). Kept with the mask.

    Rows that see none have 0 throughout: a softmax over nothing is NaN, forward and backward, so they are computed
    and then set to what they must be.
    """
    bias, blind = kept(mask, f"bias {q.dtype}", lambda mask: _dense_bias(mask, q.dtype))
    return bias.expand(*q.shape[:3], -1), blind


def _dense_bias(mask: BlockMask, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    seen = mask.dense()
    blind = ~seen.any(-1)
    # Rows begin at multiples of 16 elements, as torch's kernels ask.
    room = torch.zeros((*seen.shape[:3], -(-seen.shape[3] // 16) * 16), dtype=dtype, device=seen.device)
    bias = room[..., : seen.shape[3]].masked_fill_(~(seen | blind[..., None]), float("-inf"))
    return bias, blind if bool(blind.any()) else None


def _no_sdpa(problem: Problem, device: Device) -> str | None:
    batch, heads, _, rows, columns, head_dim, value_dim = sizes(problem)
    itemsize = ITEMSIZE[str(problem["dtype"])]
    if device.arch == "interpreter":
        if head_dim != value_dim:
            return "torch's fused attention on a CPU takes values as wide as keys only"
    elif head_dim * itemsize % 16 or value_dim * itemsize % 16:
        return f"torch's fused attention takes head sizes that are multiples of {16 // itemsize}"
    elif not problem.get("aligned", True):
        return "torch's fused attention takes heads that begin at multiples of 16 bytes"
    # There may be one for each batch.
    need = batch * (heads if problem.get("per_head", False) else 1) * rows * columns * itemsize
    if not problem.get("plain", False) and need > _MOST_BYTES:
        return f"a dense mask of {need} B is over the {_MOST_BYTES} worth keeping"
    return None


def baseline(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float | None = None
) -> torch.Tensor:
    """What torch users run without a block mask: scaled_dot_product_attention with a dense boolean one."""
    (_, plain), gqa = fullness(mask), k.shape[1] != q.shape[1]
    seen = None if plain else kept(mask, "dense", BlockMask.dense)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, seen, is_causal=plain and mask.is_causal, scale=scale, enable_gqa=gqa
    )


PROVIDERS = {"sdpa": Provider(run=sdpa, unavailable=_no_sdpa)}
