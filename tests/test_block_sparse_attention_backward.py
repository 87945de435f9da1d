"""The gradients of block-sparse attention against autograd's, of a dense masked softmax in float64."""

import pytest
import torch

from autotune import ops, registry
from autotune.data import Config
from autotune.kernels._block_mask import BlockMask
from autotune.kernels._block_sparse_attention_operator import flat
from tests.traffic import recorded

KERNEL = registry.load("block_sparse_attention_backward").kernel
NAMES = ("dq", "dk", "dv")


def tiles(m1, n1, m2, n2, longest_first=True):
    return Config(
        BLOCK_M1=m1, BLOCK_N1=n1, BLOCK_M2=m2, BLOCK_N2=n2, LONGEST_FIRST=longest_first, num_warps=4, num_stages=2
    )


def drawn(mask, heads=2, kv_heads=1, batch=1, head_dim=16, value_dim=16):
    """q, k, v and the gradients of out and lse."""
    rows, columns = mask.shape
    generator = torch.Generator().manual_seed(5)
    sizes = (heads, rows, head_dim), (kv_heads, columns, head_dim), (kv_heads, columns, value_dim)
    *heads_of, d_out = (
        torch.randn(batch, *size, generator=generator) for size in (*sizes, (heads, rows, value_dim))
    )
    return *heads_of, d_out, torch.randn(batch, heads, rows, generator=generator)


def dense(q, k, v, mask, scale=None):
    """(out, lse) in float64 over the whole score matrix; differentiable."""
    keys, values = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    seen = mask.dense().expand(*q.shape[:3], k.shape[2])
    blind = ~seen.any(-1, keepdim=True)
    scores = q @ keys.mT * (q.shape[3] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~seen & ~blind, float("-inf"))
    out = scores.softmax(-1).masked_fill(blind, 0.0) @ values
    return out, scores.logsumexp(-1), blind[..., 0]


def truth(q, k, v, d_out, d_lse, mask, scale=None):
    """(the gradients in float64, out and lse as the forward pass leaves them)."""
    q, k, v = (t.double().requires_grad_() for t in (q, k, v))
    out, lse, blind = dense(q, k, v, mask, scale)
    total = (out * d_out.double()).sum()
    if d_lse is not None:
        total = total + (lse.masked_fill(blind, 0.0) * d_lse.double()).sum()
    gradients = torch.autograd.grad(total, (q, k, v))
    return gradients, out.detach().float(), lse.detach().masked_fill(blind, float("-inf")).float()


def assert_near(results, expected, tolerance=2e-5):
    for name, result, right in zip(NAMES, results, expected, strict=True):
        assert result.is_contiguous() and result.shape == right.shape
        scale = max(1.0, right.abs().max().item())
        assert (result.double() - right).abs().max().item() <= tolerance * scale, name


def random_blocks(*grid):
    return torch.rand(grid, generator=torch.Generator().manual_seed(3)) < 0.4


def documents():
    ids = torch.repeat_interleave(torch.tensor([0, 1, 4]), torch.tensor([30, 47, 20]))
    return BlockMask.document(torch.stack([ids, ids.sort().values // 2]), 32, causal=True)


# Masks that leave rows, and columns, without any block; the last blocks of most reach past the end.
CASES = {
    "causal": (lambda: BlockMask.causal(97, 97, 64), {}),
    "causal, more queries": (lambda: BlockMask.causal(130, 50, (64, 32)), {"heads": 1}),
    "window": (lambda: BlockMask.sliding_window(150, 70, 21, (32, 64), causal=False), {"heads": 1}),
    "documents": (documents, {"batch": 2}),
    "a mask a head and batch": (
        lambda: BlockMask.from_blocks(random_blocks(2, 2, 3, 2), 150, 100, 64),
        {"batch": 2},
    ),
    "random and causal": (lambda: BlockMask.from_blocks(random_blocks(4, 4), 128, 120, 32, causal=True), {}),
    "full, narrow values": (
        lambda: BlockMask.from_blocks(torch.ones(2, 2, dtype=torch.bool), 64, 96, (32, 64)),
        {"head_dim": 40, "value_dim": 17},
    ),
    "nothing": (lambda: BlockMask.from_blocks(torch.zeros(2, 2, dtype=torch.bool), 50, 60, 32), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_autograds(case):
    make, sizes = CASES[case]
    mask = make()
    q, k, v, d_out, _ = drawn(mask, **sizes)
    expected, _, _ = truth(q, k, v, d_out, None, mask)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    assert_near(torch.autograd.grad(ops.block_sparse_attention(*leaves, mask), leaves, d_out), expected)


@pytest.mark.parametrize("case", ["causal", "documents", "a mask a head and batch"])
def test_every_road_agrees(case):
    """Tiles that lie within blocks, the reference, and torch's attention; with a gradient of lse where it goes."""
    make, sizes = CASES[case]
    mask = make()
    q, k, v, d_out, d_lse = drawn(mask, **sizes)
    expected, out, lse = truth(q, k, v, d_out, d_lse, mask, scale=-0.3)
    args = d_out, d_lse, q, k, v, out, lse, mask, -0.3
    assert_near(KERNEL.run(tiles(32, 16, 32, 32, longest_first=False), *args), expected)
    assert_near(KERNEL.reference(*args), expected)
    wide = [t.double() for t in args[:7]]
    assert_near(KERNEL.reference(*wide, *args[7:]), truth(*wide[2:5], *wide[:2], mask, -0.3)[0], 1e-13)
    expected, out, lse = truth(q, k, v, d_out, None, mask)
    assert_near(KERNEL.providers["sdpa"].run(d_out, None, q, k, v, out, lse, mask), expected)


def test_only_listed_blocks_are_loaded():
    blocks = random_blocks(5, 3)
    mask = BlockMask.from_blocks(blocks, 160, 192, (32, 64))
    q, k, v, d_out, _ = drawn(mask, heads=1)
    _, out, lse = truth(q, k, v, d_out, None, mask)
    with recorded() as traffic:
        KERNEL.run(tiles(32, 64, 32, 64, longest_first=False), d_out, None, q, k, v, out, lse, mask)
    listed = {tuple(block) for block in blocks.nonzero().tolist()}
    # After the one program of the deltas come those of 3 block columns, then those of 5 block rows.
    columns, rows = range(1, 4), range(4, 9)
    for tensor in (q, d_out):
        loads = traffic.programs(tensor.view(5, -1))
        assert {(row, program - 1) for program in columns for row in loads.get(program, ())} == listed
        assert [list(loads[program]) for program in rows] == [[row] for row in range(5)]
    for tensor in (k, v):
        loads = traffic.programs(tensor.view(3, -1))
        assert {(program - 4, column) for program in rows for column in loads.get(program, ())} == listed
        assert [list(loads[program]) for program in columns] == [[column] for column in range(3)]


def test_nan_goes_no_further_than_the_lists_take_it():
    blocks = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0]], dtype=torch.bool)
    mask = BlockMask.from_blocks(blocks, 96, 96, 32)
    q, k, v, d_out, _ = drawn(mask, heads=1)
    _, out, lse = truth(q, k, v, d_out, None, mask)
    k[0, 0, 70], d_out[0, 0, 40] = float("nan"), float("nan")
    dq, dk, dv = KERNEL.run(tiles(32, 32, 32, 32), d_out, None, q, k, v, out, lse, mask)
    rows = dq.isnan().view(3, 32, -1).all(2)
    # Block row 0 lists the last block column; block row 1 has the row whose own gradient is NaN.
    assert rows[0].all() and rows[1].nonzero().tolist() == [[8]] and not rows[2].any()
    # Block column 1 lists block row 1; block column 2 has the key.
    for gradient in (dk, dv):
        nan = gradient.isnan().view(3, 32, -1)
        assert not nan[0].any() and nan[1].all()
    assert dk.isnan().view(3, 32, -1).any(2)[2].nonzero().tolist() == [[6]]


def test_offsets_are_64_bit():
    huge = 2**30 + 64  # twice this is over 2**31, which its product in 32 bits can't hold
    storage = torch.empty(2 * huge + 48, dtype=torch.float16)
    mask = BlockMask.causal(3, 3, 16)
    q, k, v, d_out, _ = (t.half() for t in drawn(mask, heads=1))
    _, out, lse = truth(q, k, v, d_out, None, mask)
    near = KERNEL.run(tiles(16, 16, 16, 16), d_out, None, q, k, v, out.half(), lse, mask)
    far = [storage[16 * n :].as_strided((1, 1, 3, 16), (0, 0, huge, 1)).copy_(t) for n, t in enumerate((q, k, v))]
    for one, other in zip(
        KERNEL.run(tiles(16, 16, 16, 16), d_out, None, *far, out.half(), lse, mask), near, strict=True
    ):
        assert torch.equal(one, other)


def arguments():
    mask = BlockMask.causal(40, 40, 32)
    q, k, v, d_out, _ = drawn(mask)
    _, out, lse = truth(q, k, v, d_out, None, mask)
    return [d_out, None, q, k, v, out, lse, mask]


BAD = [
    (0, lambda d_out: d_out[:, :, 1:], "d_out has shape"),
    (5, lambda out: out.half(), "out is torch.float16"),
    (6, lambda lse: lse[None], "lse has shape"),
    (7, lambda mask: BlockMask.causal(40, 50, 32), "mask is for"),
    (7, lambda mask: mask._replace(by_column=mask.by_row), "mask.by_column"),
]


@pytest.mark.parametrize(("place", "change", "message"), BAD)
def test_bad_arguments_are_named(place, change, message):
    args = arguments()
    args[place] = change(args[place])
    with pytest.raises(ValueError, match=message):
        ops.block_sparse_attention_backward(*args)


def test_the_operator_traces_and_has_no_gradient_of_its_own():
    *tensors, mask = arguments()
    torch.library.opcheck(
        torch.ops.autotune.block_sparse_attention_backward.default, (*tensors, *flat(mask), None, False)
    )
    tensors[0].requires_grad_()
    dq, _, _ = ops.block_sparse_attention_backward(*tensors, mask)
    with pytest.raises(RuntimeError, match="has no gradient"):
        dq.sum().backward()


def test_work_is_that_of_the_blocks_listed():
    text = "B=1,H=2,HKV=1,SQ=2048,SK=2048,D=64,BLOCK_Q=64,BLOCK_KV=64,density={},dtype=float16"
    some, more = (KERNEL.work(KERNEL.parse(text.format(density))).flops for density in (5, 50))
    assert more / some == pytest.approx(10, rel=0.01)
