"""``block_sparse_attention`` against dense masked attention in float64: masks, traffic, what it must refuse."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import device, ops, registry
from autotune.data import Config
from autotune.kernels._block_mask import BlockMask
from autotune.kernels._block_sparse_attention_operator import flat
from tests.traffic import recorded

LOADED = registry.load("block_sparse_attention")
KERNEL, SPACE = LOADED.kernel, LOADED.space
CONFIG = Config(
    **{"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    **{"PACK_GQA": False, "LONGEST_FIRST": True, "DESCRIPTOR": False},
)
INF, NAN = float("inf"), float("nan")


def heads(SQ, SK, *, batch=1, H=2, HKV=2, D=16, DV=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, H, SQ, D), (batch, HKV, SK, D), (batch, HKV, SK, DV or D)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def exact(q, k, v, mask, scale=None):
    """(out, lse): dense masked attention in float64; a query that sees no key gives 0 and -inf."""
    batch, H = q.shape[:2]
    k, v = (tensor.double().repeat_interleave(H // tensor.shape[1], 1) for tensor in (k, v))
    seen = mask.dense().expand(batch, H, -1, -1)
    scores = q.double() @ k.mT * (q.shape[3] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~seen, -INF)
    return scores.softmax(-1).masked_fill(~seen, 0.0) @ v, scores.logsumexp(-1)


def assert_right(config, *args, rtol=1e-4):
    out, lse = KERNEL.run(config, *args)
    expected, expected_lse = exact(*args)
    assert out.dtype == args[0].dtype and out.is_contiguous() and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=rtol)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=rtol, atol=rtol)
    return out, lse


def random_blocks(*shape, share=0.4, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_shape_and_mask(data):
    draw = data.draw
    SQ, SK, seed = draw(st.integers(0, 70)), draw(st.integers(0, 70)), draw(st.integers(0, 99))
    block = draw(st.sampled_from([32, 64])), draw(st.sampled_from([16, 64]))
    batch, HKV, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 3]))
    kind = draw(st.sampled_from(["blocks", "window", "documents"]))
    window, causal = draw(st.sampled_from([None, 1, 40])), draw(st.booleans())
    if kind == "blocks":
        leading = draw(st.sampled_from([(), (HKV * group,), (batch, 1), (batch, HKV * group)]))
        matrix = random_blocks(*leading, -(-SQ // block[0]), -(-SK // block[1]), seed=seed)
        mask = BlockMask.from_blocks(matrix, SQ, SK, block, causal=causal, window=window)
    elif kind == "window":
        mask = BlockMask.sliding_window(SQ, SK, window or 7, block, causal=causal)
    else:
        ids = [torch.randint(0, 4, (batch, size)).sort(1).values for size in (SQ, SK)]
        mask = BlockMask.document(ids[0], block, k_document_ids=ids[1], causal=causal, window=window)
    sizes = {"D": draw(st.sampled_from([1, 16, 24])), "DV": draw(st.sampled_from([5, 32]))}
    config = Config(
        BLOCK_M=draw(st.sampled_from([16, 64])),
        BLOCK_N=draw(st.sampled_from([16, block[1]])),
        **{name: draw(st.booleans()) for name in ("PACK_GQA", "LONGEST_FIRST", "DESCRIPTOR")},
        **{"num_warps": 4, "num_stages": 2},
    )
    q, k, v = heads(SQ, SK, batch=batch, H=HKV * group, HKV=HKV, seed=seed, **sizes)
    assert_right(config, q, k, v, mask)
    torch.testing.assert_close(
        KERNEL.reference(q, k, v, mask)[0].double(), exact(q, k, v, mask)[0], rtol=1e-4, atol=1e-4
    )


def test_rows_without_a_block_give_zero_and_an_empty_mask_does_everywhere():
    q, k, v = heads(96, 64)
    matrix = torch.tensor([[True, False], [False, False], [True, True]])
    mask = BlockMask.from_blocks(matrix, 96, 64, 32)
    out, lse = assert_right(CONFIG, q, k, v, mask)
    assert not out[:, :, 32:64].any() and (lse[:, :, 32:64] == -INF).all()
    out, lse = KERNEL.run(CONFIG, q, k, v, BlockMask.from_blocks(torch.zeros_like(matrix), 96, 64, 32))
    assert not out.any() and (lse == -INF).all()


def test_one_full_row_among_empty_ones():
    matrix = torch.zeros(4, 4, dtype=torch.bool)
    matrix[2] = True
    assert_right(CONFIG, *heads(128, 128), BlockMask.from_blocks(matrix, 128, 128, 32))


@pytest.mark.parametrize("causal", [False, True])
def test_a_full_mask_is_dense_attention_to_the_last_bit(causal):
    """The same steps over the same keys, in the same order."""
    q, k, v = heads(96, 96)
    full = BlockMask.from_blocks(torch.ones(3, 3, dtype=torch.bool), 96, 96, 32, causal=causal)
    dense = registry.load("attention").kernel
    config = Config({name: value for name, value in CONFIG.items() if name != "LONGEST_FIRST"})
    for ours, theirs in zip(KERNEL.run(CONFIG, q, k, v, full), dense.run(config, q, k, v, causal), strict=True):
        assert torch.equal(ours, theirs)


def test_the_order_of_rows_changes_no_bit_and_packing_only_roundings():
    mask = BlockMask.from_blocks(random_blocks(4, 2, seed=3), 60, 64, (16, 32), causal=True)
    args = (*heads(60, 64, H=6), mask)
    stored = KERNEL.run(Config({**CONFIG, "BLOCK_M": 16, "LONGEST_FIRST": False}), *args)
    longest = KERNEL.run(Config({**CONFIG, "BLOCK_M": 16}), *args)
    assert all(map(torch.equal, stored, longest))
    # 3 heads of 16 queries are 48 rows: one tile of 64, or 3 of 16 that mix heads.
    for rows in (16, 64):
        assert_right(Config({**CONFIG, "BLOCK_M": rows, "PACK_GQA": True}), *args)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    mask = BlockMask.sliding_window(80, 80, 33, (32, 64))
    q, k, v = heads(80, 80, H=4, D=40, dtype=dtype)
    out, _ = KERNEL.run(CONFIG, q, k, v, mask)
    torch.testing.assert_close(out.double(), exact(q, k, v, mask)[0], rtol=2e-2, atol=1e-2)


def test_every_listed_block_is_read_once_a_tile_and_no_other():
    """Keys and values that are not listed for a head are not touched, by address; by tiles past the end none."""
    SQ, SK, D, high, wide = 100, 160, 16, 64, 32
    matrix = random_blocks(2, 2, SK // wide, seed=1)
    mask = BlockMask.from_blocks(matrix, SQ, SK, (high, wide), causal=True)
    kept = torch.stack([mask.dense()[0, :, start : start + high].any(1) for start in (0, high)], 1)
    kept = kept.unflatten(-1, (-1, wide)).any(-1)
    assert kept.any() and not kept.all()
    q, k, v = heads(SQ, SK, D=D)
    # Of the last 36 queries one tile of 64, or three of 16.
    for rows, keys, tiles in ((64, 32, (1, 1)), (16, 16, (4, 3))):
        with recorded() as traffic:
            KERNEL.run(Config({**CONFIG, "BLOCK_M": rows, "BLOCK_N": keys}), q, k, v, mask)
        expected = (kept * torch.tensor(tiles)[:, None]).sum(1).repeat_interleave(wide, 1)
        for tensor in (k, v):
            assert torch.equal(traffic.loads(tensor)[0], expected[:, :, None].expand(-1, -1, D))


def test_steps_of_many_blocks_are_counted_in_32_bits(monkeypatch):
    """A row whose blocks are listed from place 2**29 on: at 8 steps each its first is step 2**32."""
    mask = BlockMask.from_blocks(torch.ones(1, 2, dtype=torch.bool), 128, 256, 128)
    args, config = heads(128, 256, H=1, HKV=1), Config({**CONFIG, "BLOCK_N": 16})
    expected, _ = KERNEL.run(config, *args, mask)
    blocks = torch.empty(2**29 + 2, dtype=torch.int32)
    blocks[-2:] = mask.by_row.blocks
    offsets, partial = (places + 2**29 for places in (mask.by_row.offsets, mask.by_row.partial))
    far = mask.by_row._replace(offsets=offsets, partial=partial, blocks=blocks)
    for check in ("check", "check_values"):
        monkeypatch.setattr(f"autotune.kernels.block_sparse_attention.{check}", lambda *args: None)
    assert torch.equal(KERNEL.run(config, *args, mask._replace(by_row=far))[0], expected)


def test_what_is_not_finite_stays_with_those_who_see_its_block():
    q, k, v = heads(96, 96)
    matrix = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    mask = BlockMask.from_blocks(matrix, 96, 96, 32)
    clean, _ = KERNEL.run(CONFIG, q, k, v, mask)
    k[0, 0, 40, 3], v[0, 1, 70, 2] = NAN, INF
    out, _ = KERNEL.run(CONFIG, q, k, v, mask)
    bad = torch.zeros(1, 2, 96, dtype=torch.bool)
    bad[0, 0, 32:64] = bad[0, 1, 64:] = True
    assert torch.equal(~out.isfinite().all(-1), bad)
    assert torch.equal(out[~bad], clean[~bad])


def far_apart(near, dimension, stride):
    strides = [stride if place == dimension else old for place, old in enumerate(near.stride())]
    storage = torch.empty(2 * stride + near.numel(), dtype=near.dtype)
    return storage.as_strided(near.shape, strides).copy_(near)


def test_offsets_are_64_bit():
    """Heads, and rows, of keys twice 2**30 elements away: a stride fits 32 bits, and its double does not."""
    far = 2**30 + 64
    for dimension in (1, 2):
        q, *near = heads(3, 3, H=3, HKV=3, dtype=torch.float16)
        k, v = (far_apart(tensor, dimension, far) for tensor in near)
        assert_right(CONFIG, q, k, v, BlockMask.causal(3, 3, 32), rtol=2e-3)


def test_causal_and_matrices_of_blocks_are_turned_into_masks_once(monkeypatch):
    made = []
    and_causal = BlockMask.and_causal
    monkeypatch.setattr(BlockMask, "and_causal", lambda mask: made.append(mask) or and_causal(mask))
    q, k, v = heads(64, 96)
    matrix = random_blocks(2, 3, share=0.7)
    mask = BlockMask.from_blocks(matrix, 64, 96, 32)
    for given_mask in (mask, matrix, mask, matrix):
        out = ops.block_sparse_attention(q, k, v, given_mask, causal=True, scale=0.3)
        expected, _ = exact(q, k, v, and_causal(mask), 0.3)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    assert len(made) == 2


def test_gradients_with_the_causal_half_of_a_mask():
    mask = BlockMask.from_blocks(random_blocks(3, 4, seed=2), 70, 120, 32)
    tensors = [tensor.requires_grad_() for tensor in heads(70, 120, H=4, DV=24)]
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    upstream = torch.randn(1, 4, 70, 24)
    found = torch.autograd.grad(ops.block_sparse_attention(*tensors, mask, causal=True), tensors, upstream)
    expected = exact(*doubles, mask.and_causal())[0]
    # Softmax over nothing is NaN, forward and backward; no such row is in this mask.
    for ours, right in zip(found, torch.autograd.grad(expected, doubles, upstream.double()), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-3, atol=1e-4)


def test_what_was_made_in_inference_mode_trains():
    q, k, v = heads(64, 64)
    with torch.inference_mode():
        mask = BlockMask.document(torch.arange(64) // 40, 32)
        outs = [ops.block_sparse_attention(q, k, v, mask, causal=True)]
        outs += [KERNEL.providers["sdpa"].run(q, k, v, mask.and_causal())[0]]
    q.requires_grad_()
    trained = ops.block_sparse_attention(q, k, v, mask, causal=True)
    for out in outs:
        torch.testing.assert_close(out, trained, rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(trained.sum(), q)[0].any()


def test_it_traces_whole_under_compile():
    def step(q, k, v, mask):
        return ops.block_sparse_attention(q, k, v, mask, causal=True) * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    mask, tensors = BlockMask.document(torch.arange(80) // 30, 32), heads(80, 80)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    outs = [function(*leaves, mask) for function in (step, compiled)]
    assert torch.equal(*outs)
    assert all(map(torch.equal, *(torch.autograd.grad(out.sum(), leaves) for out in outs)))
    window = BlockMask.sliding_window(80, 80, 40, 16)
    assert torch.equal(compiled(*tensors, window), step(*tensors, window))
    with pytest.raises(Exception, match=r"BlockMask.from_blocks"):
        compiled(*tensors, torch.ones(5, 5, dtype=torch.bool))


def test_masks_with_more_and_less_blocks_of_one_density_have_one_key():
    """Each batch of documents lists another number of them, and what is known of keys is kept for good."""
    q, k, v = heads(2048, 2048, H=1, HKV=1)
    ids = torch.arange(2048)
    masks = [BlockMask.document(ids // length, 16) for length in (1024, 1000, 64)]
    assert len({mask.by_row.blocks.numel() for mask in masks}) == 3
    near, same, far = (KERNEL.key(q, k, v, mask) for mask in masks)
    assert near == same != far
    assert KERNEL.problem(q, k, v, masks[0]) == KERNEL.problem(q, k, v, masks[1])


def arguments(q, k, v, mask, scale=None, causal=False):
    return q, k, v, *flat(mask), scale, causal


SAMPLES = {
    "documents, grouped": lambda: arguments(
        *(tensor.requires_grad_() for tensor in heads(40, 40, H=4)),
        *(BlockMask.document(torch.arange(40) // 25, 32), 0.2, True),
    ),
    # Torch computes it.
    "float64": lambda: arguments(*heads(40, 33, dtype=torch.float64), BlockMask.sliding_window(40, 33, 9, 16)),
    "no query": lambda: arguments(*heads(0, 16), BlockMask.causal(0, 16, 16)),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_operator_passes_opcheck(name):
    operator = torch.ops.autotune.block_sparse_attention.default
    assert set(torch.library.opcheck(operator, SAMPLES[name]()).values()) == {"SUCCESS"}


@pytest.mark.parametrize("text", KERNEL.problems)
def test_torchs_attention_gives_the_same(text):
    problem = KERNEL.parse(text)
    args = KERNEL.inputs(problem, 5, "cpu")
    expected, expected_lse = exact(*args)
    torch.testing.assert_close(KERNEL.baseline(*args).double(), expected, rtol=2e-2, atol=1e-2)
    provider = KERNEL.providers["sdpa"]
    if provider.unavailable(problem, device.INTERPRETER):
        assert "DV" in problem
        return
    out, lse = provider.run(*args)
    assert out.dtype == args[0].dtype and out.is_contiguous() and lse.is_contiguous()
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-2, atol=1e-2)


def test_torchs_attention_keeps_its_dense_mask_and_leaves_blind_rows_at_zero(monkeypatch):
    mask = BlockMask.from_blocks(torch.tensor([[True, False], [False, False]]), 64, 64, 32)
    args = (*heads(64, 64, H=4), mask)
    out, lse = KERNEL.providers["sdpa"].run(*args)
    assert not out[:, :, 32:].any() and (lse[:, :, 32:] == -INF).all()
    monkeypatch.setattr(BlockMask, "dense", lambda *_: pytest.fail("made again"))
    assert torch.equal(KERNEL.providers["sdpa"].run(*args)[0], out)


def test_torchs_attention_is_left_out_where_it_fails_or_its_mask_is_huge():
    h100 = device.profile("h100")
    text = "B=1,H=8,HKV=8,SQ={0},SK={0},D=64,BLOCK_Q=128,BLOCK_KV=128,density={1},dtype=float16,causal=true"
    why = KERNEL.providers["sdpa"].unavailable
    assert why(KERNEL.parse(text.format(16384, 10)), h100) is None
    assert "dense mask of 8589934592 B" in why(KERNEL.parse(text.format(65536, 10)), h100)
    assert why(KERNEL.parse(text.format(65536, 50) + ",plain=true"), h100) is None
    # A mask may be each batch's own.
    assert "dense mask of 4294967296 B" in why(KERNEL.parse("B=8" + text.format(16384, 10)[3:]), h100)
    assert "multiples of 16 bytes" in why(KERNEL.parse(text.format(64, 100) + ",plain=true,aligned=false"), h100)


def test_work_is_proportional_to_the_blocks_kept():
    # 64 blocks of 16 x 16, of which 10 percent are 6: 2 x 2 heads x 6 x 256 pairs x (8 + 16).
    text = "B=1,H=2,HKV=1,SQ=128,SK=128,D=8,DV=16,BLOCK_Q=16,BLOCK_KV=16,density=10,dtype=float16"
    work = KERNEL.work(KERNEL.parse(text))
    assert work.flops == 2 * 2 * 6 * 256 * 24
    assert work.bytes == 2 * (2 * 128 + 128) * 24 + 4 * 2 * 128


def by_row(mask, **changes):
    return {"mask": mask._replace(by_row=mask.by_row._replace(**changes))}


REFUSED = {
    "q has shape (2, 64, 16)": lambda a: {"q": a["q"][0]},
    "mask is for (64, 64) queries and keys": lambda a: {name: a[name][:, :, :32] for name in ("k", "v")},
    "the heads of k must divide": lambda a: {"q": a["q"][:, :1]},
    "scale is inf": lambda a: {"scale": INF},
    "mask is for 1 batches and 3 heads": lambda a: {
        "mask": BlockMask.from_blocks(torch.ones(3, 4, 4, dtype=torch.bool), 64, 64, 16)
    },
    "mask is for 2 batches and 1 heads": lambda a: {"mask": BlockMask.document(torch.zeros(2, 64).long())},
    "mask has blocks of (16, 8)": lambda a: {"mask": a["mask"]._replace(block=(16, 8))},
    "mask.by_row.offsets is torch.int64 (5,)": lambda a: by_row(a["mask"], offsets=a["mask"].by_row.offsets.long()),
    "mask is on meta but q is on cpu": lambda a: by_row(a["mask"], offsets=torch.zeros(5, device="meta").int()),
    "it must have both or none": lambda a: {"mask": a["mask"]._replace(q_documents=torch.zeros(1, 64).int())},
    "mask has window -1": lambda a: {"mask": a["mask"]._replace(window=-1)},
    "mask.by_row lists blocks from 0 to 9": lambda a: by_row(a["mask"], blocks=torch.arange(10).int()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_named_before_anything_runs(message):
    q, k, v = heads(64, 64, H=2, HKV=2)
    good = {"q": q, "k": k, "v": v, "mask": BlockMask.causal(64, 64, 16)}
    bad = {**good, **REFUSED[message](good)}
    for compute in (lambda **kwargs: KERNEL.run(CONFIG, **kwargs), KERNEL.reference, ops.block_sparse_attention):
        with pytest.raises(ValueError, match=re.escape(message)):
            compute(**bad)


def test_masks_of_other_kinds_are_refused():
    q, k, v = heads(64, 64)
    for mask, message in (
        (None, "mask is a NoneType"),
        (torch.ones(4, 4), "blocks is torch.float32"),
        (torch.ones(4, 4, device="meta"), "mask is on meta but q is on cpu"),
        (torch.ones(64, 64), "64 blocks of seq_q 64"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.block_sparse_attention(q, k, v, mask)
    # As large as the matrix of scores, which some take.
    with pytest.raises(ValueError, match="mask is a Tensor; it must be a BlockMask"):
        KERNEL.run(CONFIG, q, k, v, torch.ones(64, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match="plain=true is for no rule"):
        KERNEL.parse(f"{KERNEL.problems[3]},plain=true")
    with pytest.raises(ValueError, match="of all blocks the rules leave 75 percent"):
        KERNEL.parse(KERNEL.problems[0].replace("density=75", "density=100"))
