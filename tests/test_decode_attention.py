"""``decode_attention`` against the textbook in float64: lengths, pages, splits, windows, what it must refuse."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime.interpreter import InterpreterBuilder

from autotune import device, ops, registry
from autotune.compile import compile_config, refused
from autotune.data import Config
from autotune.search_spaces.decode_attention import shared_bytes
from autotune.worker import Worker
from tests.test_compile import DEVICES, compile_and_launch, job

LOADED = registry.load("decode_attention")
KERNEL, SPACE = LOADED.kernel, LOADED.space
CONFIG = Config(SPLIT_KV=2, BLOCK_H=16, BLOCK_N=32, num_warps=4, num_stages=2)
INF, NAN = float("inf"), float("nan")


def case(
    lengths, *, heads=2, kv_heads=1, size=16, values=None, page=None, capacity=96, dtype=torch.float16, seed=0
):
    """Arguments whose cache is NaN, and whose table is -1, wherever a sequence has no key."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator).to(dtype)

    batch, values = len(lengths), values or size
    q, k, v = (
        draw(batch, 1, heads, size),
        draw(batch, capacity, kv_heads, size),
        draw(batch, capacity, kv_heads, values),
    )
    for number, length in enumerate(lengths):
        k[number, length:] = v[number, length:] = NAN
    seq_lens = torch.tensor(lengths, dtype=torch.int32)
    if page is None:
        return q, k, v, seq_lens
    order = torch.randperm(batch * capacity // page, generator=generator)
    # Page `order[i]` of the pool is the i-th of the sequences laid one after another.
    k, v = (cache.view(-1, page, *cache.shape[2:])[order.argsort()] for cache in (k, v))
    table = order.view(batch, capacity // page).int()
    table[torch.arange(table.shape[1]) >= seq_lens[:, None] / page] = -1
    return q, k, v, seq_lens, table


def exact(q, k, v, seq_lens, table=None, scale=None, window=None):
    """One head, one sequence at a time, in float64."""
    batch, _, heads, size = q.shape
    out = torch.zeros(batch, 1, heads, v.shape[3], dtype=torch.float64)
    for number, length in enumerate(seq_lens.tolist()):
        oldest = max(0, length - (window or length))
        for head in range(heads if length else 0):
            kv_head = head // (heads // k.shape[2])

            def seen(cache, number=number, kv_head=kv_head, oldest=oldest, length=length):
                if table is None:
                    return cache[number, oldest:length, kv_head].double()
                places = [divmod(key, k.shape[1]) for key in range(oldest, length)]
                return torch.stack([cache[table[number, page], row, kv_head] for page, row in places]).double()

            scores = seen(k) @ q[number, 0, head].double() * (size**-0.5 if scale is None else scale)
            out[number, 0, head] = scores.softmax(0) @ seen(v)
    return out


def assert_right(config, *args, rtol=2e-3):
    result = KERNEL.run(config, *args)
    expected = exact(*args)
    assert result.dtype == args[0].dtype and result.is_contiguous()
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=rtol)
    return result


@pytest.mark.parametrize(("page", "splits"), [(None, 1), (None, 4), (1, 4), (16, 1), (96, 4)])
def test_lengths_from_none_to_the_capacity(page, splits):
    """Blocks of 32 keys: within a page of 96, and over many pages of 1 and 16."""
    args = case([0, 1, 33, 96], page=page)
    result = assert_right(Config({**CONFIG, "SPLIT_KV": splits}), *args)
    assert not result[0].any()
    torch.testing.assert_close(KERNEL.reference(*args).double(), exact(*args), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (8, 2), (5, 1), (16, 2), (20, 1)])
def test_heads_of_a_group_share_their_keys(heads, kv_heads):
    """The group of 20 takes two tiles of 16, or one of 32."""
    args = case([70], heads=heads, kv_heads=kv_heads)
    for block in {16, 16 if heads < 20 else 32}:
        assert_right(Config({**CONFIG, "BLOCK_H": block}), *args)


def test_float32_takes_fewer_heads_a_program():
    args = case([45, 70], heads=6, kv_heads=2, dtype=torch.float32)
    for block in (1, 2, 4):
        assert_right(Config({**CONFIG, "BLOCK_H": block}), *args, rtol=1e-5)


@pytest.mark.parametrize("page", [None, 16, 64])
@pytest.mark.parametrize("window", [1, 64, 65, 127])
def test_a_window_hides_all_but_the_last_keys(page, window):
    """What it hides is not read: neither its pages nor, in a page that both share, its keys."""
    q, k, v, seq_lens, *table = case([128, 90], page=page, capacity=128)
    hidden = seq_lens - window
    if table:
        table[0][torch.arange(1, table[0].shape[1] + 1) * page <= hidden[:, None]] = -1
    else:
        for cache, (number, last) in itertools.product((k, v), enumerate(hidden.tolist())):
            cache[number, : max(0, last)] = NAN
    args = (q, k, v, seq_lens, *(table or [None]), None, window)
    assert_right(Config({**CONFIG, "SPLIT_KV": 4 if window > 1 else 1}), *args)


def test_head_sizes_of_keys_and_values_may_differ():
    for size, values in ((16, 40), (40, 16), (192, 128), (1, 3)):
        assert_right(CONFIG, *case([50], size=size, values=values))


@pytest.mark.parametrize("page", [3, 16, 32])
def test_nothing_past_the_table_is_looked_up(page, monkeypatch):
    """Pages are looked up one block ahead, and where the table ends memory may: addresses are watched."""
    q, k, v, seq_lens, table = case([96], page=page)
    memory = torch.full((table.numel() + 64,), 2**30, dtype=torch.int32)
    memory[: table.numel()] = table[0]
    first, end = (memory.data_ptr() + 4 * place for place in (0, table.numel()))
    load, read = InterpreterBuilder.create_masked_load, []

    def watched(builder, pointers, mask, *rest):
        read.extend(pointers.data[mask.data].tolist())
        return load(builder, pointers, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", watched)
    for splits in (1, 4):
        config = Config({**CONFIG, "SPLIT_KV": splits})
        assert_right(config, q, k, v, seq_lens, memory[None, : table.numel()])
    assert max(address for address in read if first <= address < first + 4 * len(memory)) == end - 4


def test_the_number_of_splits_changes_only_roundings():
    args = case([96], dtype=torch.float32)
    one, *others = (KERNEL.run(Config({**CONFIG, "SPLIT_KV": splits}), *args) for splits in (1, 2, 32))
    for other in others:
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_two_runs_are_equal_to_the_last_bit():
    args = case([96], page=16)
    config = Config({**CONFIG, "SPLIT_KV": 4})
    assert torch.equal(KERNEL.run(config, *args), KERNEL.run(config, *args))


def test_bfloat16_is_rounded_once():
    q, k, v, *rest = case([96, 33], dtype=torch.bfloat16)
    wide = KERNEL.run(CONFIG, q.float(), k.float(), v.float(), *rest)
    assert torch.equal(KERNEL.run(CONFIG, q, k, v, *rest), wide.bfloat16())


@pytest.mark.parametrize("scale", [0.0, -0.7, 30.0])
def test_any_finite_scale(scale):
    args = (*case([96], dtype=torch.float32), None, scale)
    assert_right(Config({**CONFIG, "SPLIT_KV": 4}), *args, rtol=1e-4)
    torch.testing.assert_close(KERNEL.reference(*args).double(), exact(*args), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cache", "bad"), [(1, NAN), (2, INF)])
def test_what_is_not_finite_stays_in_its_sequence_and_head(cache, bad):
    args = case([96, 20], heads=2, kv_heads=2, dtype=torch.float32)
    # Of 4 splits, one holds it.
    args[cache][0, 40, 1, 0] = bad
    result = KERNEL.run(Config({**CONFIG, "SPLIT_KV": 4}), *args)
    assert torch.equal(result.isfinite(), exact(*args).isfinite())
    assert not result[0, 0, 1].isfinite().all() and result[0, 0, 0].isfinite().all()


STRIDES = {
    "heads before keys": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "every other element": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "every other key": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "one part of a fused projection": lambda t: torch.cat([t, t, t], 2)[:, :, : t.shape[2]],
    "odd base address": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize(("name", "page"), list(zip(STRIDES, (None, 32, 32, None, 32), strict=True)))
def test_any_strides(name, page):
    q, k, v, *rest = case([64, 45], heads=2, kv_heads=2, page=page, capacity=64)
    expected = KERNEL.run(CONFIG, q, k, v, *rest)
    # The lengths, and the rows of the table, out of the columns of something wider.
    rest = [torch.stack([t, t + 1], -1)[..., 0] for t in rest]
    assert torch.equal(KERNEL.run(CONFIG, *map(STRIDES[name], (q, k, v)), *rest), expected)
    assert torch.equal(KERNEL.run(CONFIG, q, k, v, *(t.long() for t in rest)), expected)


#: Fits 32 bits, twice it does not: were it larger, it would be a 64-bit argument, and every product with it right.
FAR = 2**30 + 64


def far_apart(near, dimension):
    """``near`` with a stride of FAR elements in a dimension, in memory that is not touched."""
    strides = list(near.stride())
    strides[dimension] = FAR
    storage = torch.empty((near.shape[dimension] - 1) * FAR + near.numel(), dtype=near.dtype)
    return storage.as_strided(near.shape, strides).copy_(near)


@pytest.mark.parametrize(("page", "dimension"), [(None, 0), (None, 1), (None, 2), (1, 0), (32, 0), (3, 1)])
def test_offsets_are_64_bit(page, dimension):
    """Of the batch or page, of the key and of the head; a page of 32 is one number for a block of 16 keys."""
    lengths, capacity = ([80], 96) if page == 32 else ([3], 3) if page else ([3, 1, 2], 3)
    q, k, v, *rest = case(lengths, heads=3, kv_heads=3, capacity=capacity, page=page)
    assert k.shape[dimension] == 3
    args = (q, far_apart(k, dimension), far_apart(v, dimension), *rest)
    assert_right(Config({**CONFIG, "BLOCK_N": 16, "SPLIT_KV": 1}), *args)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_shape(data):
    draw = data.draw
    page = draw(st.sampled_from([None, 1, 3, 8, 32]))
    capacity = draw(st.integers(0, 5)) * (page or 17)
    lengths = draw(st.lists(st.integers(0, capacity), min_size=0, max_size=2))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 5))
    args = case(
        lengths,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        size=draw(st.integers(1, 33)),
        values=draw(st.integers(1, 33)),
        page=page,
        capacity=capacity,
        seed=draw(st.integers(0, 99)),
    )
    args = (*args, *([None] if page is None else []), None, draw(st.sampled_from([None, 1, 7, 200])))
    config = Config(
        {**CONFIG, "SPLIT_KV": draw(st.sampled_from([1, 2, 4])), "BLOCK_N": draw(st.sampled_from([16, 64]))}
    )
    assert_right(config, *args)


def test_the_baseline_is_right_and_work_counts_what_is_read():
    for text in KERNEL.problems:
        problem = KERNEL.parse(text)
        args = KERNEL.inputs(problem, 5, "cpu")
        torch.testing.assert_close(KERNEL.baseline(*args).double(), exact(*args), rtol=1e-2, atol=1e-2)
    # Lengths 1 and 20 in B=2, of which the window of 10 shows 11: 11 x 3 kv heads of 2 x 16, and 6 heads of 2 x 16.
    work = KERNEL.work(KERNEL.parse("B=2,H=6,HKV=3,SK=20,D=16,dtype=float16,window=10"))
    assert (work.flops, work.bytes) == (4 * 11 * 6 * 16, 2 * (11 * 3 + 2 * 6) * 32)


REFUSED = {
    "q has shape (2, 2, 16)": lambda a: {"q": a["q"][:, 0]},
    "2 tokens a sequence": lambda a: {"q": a["q"].expand(-1, 2, -1, -1)},
    "all but their head_dim must be equal": lambda a: {"v_cache": a["v_cache"][:, :-1]},
    "q has head_dim 16 and k_cache 8": lambda a: {"k_cache": a["k_cache"][..., :8]},
    "q has 3 heads and k_cache 2": lambda a: {"q": torch.zeros(2, 1, 3, 16, dtype=torch.float16)},
    "seq_lens has shape (1,)": lambda a: {"seq_lens": a["seq_lens"][:1]},
    "seq_lens is torch.float32": lambda a: {"seq_lens": a["seq_lens"].float()},
    "block_table is torch.int16": lambda a: {"block_table": a["block_table"].short()},
    "block_table has shape (6,)": lambda a: {"block_table": a["block_table"][0]},
    "k_cache has 12 sequences and q 2": lambda a: {"block_table": None},
    "a page must hold at least one key": lambda a: {n: a[n][:, :0] for n in ("k_cache", "v_cache")},
    "v_cache is torch.float32 but q is torch.float16": lambda a: {"v_cache": a["v_cache"].float()},
    "seq_lens is on meta but q is on cpu": lambda a: {"seq_lens": a["seq_lens"].to("meta")},
    "window is 0": lambda a: {"window": 0},
    "scale is inf": lambda a: {"scale": INF},
    "seq_lens[1] is 97": lambda a: {"seq_lens": torch.tensor([5, 97])},
    "seq_lens[0] is -1": lambda a: {"seq_lens": torch.tensor([-1, 96])},
    "block_table[1, 2] is 12": lambda a: {
        "block_table": a["block_table"].index_put(
            (torch.tensor(1), torch.tensor(2)), torch.tensor(12, dtype=torch.int32)
        )
    },
    "block_table[0, 5] is -1": lambda a: {"seq_lens": torch.tensor([96, 96])},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_named_before_anything_runs(message):
    names = ("q", "k_cache", "v_cache", "seq_lens", "block_table")
    good = dict(zip(names, case([70, 96], heads=2, kv_heads=2, page=16), strict=True))
    bad = {**good, **REFUSED[message](good)}
    for compute in (lambda **kwargs: KERNEL.run(CONFIG, **kwargs), KERNEL.reference, ops.decode_attention):
        with pytest.raises(ValueError, match=re.escape(message)):
            compute(**bad)


@pytest.mark.parametrize("text", ["HKV=3", "DV=64", "SK=100,page=16", "SK=100,window=100"])
def test_problems_have_one_spelling(text):
    values = {"B": 1, "H": 4, "HKV": 2, "SK": 64, "D": 64, "dtype": "float16"}
    for pair in text.split(","):
        name, value = pair.split("=")
        values[name] = int(value)
    with pytest.raises(ValueError, match=r"must divide|leave it out"):
        KERNEL.make(**values)
    assert KERNEL.problem(*case([9], size=64, capacity=64), window=64)["SK"] == 64


SAMPLES = {
    "contiguous": lambda: (*case([40, 0], heads=4, kv_heads=2), None, 0.2, None),
    "paged, windowed": lambda: (*case([40, 33], values=24, page=16), None, 20),
    "bfloat16": lambda: case([40], dtype=torch.bfloat16),
    # Torch computes it.
    "float64": lambda: case([40], dtype=torch.float64, page=16),
    "no sequence": lambda: case([]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_operator_passes_opcheck(name):
    results = torch.library.opcheck(torch.ops.autotune.decode_attention.default, SAMPLES[name]())
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", ["contiguous", "paged, windowed"])
def test_it_traces_whole_under_compile(name):
    q, k, v, seq_lens, table, scale, window = (*SAMPLES[name](), None, None)[:7]

    def step(q, k, v, seq_lens, table):
        return ops.decode_attention(q, k, v, seq_lens, block_table=table, scale=scale, window=window).flatten(2) + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    args = (q, k, v, seq_lens, table)
    assert torch.equal(compiled(*args), step(*args))
    expected = exact(*args, scale, window).flatten(2) + 1
    torch.testing.assert_close(step(*args).double(), expected, rtol=2e-3, atol=2e-3)


LARGE = [
    "B=16,H=5,HKV=1,SK=4096,D=128,dtype=float16,page=16,window=1024",
    "B=1,H=128,HKV=1,SK=4096,D=192,DV=128,dtype=bfloat16,page=64",
    "B=2,H=6,HKV=2,SK=1000,D=200,dtype=float32",
]


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with Worker({"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}) as worker:
        yield worker


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("text", LARGE)
def test_the_default_compiles_fits_and_hardly_spills(worker, text, arch):
    problem, where = KERNEL.parse(text), device.profile(DEVICES[arch])
    config = SPACE.default(problem, where)
    outcome = worker.call(compile_config, LOADED.entry, problem, config, where, timeout_s=120)
    assert outcome.resources.shared_bytes <= shared_bytes(config, problem, where)
    assert refused(outcome, where, "test") is None
    assert (outcome.resources.spill_bytes or 0) <= 64


@pytest.mark.parametrize(
    ("text", "profile", "splits"),
    [
        ("B=2,H=4,HKV=2,SK=64,D=32,dtype=float16", "h100", 1),
        ("B=2,H=4,HKV=1,SK=64,D=40,DV=24,dtype=float16,page=16,window=17,layout=bhsd", "h100", 2),
        ("B=1,H=2,HKV=2,SK=50,D=24,dtype=float32,page=1,layout=s,aligned=false", "a100", 2),
        ("B=1,H=2,HKV=2,SK=64,D=32,dtype=bfloat16", "mi300x", 4),
    ],
)
def test_a_launch_finds_what_was_compiled_ahead(worker, text, profile, splits):
    task = job("decode_attention", text, profile, SPLIT_KV=splits)
    ahead, launches, compiled_again = worker.call(compile_and_launch, *task, timeout_s=120)
    assert launches == ahead and len(launches) == (1 if splits == 1 else 2)
    assert compiled_again == 0


def test_the_default_splits_until_each_multiprocessor_has_two_programs():
    h100 = device.profile("h100")
    for text, splits in (
        # 264 programs wanted of 8 kv heads; 264 of 32 x 8; a block each; window of 100 in 3 blocks of 64.
        ("B=1,H=32,HKV=8,SK=65536,D=128,dtype=bfloat16", 32),
        ("B=32,H=32,HKV=8,SK=65536,D=128,dtype=bfloat16", 1),
        ("B=1,H=32,HKV=8,SK=256,D=128,dtype=bfloat16", 4),
        ("B=1,H=32,HKV=8,SK=65536,D=128,dtype=bfloat16,window=100", 2),
    ):
        assert SPACE.default(KERNEL.parse(text), h100)["SPLIT_KV"] == splits


def test_the_space_says_why_not():
    problem, h100 = KERNEL.parse("B=1,H=12,HKV=4,SK=100,D=128,dtype=float16"), device.profile("h100")
    default = SPACE.default(problem, h100)
    for change, why in (
        ({"SPLIT_KV": 4}, "SPLIT_KV=4 is over the 2 blocks of 64 keys"),
        ({"BLOCK_H": 32}, "mostly padding for 3 heads a kv head; 16 covers them"),
        ({"BLOCK_N": 128, "num_warps": 1, "SPLIT_KV": 1}, "values a thread, over 255"),
    ):
        assert why in SPACE.why_not(Config({**default, **change}), problem, h100)
    single = KERNEL.parse("B=1,H=64,HKV=2,SK=4096,D=256,dtype=float32")
    wide = Config({**SPACE.default(single, h100), "BLOCK_H": 32, "BLOCK_N": 64})
    assert "unrolls 2048 float32 multiply-adds" in SPACE.why_not(wide, single, h100)
