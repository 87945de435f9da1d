"""The gradients of attention against torch's own, of a brute-force masked softmax in float64."""

import itertools

import pytest
import torch

from autotune import device, registry
from autotune.compile import compile_config, refused
from autotune.data import Config
from autotune.search_spaces._attention_backward_resources import shared_bytes
from autotune.verify import Oracle
from autotune.worker import Worker

DENSE, VARLEN = registry.load("attention_backward"), registry.load("attention_varlen_backward")
NAMES = ("dq", "dk", "dv")
#: A millisecond a product, whatever its size: large enough to be fast, small enough for masked ends and a middle.
TILES = Config(BLOCK_M1=32, BLOCK_N1=64, BLOCK_M2=64, BLOCK_N2=32, num_warps=4, num_stages=2)


def brute_force(d_out, d_lse, q, k, v, causal, scale, window, softcap, shift=0):
    """In float64, by autograd, over the whole score matrix."""
    q, k, v = (t.double().detach().requires_grad_() for t in (q, k, v))
    keys, values = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ keys.mT * (q.shape[3] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(q.shape[2])[:, None] + shift - torch.arange(k.shape[2])
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if causal:
        hidden |= distance < 0
    if window is not None:
        hidden |= distance.abs() >= window
    blind = hidden.all(1, keepdim=True)
    scores = scores.masked_fill(hidden & ~blind, float("-inf"))
    out = scores.softmax(-1).masked_fill(blind, 0.0) @ values
    total = (out * d_out.double()).sum()
    if d_lse is not None:
        total = total + (scores.logsumexp(-1).masked_fill(blind[:, 0], 0.0) * d_lse.double()).sum()
    return torch.autograd.grad(total, (q, k, v))


def assert_near(results, expected, tolerance=2e-5):
    for name, result, right in zip(NAMES, results, expected, strict=True):
        assert result.is_contiguous() and result.shape == right.shape
        scale = max(1.0, right.abs().max().item())
        assert (result.double() - right).abs().max().item() <= tolerance * scale, name


CASES = {
    "full": "B=1,H=1,HKV=1,SQ=70,SK=80,D=16",
    "causal": "B=1,H=1,HKV=1,SQ=67,SK=67,D=24,causal=true",
    "causal, more keys": "B=1,H=1,HKV=1,SQ=37,SK=101,D=16,causal=true",
    "causal, more queries": "B=1,H=1,HKV=1,SQ=101,SK=37,D=16,causal=true",
    "group of three": "B=1,H=6,HKV=2,SQ=25,SK=40,D=16,causal=true",
    "window": "B=1,H=1,HKV=1,SQ=131,SK=90,D=16,window=21",
    "causal window": "B=1,H=1,HKV=1,SQ=131,SK=140,D=16,causal=true,window=40",
    "rows that see nothing": "B=1,H=1,HKV=1,SQ=130,SK=30,D=16,causal=true,window=40",
    "soft cap": "B=1,H=1,HKV=1,SQ=50,SK=60,D=16,softcap=true",
    "narrow values": "B=1,H=1,HKV=1,SQ=40,SK=33,D=40,DV=17",
    "wide values": "B=1,H=1,HKV=1,SQ=40,SK=33,D=5,DV=33",
    "heads split": "B=2,H=2,HKV=2,SQ=30,SK=47,D=16,layout=bshd",
    "strided and misaligned": "B=1,H=2,HKV=1,SQ=33,SK=47,D=24,layout=s,aligned=false,causal=true",
    "one row": "B=1,H=1,HKV=1,SQ=1,SK=50,D=16",
    "one key": "B=1,H=1,HKV=1,SQ=50,SK=1,D=1",
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_autograds(case):
    problem = DENSE.kernel.parse(f"{CASES[case]},dtype=float32")
    d_out, _, *forward, causal, _, window, softcap = DENSE.kernel.inputs(problem, 5, "cpu")
    d_lse = torch.randn(forward[-1].shape)
    args = d_out, d_lse, *forward, causal, None, window, softcap
    expected = brute_force(d_out, d_lse, *forward[:3], causal, None, window, softcap)
    assert_near(DENSE.kernel.run(TILES, *args), expected)
    assert_near(DENSE.kernel.reference(*args), expected)


def test_tiles_may_be_of_any_shape():
    args = dense("B=1,H=1,HKV=1,SQ=70,SK=90,D=16,dtype=float32,causal=true,window=30")
    expected = brute_force(*args[:5], *args[7:])
    for m1, n1, m2, n2 in ((64, 16, 16, 64), (16, 64, 64, 16), (128, 128, 128, 128)):
        config = Config(BLOCK_M1=m1, BLOCK_N1=n1, BLOCK_M2=m2, BLOCK_N2=n2, num_warps=4, num_stages=2)
        assert_near(DENSE.kernel.run(config, *args), expected)


def dense(text, seed=0):
    return DENSE.kernel.inputs(DENSE.kernel.parse(text), seed, "cpu")


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.0])
def test_any_scale_will_do(scale):
    d_out, _, q, k, v, *_ = dense("B=1,H=1,HKV=1,SQ=40,SK=40,D=16,dtype=float32")
    scores = q.double() @ k.double().mT * scale
    out, lse = (scores.softmax(-1) @ v.double()).float(), scores.logsumexp(-1).float()
    results = DENSE.kernel.run(TILES, d_out, None, q, k, v, out, lse, False, scale)
    assert_near(results, brute_force(d_out, None, q, k, v, False, scale, None, None))


@pytest.mark.parametrize(
    "relaid",
    [
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        lambda t: t.mT.contiguous().mT,
        lambda t: t[:, :, :1, :1].expand(t.shape),
    ],
    ids=["bshd", "transposed", "expanded"],
)
def test_the_gradient_that_comes_in_may_have_any_strides(relaid):
    d_out, _, q, k, v, out, lse, *options = dense("B=2,H=2,HKV=2,SQ=40,SK=33,D=16,dtype=float32,causal=true")
    d_out, d_lse = relaid(d_out), torch.randn(lse.mT.shape).mT
    results = DENSE.kernel.run(TILES, d_out, d_lse, q, k, v, relaid(out.clone()) * 0 + out, lse, *options)
    assert_near(results, brute_force(d_out, d_lse, q, k, v, *options))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_as_good_as_torchs(dtype):
    text = f"B=1,H=2,HKV=1,SQ=67,SK=60,D=32,dtype={dtype},causal=true,window=50,softcap=true"
    assert Oracle(DENSE.kernel, dense(text)).fault(TILES) is None


@pytest.mark.parametrize("which", range(3), ids=NAMES)
def test_a_gradient_that_is_a_little_wrong_is_refused(which):
    args = dense("B=1,H=1,HKV=1,SQ=64,SK=64,D=32,dtype=float16,causal=true")

    def run(config, *args):
        results = list(DENSE.kernel.run(config, *args))
        results[which] = results[which] * 1.01
        return tuple(results)

    wrong = type(DENSE.kernel)(**{**vars(DENSE.kernel), "run": run})
    assert "error" in Oracle(wrong, args).fault(TILES).text


def test_two_runs_are_equal_to_the_last_bit_whatever_the_group():
    args = dense("B=1,H=3,HKV=1,SQ=40,SK=70,D=32,dtype=float16,causal=true")
    first, again = (DENSE.kernel.run(TILES, *args) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


def test_nan_stays_where_the_formula_has_it():
    args = dense("B=1,H=2,HKV=1,SQ=100,SK=100,D=16,dtype=float32,causal=true")
    args[0][0, 1, 40, 3] = float("nan")
    dq, dk, dv = DENSE.kernel.run(TILES, *args)
    nan = dq.isnan()
    assert nan[0, 1, 40].all() and nan.sum() == 16
    # Keys up to its own see row 40; those of later tiles do not.
    assert dk[0, 0, :41].isnan().all() and not dk[0, 0, 64:].isnan().any()
    assert dv[0, 0, :41, 3].isnan().all() and dv.isnan().sum() <= 64


def test_nan_of_a_row_that_sees_nothing_is_nobodys():
    args = dense("B=1,H=1,HKV=1,SQ=160,SK=30,D=16,dtype=float32,causal=true,window=40")
    args[0][0, 0, 150] = float("nan")
    dq, dk, dv = DENSE.kernel.run(TILES, *args)
    assert not (dk.isnan().any() or dv.isnan().any())
    assert not dq[0, 0, :150].isnan().any() and not dq[0, 0, 151:].any()


EMPTY = ("B=0,H=2,HKV=2,SQ=16,SK=16,D=16", "B=1,H=2,HKV=2,SQ=0,SK=16,D=16", "B=1,H=2,HKV=1,SQ=16,SK=0,D=16")


@pytest.mark.parametrize("text", EMPTY)
def test_empty_problems_give_zeros_or_nothing(text):
    args = dense(f"{text},dtype=float32,causal=true")
    assert Oracle(DENSE.kernel, args).fault(TILES) is None
    assert not any(result.any() for result in DENSE.kernel.run(TILES, *args))


def test_offsets_are_64_bit():
    huge = 2**30 + 64  # twice this is over 2**31, which its product in 32 bits can't hold
    storage = torch.empty(2 * huge + 48, dtype=torch.float16)
    far = [storage[16 * n :].as_strided((1, 1, 3, 16), (0, 0, huge, 1)) for n in range(3)]
    args = list(dense("B=1,H=1,HKV=1,SQ=3,SK=3,D=16,dtype=float16"))
    near = DENSE.kernel.run(TILES, *args)
    for place, tensor in zip((2, 3, 4), far, strict=True):
        args[place] = tensor.copy_(args[place])
    for one, other in zip(DENSE.kernel.run(TILES, *args), near, strict=True):
        assert torch.equal(one, other)


def test_the_reference_is_exact_in_double_precision():
    d_out, _, q, k, v, out, lse, *options = dense("B=1,H=2,HKV=1,SQ=9,SK=11,D=8,dtype=float32,causal=true")
    wide = [t.double() for t in (d_out, torch.randn(lse.shape), q, k, v, out, lse)]
    assert_near(DENSE.kernel.reference(*wide, *options), brute_force(*wide[:5], *options), 1e-13)


LENGTHS = {
    "as many keys": ([41, 0, 20, 1], [41, 0, 20, 1]),
    "more keys": ([5, 17, 1], [40, 17, 33]),
    "more queries": ([40, 33], [5, 17]),
    "sides that are empty": ([0, 20, 9], [30, 0, 9]),
}


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (True, 9), (False, 9)])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_sequences_are_single_ones(lengths, causal, window):
    rows, columns = LENGTHS[lengths]
    generator = torch.Generator().manual_seed(3)
    q, k, v, d_out = (
        torch.randn(sum(length), heads, width, generator=generator)
        for length, heads, width in ((rows, 2, 16), (columns, 1, 16), (columns, 1, 24), (rows, 2, 24))
    )
    ends = [torch.tensor([0, *itertools.accumulate(length)], dtype=torch.int32) for length in (rows, columns)]
    options = *ends, max(rows), max(columns), causal, None, window
    out, lse = registry.load("attention_varlen").kernel.reference(q, k, v, *options)
    d_lse = torch.randn(lse.shape, generator=generator)
    results = VARLEN.kernel.run(TILES, d_out, d_lse, q, k, v, out, lse, *options)
    expected = [torch.zeros(t.shape, dtype=torch.float64) for t in (q, k, v)]
    for first_q, sq, first_k, sk in zip(ends[0], rows, ends[1], columns, strict=False):
        these, those = slice(first_q, first_q + sq), slice(first_k, first_k + sk)
        if sq and sk:
            parts = brute_force(
                *(d_out[these].transpose(0, 1)[None], d_lse[None, :, these]),
                *(t.transpose(0, 1)[None] for t in (q[these], k[those], v[those])),
                *(causal, None, window, None, sk - sq),
            )
            for whole, place, part in zip(expected, (these, those, those), parts, strict=True):
                whole[place] = part[0].transpose(0, 1)
    assert_near(results, expected)
    assert_near(VARLEN.kernel.reference(d_out, d_lse, q, k, v, out, lse, *options), expected)


BAD = [
    (0, lambda t: t[:, :, 1:], "d_out has shape"),
    (0, lambda t: t.half(), "d_out is torch.float16"),
    (5, lambda t: t[..., 1:], "out has shape"),
    (6, lambda t: t[None], "lse has shape"),
    (6, lambda t: t.half(), "lse is torch.float16"),
    (3, lambda t: t[:, :, 1:], "k is .* and v is"),
]


@pytest.mark.parametrize(("place", "change", "message"), BAD)
def test_bad_arguments_are_named(place, change, message):
    args = list(dense("B=1,H=2,HKV=2,SQ=8,SK=9,D=8,dtype=float32"))
    args[place] = change(args[place])
    with pytest.raises(ValueError, match=message):
        DENSE.kernel.problem(*args)


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["a100", "h100", "b200", "mi300x"])
def test_defaults_fit_and_spill_little(profile, tmp_path):
    where = device.profile(profile)
    with Worker({"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": str(tmp_path)}) as worker:
        for text in (
            "B=4,H=32,HKV=8,SQ=2048,SK=2048,D=128,dtype=bfloat16,causal=true",
            # Integers of value 1, which are constants.
            "B=1,H=1,HKV=1,SQ=1,SK=1,D=64,dtype=float32",
        ):
            problem = DENSE.kernel.parse(text)
            config = DENSE.space.default(problem, where)
            built = worker.call(compile_config, DENSE.entry, problem, config, where, timeout_s=120)
            assert refused(built, where, "test") is None
            assert built.resources.shared_bytes <= shared_bytes(config, problem, where)
