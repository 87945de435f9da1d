"""``lora`` token by token in float64: any adapters or none, ranks, the base in place, gradients, refusals."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import device, dispatch, ops, registry
from autotune.data import Config
from autotune.kernels import lora as module
from autotune.worker import Worker
from tests.test_compile import compile_and_launch, job
from tests.traffic import recorded

LOADED = registry.load("lora")
KERNEL, SPACE = LOADED.kernel, LOADED.space
CONFIG = Config(
    STRUCTURE="gathered",
    **{"BLOCK_M": 16, "BLOCK_R": 4, "BLOCK_K": 64, "BLOCK_N": 64, "SPLIT_K": 1, "SPLIT_N": 1},
    **{"num_warps": 4, "num_stages": 2},
)
STRUCTURES = {
    "gathered": CONFIG,
    "gathered, K split": Config({**CONFIG, "BLOCK_R": 2, "SPLIT_K": 2}),
    "fused": Config({**CONFIG, "STRUCTURE": "fused", "SPLIT_N": 2}),
    "runs": Config({**CONFIG, "STRUCTURE": "runs", "BLOCK_R": 16}),
    "grouped, K split": Config({**CONFIG, "STRUCTURE": "grouped", "BLOCK_R": 16, "SPLIT_K": 2}),
}
INF, NAN = float("inf"), float("nan")


def case(ids, *, rank=3, adapters=4, width=70, outputs=66, based=True, dtype=torch.float32, seed=0):
    """Arguments of the kernel. Adapters that no token has are NaN."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator).to(dtype)

    x, a, b = draw(len(ids), width), draw(adapters, rank, width), draw(adapters, outputs, rank)
    unused = [adapter for adapter in range(adapters) if adapter not in ids]
    a[unused] = b[unused] = NAN
    base = (draw(len(ids), outputs),) if based else ()
    return x, a, b, torch.tensor(ids, dtype=torch.int32), *base


def exact(x, a, b, ids, base=None, scale=1.0):
    """One token at a time, in float64."""
    out = torch.zeros(x.shape[0], b.shape[1], dtype=torch.float64) if base is None else base.double()
    rows = [
        row + scale * (b[i].double() @ (a[i].double() @ values.double())) if 0 <= i < a.shape[0] else row
        for row, values, i in zip(out, x, ids.tolist(), strict=True)
    ]
    return torch.stack(rows) if rows else out


def assert_right(config, *args, tolerance=1e-4):
    result = KERNEL.run(config, *args)
    assert result.dtype == args[0].dtype and result.is_contiguous()
    torch.testing.assert_close(result.double(), exact(*args), rtol=tolerance, atol=tolerance)
    return result


MIXED = [2, -1, 0, 2, 3, -1, 0]


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_token_without_an_adapter_keeps_every_bit(name, based):
    """Those of a NaN and of -0 too; without a base it is 0."""
    x, a, b, ids, *base = case(MIXED, based=based)
    if based:
        base[0][1] = -0.0
        base[0][5] = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)
    expected = base[0] if based else torch.zeros(len(MIXED), b.shape[1])
    before = expected.view(torch.int32).clone()
    result = KERNEL.run(STRUCTURES[name], x, a, b, ids, *base, *([] if based else [None]), 0.7)
    assert torch.equal(result.view(torch.int32)[ids < 0], before[ids < 0])
    right = exact(x, a, b, ids, base[0] if based else None, 0.7)
    torch.testing.assert_close(result.double(), right, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_base_may_be_the_result(name):
    """Also where its rows are part of wider ones; what lies beside them stays."""
    x, a, b, ids, base = case(MIXED)
    expected = exact(x, a, b, ids, base)
    wide = torch.full((len(MIXED), 80), 7.0)
    part = wide[:, 5 : 5 + base.shape[1]]
    part.copy_(base)
    assert KERNEL.run(STRUCTURES[name], x, a, b, ids, part, out=part) is part
    torch.testing.assert_close(part.double(), expected, rtol=1e-4, atol=1e-4)
    assert (wide[:, :5] == 7).all() and (wide[:, 5 + base.shape[1] :] == 7).all()


@pytest.mark.parametrize(
    "ids",
    [[], [-1] * 3, [1] * 20, list(range(20)), [3, 3, 1]],
    ids=["no token", "no adapter", "one adapter", "each its own", "not in order"],
)
def test_any_adapters(ids):
    for config in (CONFIG, STRUCTURES["runs"], STRUCTURES["grouped, K split"]):
        assert_right(config, *case(ids, adapters=20, width=64, outputs=40))


@pytest.mark.parametrize("rank", [1, 16, 40, 256])
def test_any_rank(rank):
    for name in ("gathered", "fused", "runs"):
        block = 16 if name == "runs" else 64
        config = Config({**STRUCTURES[name], "BLOCK_R": block})
        assert_right(config, *case([1, 0, -1], rank=rank), tolerance=1e-3)


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("gathered", [2, 0, 18, 1]),
        ("fused", [2, 0, 18, 1]),
        ("runs", [2, 0, 2, 1]),
        ("grouped, K split", [1, 0, 2, 1]),
    ],
)
def test_only_the_weights_of_adapters_that_occur_are_read(name, reads):
    """For each token, or for each tile of 16 tokens that has some; and no base of a token without an adapter."""
    x, a, b, ids, base = case([0, *[2] * 10, -1, *[2] * 8, 3, 0], rank=16, width=64, outputs=64)
    config = Config({**STRUCTURES[name], "BLOCK_R": 16, "SPLIT_N": 1})
    with recorded() as traffic:
        KERNEL.run(config, x, a, b, ids, base, out=base)
    for weights in (a, b):
        assert torch.equal(traffic.loads(weights), torch.tensor(reads)[:, None, None].expand(weights.shape))
    assert torch.equal(traffic.loads(base), (ids >= 0).long()[:, None].expand(base.shape))
    assert traffic.loads(x)[ids < 0].sum() == 0


def test_tiles_of_runs_that_end_anywhere():
    ids = [1] * 21 + [-1] * 3 + [0] * 14 + [3] * 2
    for name in ("runs", "grouped, K split"):
        assert_right(STRUCTURES[name], *case(ids))


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_stays_in_its_token(name, bad):
    """Rank 1, whose results are infinite rather than undefined; and with padding, where zeros would meet it."""
    x, a, b, ids, base = case(MIXED, rank=1)
    x[3, 5] = bad
    result = KERNEL.run(STRUCTURES[name], x, a, b, ids, base)
    expected = exact(x, a, b, ids, base)
    assert not result[3].isfinite().any() and torch.equal(result.isnan(), expected.isnan())
    others = torch.arange(len(MIXED)) != 3
    torch.testing.assert_close(result[others].double(), expected[others], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", STRUCTURES)
def test_sixteen_bits_are_rounded_once(name):
    """Halves of a unit in the last place: rounded before the base is added, the sum would be another."""
    x, a = torch.ones(2, 64).half(), torch.full((1, 1, 64), 2.0**-6).half()
    b, base = torch.full((1, 66, 1), 2.0**-11 + 2.0**-21).half(), torch.ones(2, 66).half()
    ids = torch.zeros(2, dtype=torch.int64)
    result = KERNEL.run(STRUCTURES[name], x, a, b, ids, base)
    assert (result == 1 + 2.0**-10).all()


STRIDES = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "every other element": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "every other row": lambda t: t.repeat_interleave(2, -2)[..., ::2, :],
    "odd base address": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize(
    ("stride", "name"), [("transposed", "gathered"), *((stride, "runs") for stride in STRIDES)]
)
def test_any_strides(stride, name):
    x, a, b, ids, base = case(MIXED)
    every_other = torch.stack([ids, ids + 1], 1)[:, 0].long()
    expected = KERNEL.run(STRUCTURES[name], x, a, b, ids, base)
    *weights, moved = (STRIDES[stride](tensor) for tensor in (x, a, b, base))
    assert torch.equal(KERNEL.run(STRUCTURES[name], *weights, every_other, moved), expected)
    KERNEL.run(STRUCTURES[name], *weights, every_other, moved, out=moved)
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("name", ["gathered", "fused", "runs"])
def test_offsets_are_64_bit(name):
    """Of the last of three adapters, in memory that is not touched; the stride itself fits 32 bits."""
    x, *near, ids, base = case([2, 0], adapters=3, rank=2, dtype=torch.float16)
    far = 2**30 + 64
    a, b = (
        torch.empty(2 * far + tensor[0].numel(), dtype=torch.float16)
        .as_strided(tensor.shape, (far, *tensor.stride()[1:]))
        .copy_(tensor)
        for tensor in near
    )
    assert_right(STRUCTURES[name], x, a, b, ids, base, tolerance=2e-2)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_shape(data):
    draw = data.draw
    adapters = draw(st.integers(0, 5))
    ids = draw(st.lists(st.integers(-1, adapters - 1), max_size=6))
    args = case(
        ids,
        rank=draw(st.integers(1, 20)),
        adapters=adapters,
        width=draw(st.integers(0, 130)),
        outputs=draw(st.integers(0, 130)),
        based=draw(st.booleans()),
        seed=draw(st.integers(0, 9)),
    )
    assert_right(STRUCTURES[draw(st.sampled_from(list(STRUCTURES)))], *args, tolerance=1e-3)


def test_the_front_updates_out_in_place_and_returns_it():
    x, a, b, ids, base = case(MIXED)
    expected = exact(x, a, b, ids, base, 0.5)
    assert ops.lora(x, a, b, ids, out=base, scale=0.5) is base
    torch.testing.assert_close(base.double(), expected, rtol=1e-4, atol=1e-4)
    fresh = ops.lora(x, a, b, ids)
    torch.testing.assert_close(fresh.double(), exact(x, a, b, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("based", [True, False])
def test_gradients(based):
    x, a, b, ids, *_ = case(MIXED, rank=3)
    # An adapter that no token has gets a gradient of 0.
    leaves = [torch.randn_like(tensor).requires_grad_() for tensor in (x, a, b)]
    y = torch.randn(len(MIXED), b.shape[1], requires_grad=True)
    weights = torch.randn(len(MIXED), b.shape[1])
    out = y * 1 if based else None
    (ops.lora(*leaves, ids, out=out, scale=0.7) * weights).sum().backward()

    right = [tensor.detach().double().requires_grad_() for tensor in (*leaves, y)]
    (exact(*right[:3], ids, right[3] if based else None, 0.7) * weights).sum().backward()
    for ours, theirs in zip((*leaves, y), right, strict=True):
        if not based and ours is y:
            assert ours.grad is None
        else:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)


def test_the_operator_passes_opcheck():
    x, a, b, ids, base = case([1, -1, 0], adapters=2, dtype=torch.bfloat16)
    args = x.requires_grad_(), a.requires_grad_(), b.requires_grad_(), ids, base.requires_grad_(), 0.5
    results = torch.library.opcheck(torch.ops.autotune.lora.default, args)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("training", [False, True])
def test_it_traces_whole_under_compile(training):
    """Once with sizes and a scale that may change; into an ``out`` of its own, and into one in wider rows."""
    x, a, b, ids, base = case(MIXED)
    a.nan_to_num_()
    b.nan_to_num_()
    a.requires_grad_(training)

    def step(x, a, b, ids, base, scale):
        y, wide = base * 2, base.repeat(1, 2)
        ops.lora(x, a, b, ids, out=y, scale=scale)
        ops.lora(x, a, b, ids, out=wide[:, : base.shape[1]])
        return y + wide[:, : base.shape[1]]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=not training)
    args = x, a, b, ids, base, 0.3
    ours, theirs = compiled(*args), step(*args)
    assert torch.equal(ours, theirs)
    if training:
        grads = [torch.autograd.grad(result.sum(), a)[0] for result in (ours, theirs)]
        assert torch.equal(*grads)


def test_the_dispatcher_takes_an_out_where_torch_computes():
    x, a, b, ids, base = case(MIXED, rank=257, adapters=4)
    assert dispatch.explain("lora", x, a, b, ids, base).source == "reference"
    expected = exact(x, a, b, ids, base)
    assert ops.lora(x, a, b, ids, out=base) is base
    torch.testing.assert_close(base.double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("road", [*KERNEL.providers, "baseline"])
def test_other_roads_lead_there(road):
    compute = KERNEL.baseline if road == "baseline" else KERNEL.providers[road].run
    for based in (True, False):
        args = case(MIXED, based=based)
        result = compute(*args)
        assert result.is_contiguous()
        torch.testing.assert_close(result.double(), exact(*args), rtol=1e-4, atol=1e-4)


def test_other_roads_say_where_they_are_closed():
    h100 = device.profile("h100")
    many = KERNEL.parse("T=8192,K=4096,N=4096,R=16,A=100,dtype=float16")
    few = KERNEL.parse("T=32,K=4096,N=4096,R=16,A=16,dtype=float16")
    for name, why in (("gather", "copies 1073741824 weights"), ("loop", "takes all 100 adapters")):
        assert why in KERNEL.providers[name].unavailable(many, h100)
        assert KERNEL.providers[name].unavailable(few, h100) is None


REFUSED = {
    "x has shape (7,)": lambda a: {"x": a["x"][:, 0]},
    "a has shape (3, 70)": lambda a: {"a": a["a"][0]},
    "x is (7, 69) and a is (4, 3, 70)": lambda a: {"x": a["x"][:, 1:]},
    "b is (3, 66, 3) and a is (4, 3, 70)": lambda a: {"b": a["b"][1:]},
    "adapter_ids is torch.int32 (6,)": lambda a: {"adapter_ids": a["adapter_ids"][1:]},
    "adapter_ids is torch.float32 (7,)": lambda a: {"adapter_ids": a["adapter_ids"].float()},
    "out has shape (7, 65)": lambda a: {"base": a["base"][:, 1:]},
    "out is torch.float16 but x is torch.float32": lambda a: {"base": a["base"].half()},
    "x is torch.int32; it must be float16": lambda a: {"x": a["x"].int()},
    "a is torch.sparse_coo; it must be dense": lambda a: {"a": a["a"].to_sparse()},
    "b is torch.float16 but x is torch.float32": lambda a: {"b": a["b"].half()},
    "adapter_ids is on meta but x is on cpu": lambda a: {"adapter_ids": a["adapter_ids"].to("meta")},
    "scale is nan": lambda a: {"scale": NAN},
    "adapter_ids[3] is 4; it must be -1 for none, or 0 to 3": lambda a: {"adapter_ids": torch.arange(1, 8)},
    "adapter_ids[1] is -2": lambda a: {"adapter_ids": a["adapter_ids"].where(a["adapter_ids"] >= 0, -2)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_named_before_anything_runs(message):
    names = ("x", "a", "b", "adapter_ids", "base")
    good = dict(zip(names, case(MIXED), strict=True))
    bad = {**good, **REFUSED[message](good)}

    def front(base=None, **rest):
        return ops.lora(**rest, out=base)

    for compute in (lambda **kwargs: KERNEL.run(CONFIG, **kwargs), KERNEL.reference, front):
        with pytest.raises(ValueError, match=re.escape(message)):
            compute(**bad)


def test_out_may_not_be_what_is_still_read_nor_overlap_itself():
    x, a, b, ids, base = case(MIXED, width=66)
    for out, message in (
        (x, "out shares memory with x"),
        (base[:1].expand(7, -1), "out has strides (0, 1) of (7, 66); its elements must not share memory"),
        (torch.zeros(78).as_strided((7, 66), (2, 1)), "out has strides (2, 1)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            ops.lora(x, a, b, ids, out=out)
    two = torch.zeros(8, 66)
    for out, message in (
        (two[1:], "out shares memory with base"),
        (two[:6], "out is torch.float32 (6, 66) on cpu; it must be torch.float32 (7, 66)"),
        (two[:7].half(), "out is torch.float16 (7, 66)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            dispatch.run("lora", x, a, b, ids, two[:7], out=out)


def test_out_may_lie_between_rows_of_its_own():
    """Rows closer than they are wide, whose columns lie apart: unlike those above, no element is another's."""
    x, a, b, ids, base = case(MIXED)
    out = torch.zeros(7 * 66).as_strided((7, 66), (1, 7)).copy_(base)
    expected = exact(x, a, b, ids, base)
    torch.testing.assert_close(ops.lora(x, a, b, ids, out=out).double(), expected, rtol=1e-4, atol=1e-4)


def test_whoever_keeps_out_for_a_backward_pass_learns_that_it_changed():
    x, a, b, ids, base = case(MIXED)
    kept = base.requires_grad_().exp()
    with torch.no_grad():
        ops.lora(x, a, b, ids, out=kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


@pytest.mark.parametrize("name", STRUCTURES)
def test_ids_that_nobody_checked_read_nothing(name, monkeypatch):
    """As on a GPU: out of range, on either side, is like -1."""
    monkeypatch.setattr(module, "check_values", lambda *args: None)
    x, a, b, _, base = case(MIXED)
    ids = torch.tensor([2, -7, 0, 2, 3, 4, 2**40])
    expected = exact(x, a, b, ids, base)
    result = KERNEL.run(STRUCTURES[name], x, a, b, ids, base)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_launch_finds_what_was_compiled_ahead(tmp_path):
    cases = [
        ("T=20,K=128,N=96,R=16,A=4,dtype=float16,base=true", "h100", {}),
        ("T=5,K=70,N=33,R=3,A=40,dtype=bfloat16,layout=ts,aligned=false", "a100", {"STRUCTURE": "fused"}),
        ("T=40,K=128,N=96,R=8,A=4,dtype=float16", "mi300x", {"STRUCTURE": "grouped", "BLOCK_R": 16}),
    ]
    with Worker({"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": str(tmp_path)}) as worker:
        for text, profile, changes in cases:
            task = job("lora", text, profile, **changes)
            ahead, launches, compiled_again = worker.call(compile_and_launch, *task, timeout_s=120)
            assert launches == ahead and len(launches) == (1 if "fused" in str(changes) else 2)
            assert compiled_again == 0


def test_the_default_is_by_token_while_decoding_and_splits_k():
    h100 = device.profile("h100")
    for text, structure, splits in (
        # 264 programs wanted: of 32 tokens 8 parts of 16 steps; of 64 tiles 4.
        ("T=32,K=4096,N=4096,R=16,A=1024,dtype=bfloat16", "gathered", 8),
        ("T=4096,K=4096,N=4096,R=16,A=1024,dtype=bfloat16", "runs", 4),
    ):
        config = SPACE.default(KERNEL.parse(text), h100)
        assert (config["STRUCTURE"], config["SPLIT_K"]) == (structure, splits)


def test_the_space_says_why_not():
    h100 = device.profile("h100")
    large = KERNEL.parse("T=4096,K=4096,N=4096,R=64,A=8,dtype=float16")
    small = KERNEL.parse("T=16,K=4096,N=4096,R=128,A=8,dtype=float16")
    for problem, change, why in (
        (large, {"STRUCTURE": "gathered", "BLOCK_M": 16}, "reads weights for each of T=4096 tokens, over 2048"),
        (large, {"BLOCK_R": 8}, "BLOCK_R=8 is not within 16 and 64"),
        (large, {"SPLIT_K": 16, "BLOCK_K": 512}, "at most 256 in tiles"),
        (small, {"STRUCTURE": "fused", "BLOCK_R": 1, "SPLIT_K": 1}, "takes ranks up to 64"),
        (small, {"STRUCTURE": "grouped", "BLOCK_M": 16}, "runs does the same"),
        (small, {"SPLIT_K": 16, "BLOCK_K": 512}, "SPLIT_K=16 is over the 8 steps"),
    ):
        config = Config({**SPACE.default(problem, h100), **change})
        assert why in SPACE.why_not(config, problem, h100)
