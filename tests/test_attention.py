"""Attention forward, dense and of ragged sequences, against masks written out; and its code for GPUs."""

import importlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import device, ops, registry
from autotune.compile import assembly, compile_config, refused
from autotune.data import Config
from autotune.kernels._attention_reference import seen_pairs, visible
from autotune.kernels._attention_tiles import describable
from autotune.verify import Oracle
from tests.test_compile import DEVICES, compile_and_launch, worker_with_cache

DENSE, VARLEN = (registry.load(name) for name in ("attention", "attention_varlen"))
TILE = Config(BLOCK_M=64, BLOCK_N=64, num_warps=4, num_stages=2, PACK_GQA=False, DESCRIPTOR=False)
LENGTHS = [(1, 1), (3, 3), (64, 1), (65, 64), (113, 203), (203, 113)]
WINDOWS = [None, 1, 5, 64, 1000]
#: BLOCK_M, BLOCK_N: edges of wide and of narrow blocks.
TILES = [(64, 64), (128, 32), (32, 128)]


def config(**changes):
    return Config({**TILE, **changes})


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def tensors(rows, columns, heads=1, kv_heads=1, width=16, value_width=None, dtype=torch.float32):
    return (
        normal(1, heads, rows, width, dtype=dtype),
        normal(1, kv_heads, columns, width, dtype=dtype),
        normal(1, kv_heads, columns, value_width or width, dtype=dtype),
    )


def written_out(q, k, v, causal=False, scale=None, window=None, softcap=None, shift=0):
    """In float64, with the mask of every pair."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    for i, j in itertools.product(range(scores.shape[2]), range(scores.shape[3])):
        at = i + shift
        hidden = causal and j > at
        if window is not None:
            hidden = hidden or abs(at - j) >= window
        if hidden:
            scores[:, :, i, j] = -math.inf
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().where(lse[..., None] > -math.inf, 0.0)
    return weights @ v, lse


def assert_near(results, expected, tolerance=2e-5):
    for result, right in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rows", "columns"), LENGTHS)
def test_masks_are_those_written_out(rows, columns):
    q, k, v = tensors(rows, columns)
    for number, (causal, window) in enumerate(itertools.product((False, True), WINDOWS)):
        block_m, block_n = TILES[number % len(TILES)]
        result = DENSE.kernel.run(config(BLOCK_M=block_m, BLOCK_N=block_n), q, k, v, causal, None, window)
        assert_near(result, written_out(q, k, v, causal, window=window))


@pytest.mark.parametrize("scale", [None, 0.3, 0.0, -0.7])
@pytest.mark.parametrize("softcap", [None, 0.5, 30.0, 1e6])
def test_scale_and_cap(scale, softcap):
    q, k, v = tensors(65, 40)
    assert_near(
        DENSE.kernel.run(TILE, q, k, v, True, scale, None, softcap),
        written_out(q, k, v, True, scale, None, softcap),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("width", "value_width"), [(16, 16), (24, 40), (48, 32), (1, 3), (192, 128), (256, 256)])
def test_widths_and_dtypes(width, value_width, dtype):
    args = tensors(33, 70, 2, 2, width, value_width, dtype)
    result = DENSE.kernel.run(TILE, *args, True)
    assert [part.dtype for part in result] == [dtype, torch.float32]
    out, lse = written_out(*args, True)
    assert_near(result[:1], (out,), {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 2e-5}[dtype])
    assert_near(result[1:], (lse,))


@pytest.mark.parametrize("group", [2, 3])
def test_packed_heads_give_what_single_ones_do(group):
    q, k, v = tensors(37, 90, 2 * group, 2)
    for causal, window in ((False, None), (True, None), (True, 20), (False, 9)):
        args = (q, k, v, causal, None, window)
        packed, single = (DENSE.kernel.run(config(PACK_GQA=pack), *args) for pack in (True, False))
        assert_near(packed, written_out(q, k, v, causal, window=window))
        for one, other in zip(packed, single, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [16, 40, 64])
def test_descriptors_give_what_pointers_do(width):
    q, k, v = tensors(70, 90, 4, 2, width, dtype=torch.float16)
    assert describable(k, v)
    for causal, window in ((False, None), (True, 20)):
        described, plain = (
            DENSE.kernel.run(config(DESCRIPTOR=on, PACK_GQA=True), q, k, v, causal, None, window)
            for on in (True, False)
        )
        assert all(map(torch.equal, described, plain))


def test_descriptors_are_only_made_of_what_they_can_describe():
    """Others take pointers, and are right."""
    q, k, v = tensors(20, 30, dtype=torch.float16)
    cases = {
        "odd address": torch.cat([k.new_zeros(1), k.flatten()])[1:].view(k.shape),
        "every other column": k.repeat_interleave(2, -1)[..., ::2],
        "rows of 34 bytes": torch.nn.functional.pad(k, (0, 1))[..., :-1],
        "one row for all": k[:, :, :1].expand(k.shape),
    }
    for name, keys in cases.items():
        assert not describable(keys, v), name
        result = DENSE.kernel.run(config(DESCRIPTOR=True), q, keys, v)
        assert_near(result, written_out(q, keys, v), 2e-3)


def test_rows_that_see_nothing_are_zero_and_minus_infinity():
    q, k, v = tensors(113, 20)
    out, lse = DENSE.kernel.run(TILE, q, k, v, False, None, 8)
    assert_near((out, lse), written_out(q, k, v, window=8))
    assert not out[0, 0, 27:].any() and (lse[0, 0, 27:] == -math.inf).all() and lse[0, 0, :27].isfinite().all()
    for causal in (False, True):
        out, lse = DENSE.kernel.run(TILE, q, k[:, :, :0], v[:, :, :0], causal)
        assert not out.any() and (lse == -math.inf).all()


def test_huge_logits_do_not_overflow():
    q, k, v = tensors(40, 70, dtype=torch.float16)
    result = DENSE.kernel.run(TILE, q * 50, k * 30, v, True)
    assert_near(result[:1], written_out(q * 50, k * 30, v, True)[:1], 2e-3)
    assert_near(result[1:], written_out(q * 50, k * 30, v, True)[1:], 1e-5)


def test_lse_of_16_bits_passes_in_float32():
    problem = DENSE.kernel.parse("B=1,H=2,HKV=1,SQ=70,SK=90,D=32,dtype=bfloat16,causal=true,window=40,softcap=true")
    oracle = Oracle(DENSE.kernel, DENSE.kernel.inputs(problem, 3, "cpu"))
    assert oracle.fault(TILE) is None
    assert oracle.exact[1].dtype == torch.float64


def test_results_are_equal_to_the_last_bit_each_time():
    args = (*tensors(65, 90, 4, 2), True, None, 30, 5.0)
    first, second = (DENSE.kernel.run(config(PACK_GQA=True), *args) for _ in range(2))
    assert all(map(torch.equal, first, second))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(0, 70),
    group=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 80),
    softcap=st.none() | st.floats(0.5, 50),
    blocks=st.tuples(st.sampled_from((16, 32, 64)), st.sampled_from((16, 32, 64))),
    pack=st.booleans(),
)
def test_any_small_shape(rows, columns, group, widths, causal, window, softcap, blocks, pack):
    args = (*tensors(rows, columns, group, 1, *widths), causal, None, window, softcap)
    chosen = config(BLOCK_M=blocks[0], BLOCK_N=blocks[1], PACK_GQA=pack)
    assert_near(DENSE.kernel.run(chosen, *args), written_out(*args))


def ragged(q_lengths, k_lengths, heads=2, kv_heads=1, width=16, dtype=torch.float32):
    """Arguments of attention_varlen up to the longest lengths."""
    q = normal(sum(q_lengths), heads, width, dtype=dtype)
    k, v = (normal(sum(k_lengths), kv_heads, width + extra, dtype=dtype)[..., :width] for extra in (0, 8))
    offsets = (torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (q_lengths, k_lengths))
    return q, k, v, *offsets, max(q_lengths), max(k_lengths)


def one_by_one(q, k, v, cu_q, cu_k, max_q, max_k, causal=False, scale=None, window=None):
    outs, lses = [], []
    for number in range(len(cu_q) - 1):
        (first_q, end_q), (first_k, end_k) = cu_q[number : number + 2].tolist(), cu_k[number : number + 2].tolist()
        parts = (q[first_q:end_q], k[first_k:end_k], v[first_k:end_k])
        out, lse = written_out(
            *(part.transpose(0, 1)[None] for part in parts),
            *(causal, scale, window),
            shift=(end_k - first_k) - (end_q - first_q),
        )
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0])
    return torch.cat(outs), torch.cat(lses, 1)


RAGGED = {
    "prompts": ([40, 0, 65, 1], [40, 0, 65, 1]),
    "chunks of longer ones": ([5, 33, 1, 0], [70, 64, 130, 20]),
    "more queries than keys": ([70, 5, 30], [20, 0, 29]),
}


@pytest.mark.parametrize("case", RAGGED)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 9])
def test_ragged_sequences_are_as_one_by_one(case, causal, window):
    args = ragged(*RAGGED[case])
    expected = one_by_one(*args, causal, None, window)
    for changes in ({}, {"PACK_GQA": True, "BLOCK_M": 32}, {"DESCRIPTOR": True}):
        assert_near(VARLEN.kernel.run(config(**changes), *args, causal, None, window), expected)


def test_ragged_offsets_may_be_64_bit_and_the_longest_more_than_it_is():
    q, k, v, cu_q, cu_k, _, _ = args = ragged(*RAGGED["chunks of longer ones"])
    wide = VARLEN.kernel.run(TILE, q, k, v, cu_q.long(), cu_k.long(), 200, 500, True)
    assert all(map(torch.equal, wide, VARLEN.kernel.run(TILE, *args, True)))


def test_no_sequences_and_no_tokens():
    none = torch.zeros(1, dtype=torch.int32)
    for offsets in (none, none.repeat(4)):
        q, k = torch.ones(0, 2, 16), torch.ones(0, 1, 16)
        out, lse = VARLEN.kernel.run(TILE, q, k, k, offsets, offsets, 0, 0)
        assert out.shape == (0, 2, 16) and lse.shape == (2, 0)


def test_one_problem_stands_for_batches_of_near_lengths():
    first, second = ragged([40, 0, 65, 1], [40, 0, 65, 1]), ragged([70, 3, 11], [70, 3, 11])
    assert VARLEN.kernel.problem(*first) == VARLEN.kernel.problem(*second)
    assert VARLEN.kernel.key(*first) == VARLEN.kernel.key(*second)
    longer = ragged([40, 0, 130, 1], [40, 0, 130, 1])
    assert VARLEN.kernel.problem(*first) != VARLEN.kernel.problem(*longer)
    assert VARLEN.kernel.key(*first) != VARLEN.kernel.key(*longer)


def test_inputs_of_ragged_problems_are_ragged_and_one_is_empty():
    problem = VARLEN.kernel.parse("B=8,H=1,HKV=1,SQ=64,SK=256,D=16,dtype=float32,causal=true")
    for seed in range(5):
        _, _, _, *offsets, longest_q, longest_k = VARLEN.kernel.inputs(problem, seed, "cpu")[:7]
        for cu, longest in zip(offsets, (longest_q, longest_k), strict=True):
            lengths = cu.diff().tolist()
            assert sum(lengths) == 8 * longest // 2 and max(lengths) <= longest and min(lengths) == 0
            assert len(set(lengths)) > 4


def test_ragged_offsets_are_64_bit():
    far = 2**30 + 64  # twice this is over 2**31, which its product in 32 bits can't hold
    q, k, v = (
        torch.empty(2 * far + 16).as_strided((3, 1, 16), (far, 16, 1)).copy_(normal(3, 1, 16)) for _ in range(3)
    )
    cu = torch.tensor([0, 1, 3], dtype=torch.int32)
    expected = one_by_one(q, k, v, cu, cu, 2, 2, True)
    for described in (False, True):
        assert_near(VARLEN.kernel.run(config(DESCRIPTOR=described), q, k, v, cu, cu, 2, 2, True), expected)


def test_pairs_are_counted_as_the_mask_has_them():
    for rows, columns, causal, window, shift in itertools.product(
        (0, 1, 7, 12), (0, 1, 9), (False, True), (0, 1, 4, 40), (-5, 0, 4)
    ):
        mask = visible(torch.arange(rows)[:, None] + shift, torch.arange(columns), causal, window)
        assert seen_pairs(rows, columns, causal, window, shift) == mask.sum()


def dense(q=(1, 4, 5, 8), k=(1, 2, 7, 8), v=(1, 2, 7, 8), **options):
    return (*(torch.ones(shape) for shape in (q, k, v)),), options


def varlen(cu_q=(0, 3, 5), cu_k=(0, 4, 7), longest=(3, 4), dtype=torch.int32, q=(5, 4, 8), k=(7, 2, 8), **options):
    offsets = (torch.tensor(cu, dtype=dtype) for cu in (cu_q, cu_k))
    return (torch.ones(q), torch.ones(k), torch.ones(k), *offsets, *longest), options


BAD = [
    (DENSE, dense(q=(4, 5, 8)), r"q has shape \(4, 5, 8\); attention takes \(batch"),
    (DENSE, dense(k=(1, 3, 7, 8), v=(1, 3, 7, 8)), "q has 4 heads and k has 3"),
    (DENSE, dense(v=(1, 2, 6, 8)), "all but their last sizes must be equal"),
    (DENSE, dense(k=(1, 2, 7, 9)), "batch and head_dim must be equal"),
    (DENSE, dense(window=0), "window is 0; it must be at least 1"),
    (DENSE, dense(window=-3), "window is -3"),
    (DENSE, dense(softcap=0.0), "softcap is 0.0; it must be finite and over 0"),
    (DENSE, dense(softcap=-1.0), "softcap is -1.0"),
    (DENSE, dense(softcap=math.nan), "softcap is nan"),
    (DENSE, dense(scale=math.inf), "scale is inf; it must be finite"),
    (VARLEN, varlen(q=(1, 5, 4, 8)), r"attention_varlen takes \(tokens"),
    (VARLEN, varlen(q=(5, 3, 8)), "q has 3 heads and k has 2"),
    (VARLEN, varlen(q=(5, 4, 9)), "head_dim must be equal"),
    (VARLEN, varlen(dtype=torch.int16), "cu_seqlens_q is torch.int16 .* must be int32 or int64"),
    (VARLEN, varlen(cu_q=(0, 5)), "cu_seqlens_q has 2 entries and cu_seqlens_k 3"),
    (VARLEN, varlen(longest=(-1, 4)), "max_seqlen_q is -1"),
    (VARLEN, varlen(window=0), "window is 0"),
]
#: What only the offsets themselves tell: a problem is made without looking.
BAD_OFFSETS = [
    (varlen(cu_q=(1, 3, 5)), "cu_seqlens_q starts at 1; it must start at 0"),
    (varlen(cu_k=(0, 4, 6)), "cu_seqlens_k ends at 6; it must end at the 7 tokens of k"),
    (varlen(cu_k=(0, 9, 7), longest=(3, 9)), "cu_seqlens_k decreases by 2"),
    (varlen(longest=(2, 4)), "cu_seqlens_q has a sequence of 3 tokens; .* max_seqlen_q, 2"),
]


@pytest.mark.parametrize(("loaded", "call", "message"), BAD)
def test_bad_input_is_named(loaded, call, message):
    args, options = call
    for function in (
        loaded.kernel.problem,
        loaded.kernel.reference,
        lambda *a, **o: loaded.kernel.run(TILE, *a, **o),
    ):
        with pytest.raises(ValueError, match=message):
            function(*args, **options)


@pytest.mark.parametrize(("call", "message"), BAD_OFFSETS)
def test_bad_offsets_are_named(call, message):
    args, options = call
    for function in (VARLEN.kernel.reference, lambda *a, **o: VARLEN.kernel.run(TILE, *a, **o)):
        with pytest.raises(ValueError, match=message):
            function(*args, **options)


def test_mixed_dtypes_and_devices_are_named():
    q, k, v = tensors(3, 4)
    for others in ((k.half(), v.half()), (k.to("meta"), v.to("meta"))):
        with pytest.raises(ValueError, match=r"q, k and v are torch\.float32 on cpu"):
            DENSE.kernel.problem(q, *others)


@pytest.mark.parametrize(
    ("text", "off"),
    [
        ("B=1,H=4,HKV=4,SQ=64,SK=64,D=64,dtype=float16", {"PACK_GQA": True}),
        ("B=1,H=4,HKV=2,SQ=64,SK=64,D=64,dtype=float16,layout=s", {"DESCRIPTOR": True}),
        ("B=1,H=4,HKV=2,SQ=64,SK=64,D=64,dtype=float16,aligned=false", {"DESCRIPTOR": True}),
        ("B=1,H=4,HKV=2,SQ=64,SK=64,D=20,dtype=float16", {"DESCRIPTOR": True}),
        ("B=1,H=4,HKV=2,SQ=64,SK=64,D=64,dtype=float16,DV=36", {"DESCRIPTOR": True}),
        ("B=1,H=4,HKV=2,SQ=64,SK=64,D=16,dtype=float16", {"maxnreg": 128, "BLOCK_M": 16}),
    ],
)
def test_what_does_nothing_is_no_choice(text, off):
    where = device.profile("h100")
    problem = DENSE.kernel.parse(text)
    changed = Config({**DENSE.space.default(problem, where), **off})
    assert "has no effect here" in DENSE.space.why_not(changed, problem, where)


def test_few_queries_of_a_group_are_packed_by_default():
    for rows, packs in ((1, True), (16, True), (130, True), (2048, False)):
        problem = DENSE.kernel.make(B=1, H=32, HKV=8, SQ=rows, SK=4096, D=128, dtype="float16")
        assert DENSE.space.default(problem, device.profile("h100"))["PACK_GQA"] is packs, rows


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with worker_with_cache(tmp_path_factory.mktemp("cache")) as worker:
        yield worker


def job(loaded, text, profile, **changes):
    problem, where = loaded.kernel.parse(text), device.profile(profile)
    return loaded.entry, problem, Config({**loaded.space.default(problem, where), **changes}), where


#: Traits that meet in one kernel; sizes of 2048 keep the compiler from folding any of them.
FEATURES = {
    "window and cap, packed": (
        DENSE,
        "B=1,H=32,HKV=8,SQ=2048,SK=2048,D=32,dtype=bfloat16,causal=true,DV=16,window=512,softcap=true",
        {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2, "PACK_GQA": True},
    ),
    "ragged": (
        VARLEN,
        "B=8,H=32,HKV=8,SQ=2048,SK=2048,D=32,dtype=float16,causal=true,window=512",
        {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    ),
}


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("feature", FEATURES)
def test_features_compile_for_every_architecture(worker, feature, arch):
    loaded, text, changes = FEATURES[feature]
    task = _, problem, chosen, where = job(loaded, text, DEVICES[arch], **changes)
    compiled = worker.call(compile_config, *task, timeout_s=120)
    shared_bytes = importlib.import_module(loaded.entry.space).shared_bytes
    assert compiled.resources.shared_bytes <= shared_bytes(chosen, problem, where)
    assert compiled.resources.spill_bytes == 0
    assert refused(compiled, where, "test") is None


@pytest.mark.parametrize(("loaded", "profile"), [(DENSE, "h100"), (VARLEN, "b200")], ids=["dense", "ragged"])
def test_descriptors_load_tiles_whole_and_save_registers(worker, loaded, profile):
    text = "B=4,H=8,HKV=8,SQ=2048,SK=2048,D=128,dtype=bfloat16"
    pointers, described = (job(loaded, text, profile, DESCRIPTOR=on) for on in (False, True))
    needs = [worker.call(compile_config, *task, timeout_s=120).resources for task in (pointers, described)]
    assert needs[1].registers < needs[0].registers - 16
    instruction = "cp.async.bulk.tensor"
    assert instruction in worker.call(assembly, *described, timeout_s=120)
    assert instruction not in worker.call(assembly, *pointers, timeout_s=120)


def test_a_limit_of_registers_is_kept(worker):
    text = "B=4,H=8,HKV=8,SQ=2048,SK=2048,D=128,dtype=bfloat16"
    changes = {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 1}
    for limit in (0, 128):
        task = _, problem, chosen, where = job(DENSE, text, "h100", **changes, maxnreg=limit)
        assert DENSE.space.why_not(chosen, problem, where) is None
        registers = worker.call(compile_config, *task, timeout_s=120).resources.registers
        assert registers <= 128 if limit else registers > 128


@pytest.mark.parametrize(
    ("loaded", "text", "profile", "changes"),
    [
        (DENSE, "B=2,H=6,HKV=2,SQ=20,SK=40,D=24,dtype=float16,causal=true,layout=bshd,DV=8,window=1", "h100", {}),
        (DENSE, "B=1,H=4,HKV=2,SQ=16,SK=32,D=32,dtype=bfloat16,window=20,softcap=true", "mi300x", {}),
        (DENSE, "B=1,H=4,HKV=2,SQ=1,SK=32,D=32,dtype=float16,DV=1", "a100", {}),
        (DENSE, "B=1,H=4,HKV=2,SQ=33,SK=32,D=32,dtype=float16", "h100", {"DESCRIPTOR": True}),
        (VARLEN, "B=4,H=4,HKV=2,SQ=16,SK=32,D=32,dtype=float16,causal=true,window=5", "h100", {}),
        (VARLEN, "B=2,H=1,HKV=1,SQ=64,SK=64,D=40,dtype=float16,layout=s,aligned=false,fill=25", "h100", {}),
        (VARLEN, "B=1,H=2,HKV=1,SQ=1,SK=64,D=16,dtype=bfloat16,DV=24,fill=100", "mi300x", {}),
        (VARLEN, "B=2,H=2,HKV=1,SQ=64,SK=64,D=16,dtype=float16", "b200", {"DESCRIPTOR": True, "PACK_GQA": True}),
    ],
)
def test_a_launch_finds_what_was_compiled_ahead(worker, loaded, text, profile, changes):
    task = job(loaded, text, profile, **changes)
    ahead, launches, compiled_again = worker.call(compile_and_launch, *task, timeout_s=120)
    assert launches == ahead
    assert compiled_again == 0


def test_integers_are_refused_and_no_length_is_too_long():
    with pytest.raises(ValueError, match=r"q is torch\.int32; attention takes float16"):
        ops.attention(*[torch.ones(1, 2, 4, 8, dtype=torch.int32)] * 3)
    q, offsets = torch.randn(3, 2, 16), torch.tensor([0, 3], dtype=torch.int32)
    out = ops.attention_varlen(q, q, q, offsets, offsets, 2**16, 2**16)
    torch.testing.assert_close(out, ops.attention_varlen(q, q, q, offsets, offsets, 3, 3))


def test_a_length_that_is_worked_out_on_the_way_is_traced():
    def packed(q, offsets):
        longest = int(offsets.diff().max())
        return ops.attention_varlen(q, q, q, offsets, offsets, longest, longest)

    q, offsets = torch.randn(7, 2, 16), torch.tensor([0, 3, 7], dtype=torch.int32)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        traced = torch.compile(packed, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(traced(q, offsets), packed(q, offsets))
