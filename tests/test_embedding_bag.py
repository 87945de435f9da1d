"""``embedding_bag`` and its gradients against one bag at a time in float64."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from triton.runtime.interpreter import InterpreterBuilder

import autotune
from autotune import device, ops, registry
from autotune.data import Config
from autotune.kernels._embedding_bag_arguments import Bags
from autotune.verify import widened
from autotune.worker import Worker
from tests.test_compile import compile_and_launch, job

FORWARD, BACKWARD = (registry.load(name) for name in ("embedding_bag", "embedding_bag_backward"))
CONFIG = Config(BLOCK_D=64, BAGS=8, UNROLL=4, SPLIT=1, CACHE="", num_warps=4)
SPLIT = Config({**CONFIG, "SPLIT": 4, "UNROLL": 2})
#: Rows of two windows and more.
GRADIENT = Config(BLOCK_D=64, PIECES=16, UNROLL=4, CHUNK=16, num_warps=4)
NAN = float("nan")
GENERATOR = torch.Generator().manual_seed(0)
#: A bag of none, of one, of many; the last one of none.
OFFSETS = [0, 3, 3, 4, 21, 23, 23]
ENTRIES = 23


def draw(*sizes, dtype=torch.float32):
    return torch.randn(*sizes, generator=GENERATOR).to(dtype)


def indices_of(rows, count=ENTRIES, dtype=torch.int64):
    return torch.randint(0, rows, (count,), generator=GENERATOR).to(dtype)


def ranges(bags):
    """(first entry, past the last one) of each bag."""
    if bags.offsets is None:
        count, length = bags.indices.shape
        return [(bag * length, (bag + 1) * length) for bag in range(count)]
    edges = bags.offsets.tolist()
    return list(
        itertools.pairwise(edges if bags.include_last_offset or not edges else [*edges, bags.indices.numel()])
    )


def exact(weight, bags):
    """One bag at a time, in float64; differentiable."""
    results, indices = [], bags.indices.reshape(-1).tolist()
    tables = [0, weight.shape[0]] if bags.tables is None else bags.tables.tolist()
    padding = bags.padding_idx
    if padding is not None and padding < 0:
        padding += weight.shape[0]
    spans = ranges(bags)
    weights = None if bags.per_sample_weights is None else bags.per_sample_weights.reshape(-1).double()
    for bag, (start, end) in enumerate(spans):
        base = tables[bag // max(1, len(spans) // (len(tables) - 1))]
        entries = [entry for entry in range(start, end) if indices[entry] != padding]
        total = torch.zeros(weight.shape[1], dtype=torch.float64)
        for entry in entries:
            row = weight[base + indices[entry]].double()
            total = total + (row if weights is None else row * weights[entry])
        results.append(total / max(1, len(entries)) if bags.mode == "mean" else total)
    result = torch.stack(results) if results else weight.new_zeros(0, weight.shape[1]).double()
    if bags.tables is None:
        return result
    return result.view(len(tables) - 1, len(spans) // (len(tables) - 1), weight.shape[1]).transpose(0, 1)


def assert_right(weight, bags, *configs):
    """The forward pass and the weight's gradient, and torch's ways to both."""
    expected, tolerance = exact(weight, bags), 2e-3 if weight.dtype == torch.float16 else 1e-5
    for config in configs or (CONFIG, SPLIT):
        result = FORWARD.kernel.run(config, weight, bags)
        assert result.dtype == weight.dtype and result.is_contiguous()
        torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        FORWARD.kernel.reference(weight, bags).double(), expected, rtol=tolerance, atol=tolerance
    )
    leaf = weight.detach().double().requires_grad_()
    d_out = draw(*expected.shape, dtype=weight.dtype)
    (gradient,) = torch.autograd.grad((exact(leaf, bags) * d_out).sum() + 0 * leaf.sum(), leaf)
    args = d_out, weight.shape[0], bags
    for compute in (lambda *args: BACKWARD.kernel.run(GRADIENT, *args), BACKWARD.kernel.reference):
        result = compute(*args)
        assert result.dtype == weight.dtype and result.is_contiguous()
        torch.testing.assert_close(result.double(), gradient, rtol=tolerance, atol=2 * tolerance)


KINDS = [
    {"mode": "sum"},
    {"mode": "mean"},
    {"mode": "sum", "per_sample_weights": "drawn"},
    {"mode": "mean", "padding_idx": 2},
    {"mode": "sum", "per_sample_weights": "drawn", "padding_idx": -3},
]
WAYS = {
    "offsets": lambda i: {"indices": i, "offsets": torch.tensor(OFFSETS)},
    "last offset": lambda i: {"indices": i.int(), "offsets": torch.tensor([*OFFSETS, ENTRIES]).int()},
    "two dimensions": lambda i: {"indices": i[:21].view(3, 7).int()},
}


@pytest.mark.parametrize(("way", "kind"), list(itertools.product(WAYS, range(len(KINDS)))))
def test_bags_are_torchs(way, kind):
    weight, options = draw(9, 5), dict(KINDS[kind])
    given = WAYS[way](indices_of(9)) | {"include_last_offset": "last" in way}
    if options.get("per_sample_weights"):
        options["per_sample_weights"] = draw(*given["indices"].shape)
    bags = Bags(**given, **options)
    assert_right(weight, bags, CONFIG if kind % 2 else SPLIT)
    named = dict(given, **options)
    expected = F.embedding_bag(named.pop("indices"), weight, named.pop("offsets", None), **named)
    torch.testing.assert_close(ops.embedding_bag(given["indices"], weight, bags.offsets, **named), expected)


@pytest.mark.parametrize("columns", [1, 3, 128, 200])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_any_number_of_columns(columns, dtype):
    weight = draw(6, columns).to(dtype)
    bags = Bags(indices_of(6, 12), torch.tensor([0, 5]), "mean", None, 1)
    if dtype == torch.float16:
        assert_right(weight, bags)
        return
    # Rounded once.
    wide = FORWARD.kernel.run(CONFIG, weight.float(), bags)
    assert torch.equal(FORWARD.kernel.run(CONFIG, weight, bags), wide.bfloat16())
    d_out = draw(2, columns).to(dtype)
    wide = BACKWARD.kernel.run(GRADIENT, d_out.float(), 6, bags)
    assert torch.equal(BACKWARD.kernel.run(GRADIENT, d_out, 6, bags), wide.bfloat16())


def test_no_bags_no_entries_and_one_huge_bag():
    weight, none = draw(7, 20), torch.tensor([], dtype=torch.int64)
    for bags in (Bags(none, none), Bags(none, torch.tensor([0]), include_last_offset=True)):
        assert FORWARD.kernel.run(CONFIG, weight, bags).shape == (0, 20)
        assert FORWARD.kernel.reference(weight, bags).shape == (0, 20)
        assert not BACKWARD.kernel.run(GRADIENT, draw(0, 20), 7, bags).any()
    for bags in (Bags(none, torch.tensor([0, 0]), "mean"), Bags(none.view(3, 0))):
        assert_right(weight, bags)
    assert_right(weight, Bags(indices_of(7, 100), torch.tensor([0])))


def test_a_row_in_one_bag_several_times_and_in_all_windows():
    """200 entries of row 3 are 13 windows; the others lie before and after it in the order of rows."""
    indices = torch.full((220,), 3)
    indices[::20], indices[7::50] = 1, 5
    bags = Bags(indices, torch.tensor([0, 150]), per_sample_weights=draw(220))
    assert_right(draw(6, 33), bags, SPLIT)


@pytest.mark.parametrize("chunk", [16, 32])
def test_a_window_may_end_where_a_row_does(chunk):
    indices = torch.cat([torch.full((length,), row) for row, length in enumerate((16, 16, 1, 31, 32, 5))])
    d_out = draw(indices.numel(), 8)
    expected = torch.zeros(6, 8).index_add_(0, indices, d_out)
    config = Config({**GRADIENT, "CHUNK": chunk})
    torch.testing.assert_close(BACKWARD.kernel.run(config, d_out, 6, Bags(indices[:, None])), expected)


def test_gradients_are_equal_from_run_to_run_and_exact_in_any_order():
    bags = Bags(indices_of(4, 150), torch.arange(0, 150, 3), padding_idx=0)
    d_out = draw(50, 24)
    first = BACKWARD.kernel.run(GRADIENT, d_out, 4, bags)
    assert torch.equal(BACKWARD.kernel.run(GRADIENT, d_out, 4, bags), first)
    # Whole numbers, whose sums know no rounding.
    whole = torch.randint(-9, 9, (50, 24), generator=GENERATOR).float()
    expected = BACKWARD.kernel.reference(whole, 4, bags)
    assert not expected[0].any() and expected[1].any()
    for chunk, pieces, unroll in ((16, 8, 16), (64, 4, 8), (256, 16, 32)):
        config = Config({**GRADIENT, "CHUNK": chunk, "PIECES": pieces, "UNROLL": unroll})
        assert torch.equal(BACKWARD.kernel.run(config, whole, 4, bags), expected)


def test_nan_stays_in_the_bags_that_use_its_row():
    weight = draw(8, 24)
    weight[5, 3] = weight[2] = NAN
    bags = Bags(torch.tensor([[0, 1], [5, 1], [2, 3], [4, 2]]), padding_idx=2)
    result = FORWARD.kernel.run(CONFIG, weight, bags)
    # Row 2 is padding, which is not looked at.
    assert result.isnan().nonzero().tolist() == [[1, 3]]
    d_out = draw(4, 24)
    d_out[3] = NAN
    assert BACKWARD.kernel.run(GRADIENT, d_out, 8, bags).isnan().any(1).nonzero().tolist() == [[4]]


#: The rows and multi-hot sizes of DLRM v2, but that no table has over 50 rows.
DLRM_ROWS = [50, 50, 50, 50, 50, 3, 50, 50, 50, 50, 50, 50, 10, 50, 50, 50, 4, 50, 14, 50, 50, 50, 50, 50, 50, 36]
DLRM_LENGTHS = [3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1]


def dlrm(bags_of_a_table, **options):
    tables = torch.tensor([0, *itertools.accumulate(DLRM_ROWS)])
    parts = [
        indices_of(rows, bags_of_a_table * length) for rows, length in zip(DLRM_ROWS, DLRM_LENGTHS, strict=True)
    ]
    lengths = torch.tensor([length for length in DLRM_LENGTHS for _ in range(bags_of_a_table)])
    bags = Bags(torch.cat(parts), lengths.cumsum(0) - lengths, **options, tables=tables)
    return draw(int(tables[-1]), 16), bags


def test_the_tables_of_dlrm_take_one_launch(monkeypatch):
    launches = []
    launch = autotune.kernels.embedding_bag.launch
    monkeypatch.setattr(
        "autotune.kernels.embedding_bag.launch", lambda *args, **more: launches.append(launch(*args, **more))
    )
    weight, bags = dlrm(2, mode="mean", padding_idx=4)
    result = FORWARD.kernel.run(CONFIG, weight, bags)
    assert len(launches) == 1 and result.shape == (2, 26, 16)
    assert_right(weight, bags, SPLIT)
    # Table by table, as torch has it.
    ends = [*bags.offsets.tolist()[::2], bags.indices.numel()]
    for table, (start, end) in enumerate(itertools.pairwise(ends)):
        rows = weight[bags.tables[table] : bags.tables[table + 1]]
        # One table has only 4 rows.
        padding = 4 if len(rows) > 4 else None
        alone = F.embedding_bag(bags.indices[start:end].view(2, -1), rows, mode="mean", padding_idx=padding)
        torch.testing.assert_close(result[:, table], alone)


def test_only_the_rows_asked_for_are_loaded_and_each_use_once(monkeypatch):
    weight, bags = draw(64, 24), Bags(indices_of(64, 40), torch.tensor([0, 9, 9, 30]), padding_idx=7)
    bags.indices[::6] = 7
    load, read = InterpreterBuilder.create_masked_load, []

    def watched(builder, pointers, mask, *rest):
        read.extend(pointers.data[mask.data].tolist())
        return load(builder, pointers, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", watched)
    for config in (Config({**CONFIG, "BLOCK_D": 16}), SPLIT):
        read.clear()
        FORWARD.kernel.run(config, weight, bags)
        places = [(address - weight.data_ptr()) // 4 for address in read]
        loaded = sorted(divmod(place, 24) for place in places if 0 <= place < weight.numel())
        asked = [row for row in bags.indices.tolist() if row != 7]
        assert loaded == sorted(itertools.product(asked, range(24)))


#: Fits 32 bits, twice it does not: were it larger, it would be a 64-bit argument, and every product with it right.
FAR = 2**30 + 64


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_are_found_with_64_bit_offsets(dtype):
    near = draw(4, 8)
    weight = torch.empty(3 * FAR + 32).as_strided((4, 8), (FAR, 1)).copy_(near)
    indices = torch.tensor([[3, 2], [1, 3]], dtype=dtype)
    torch.testing.assert_close(FORWARD.kernel.run(CONFIG, weight, Bags(indices)), near[indices.long()].sum(1))


def test_gradients_are_found_with_64_bit_offsets(monkeypatch):
    """A table of 2**31 elements that is not touched: only the rows asked for are ever written."""
    rows, columns = 2**22 + 8, 512
    monkeypatch.setattr(torch, "zeros", lambda *sizes, **kwargs: torch.empty(*sizes, **kwargs))
    indices = torch.tensor([[2**22 + 7], [3], [2**22 + 7]])
    d_out = draw(3, columns).half()
    gradient = BACKWARD.kernel.run(Config({**GRADIENT, "BLOCK_D": 512}), d_out, rows, Bags(indices))
    torch.testing.assert_close(gradient[2**22 + 7], d_out[0] + d_out[2])
    torch.testing.assert_close(gradient[3], d_out[1])


@pytest.mark.parametrize("strided", ["rows apart", "columns apart", "odd address"])
def test_any_strides(strided):
    weight, bags = draw(6, 20), Bags(indices_of(6, 12).view(3, 4), per_sample_weights=draw(3, 4))
    expected = FORWARD.kernel.run(CONFIG, weight, bags)
    other = {
        "rows apart": torch.nn.functional.pad(weight, (0, 7))[:, :20],
        "columns apart": weight.mT.contiguous().mT,
        "odd address": torch.cat([weight.new_zeros(1), weight.flatten()])[1:].view(6, 20),
    }[strided]
    apart = Bags(bags.indices.mT.contiguous().mT, per_sample_weights=bags.per_sample_weights.mT.contiguous().mT)
    assert torch.equal(FORWARD.kernel.run(CONFIG, other, apart), expected)
    d_out = draw(3, 20)
    gradient = BACKWARD.kernel.run(GRADIENT, d_out, 6, bags)
    assert torch.equal(BACKWARD.kernel.run(GRADIENT, d_out.mT.contiguous().mT, 6, apart), gradient)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_bags(data):
    pick = data.draw
    tables, bags_of_a_table = pick(st.integers(1, 3)), pick(st.integers(0, 3))
    rows = [pick(st.integers(1, 5)) for _ in range(tables)]
    lengths = [[pick(st.integers(0, 9)) for _ in range(bags_of_a_table)] for _ in rows]
    indices = torch.cat([indices_of(limit, sum(each)) for limit, each in zip(rows, lengths, strict=True)])
    offsets = torch.tensor([0, *itertools.accumulate(itertools.chain(*lengths))])
    last = pick(st.booleans())
    weighted = pick(st.booleans())
    bags = Bags(
        indices,
        offsets if last else offsets[:-1],
        "sum" if weighted else pick(st.sampled_from(["sum", "mean"])),
        draw(indices.numel()) if weighted else None,
        pick(st.sampled_from([None, 0])),
        last,
        torch.tensor([0, *itertools.accumulate(rows)]) if tables > 1 else None,
    )
    assert_right(draw(sum(rows), pick(st.integers(1, 20))), bags, pick(st.sampled_from([CONFIG, SPLIT])))


def test_all_gradients_through_the_operator():
    weight, weights = draw(9, 6).requires_grad_(), draw(ENTRIES).requires_grad_()
    indices, offsets = indices_of(9), torch.tensor(OFFSETS)
    loss = ops.embedding_bag(indices, weight, offsets, per_sample_weights=weights, padding_idx=1).square().sum()
    gradients = torch.autograd.grad(loss, (weight, weights), create_graph=True)
    leaves = weight.detach().double().requires_grad_(), weights.detach().double().requires_grad_()
    loss = exact(leaves[0], Bags(indices, offsets, "sum", leaves[1], 1)).square().sum()
    expected = torch.autograd.grad(loss, leaves, create_graph=True)
    torch.testing.assert_close([g.double() for g in gradients], list(expected), rtol=1e-4, atol=1e-4)
    # And once more, where the weights of the samples need none: for them torch has no second derivative either.
    twice = []
    for leaf, compute in ((weight, ops.embedding_bag), (leaves[0], lambda i, w, o, **k: exact(w, Bags(i, o, **k)))):
        options = {"per_sample_weights": weights.detach().to(leaf.dtype), "padding_idx": 1}
        loss = compute(indices, leaf, offsets, **options).pow(3).sum()
        (once,) = torch.autograd.grad(loss, leaf, create_graph=True)
        twice.append(torch.autograd.grad(once.square().sum(), leaf)[0].double())
    torch.testing.assert_close(*twice, rtol=1e-4, atol=1e-2)


def test_gradients_of_several_tables_and_of_a_frozen_one():
    weight, bags = dlrm(1)
    weights = draw(bags.indices.numel()).requires_grad_()
    for frozen in (True, False):
        leaf = weight.clone().requires_grad_(not frozen)
        result = ops.embedding_bag(bags.indices, leaf, bags.offsets, per_sample_weights=weights, tables=bags.tables)
        (d_weights,) = torch.autograd.grad(result.sum(), weights, retain_graph=True)
        starts = bags.tables[torch.repeat_interleave(torch.arange(26), torch.tensor(DLRM_LENGTHS))]
        torch.testing.assert_close(d_weights, weight[bags.indices + starts].sum(1))


def samples():
    packed, bags = dlrm(1)
    weights = draw(ENTRIES).requires_grad_()
    return {
        "weighted": (indices_of(9), draw(9, 6), torch.tensor(OFFSETS), "sum", weights, -1, False, None),
        "tables": (bags.indices, packed, bags.offsets, "mean", None, None, False, bags.tables),
    }


@pytest.mark.parametrize("name", ["weighted", "tables"])
def test_the_operators_pass_opcheck(name):
    indices, weight, *others = samples()[name]
    weight.requires_grad_()
    results = torch.library.opcheck(torch.ops.autotune.embedding_bag.default, (indices, weight, *others))
    assert set(results.values()) == {"SUCCESS"}
    d_out = draw(*Bags(indices, *others).shape(weight.shape[1])).to(weight.dtype)
    args = (d_out, indices, weight.shape[0], *others)
    results = torch.library.opcheck(torch.ops.autotune.embedding_bag_backward.default, args)
    assert set(results.values()) == {"SUCCESS"}


def test_it_trains_whole_under_compile():
    weight, weights = draw(9, 6).requires_grad_(), draw(ENTRIES).requires_grad_()
    indices, offsets = indices_of(9), torch.tensor(OFFSETS)

    def step(indices, weight, offsets, weights):
        return ops.embedding_bag(indices, weight, offsets, per_sample_weights=weights, padding_idx=-1).square() + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    args = (indices, weight, offsets, weights)
    got, expected = compiled(*args), step(*args)
    assert torch.equal(got, expected)
    for one, other in zip(
        torch.autograd.grad(got.sum(), (weight, weights)),
        torch.autograd.grad(expected.sum(), (weight, weights)),
        strict=True,
    ):
        assert torch.equal(one, other)


def bad():
    return {
        "indices": torch.tensor([0, 1, 2, 3]),
        "weight": torch.zeros(8, 4),
        "offsets": torch.tensor([0, 2]),
    }


REFUSED = {
    "indices is torch.float32; it must be int32 or int64": {"indices": torch.zeros(4)},
    "indices has shape (1, 2, 2)": {"indices": torch.zeros(1, 2, 2).long()},
    "indices has 1 dimensions and no offsets": {"offsets": None},
    "indices has 2 dimensions and offsets": {"indices": torch.zeros(2, 2).long()},
    "offsets is torch.int32 but indices is torch.int64": {"offsets": torch.tensor([0, 2]).int()},
    "offsets has shape (1, 2)": {"offsets": torch.tensor([[0, 2]])},
    "offsets has shape (0,)": {"offsets": torch.zeros(0).long(), "include_last_offset": True},
    "mode is 'max'; embedding_bag takes 'sum' and 'mean'": {"mode": "max"},
    "they go with 'sum' alone": {"mode": "mean", "per_sample_weights": torch.ones(4)},
    "per_sample_weights has shape (3,); indices has (4,)": {"per_sample_weights": torch.ones(3)},
    "per_sample_weights is torch.float64 but weight is": {"per_sample_weights": torch.ones(4).double()},
    "weight has shape (8,); it must be (rows, columns)": {"weight": torch.zeros(8)},
    "weight is torch.int64; it must be float16": {"weight": torch.zeros(8, 4).long()},
    "weight is torch.sparse_coo; it must be dense": {"weight": torch.zeros(8, 4).to_sparse()},
    "padding_idx is 8; with these tables it must be from -8 to 7": {"padding_idx": 8},
    "padding_idx is -1; with these tables it must be from 0": {"padding_idx": -1, "tables": torch.tensor([0, 8])},
    "tables is torch.int32 of shape (2,)": {"tables": torch.tensor([0, 8]).int()},
    "there are 2 bags; they must be a multiple of the 3 tables": {"tables": torch.tensor([0, 1, 2, 8])},
    "offsets is on meta but weight is on cpu": {"offsets": torch.tensor([0, 2], device="meta")},
    "indices[2] is 8; the table has rows 0 to 7": {"indices": torch.tensor([0, 1, 8, -1])},
    "indices[0] is -1": {"indices": torch.tensor([-1, 1, 8, -1])},
    "indices[1] is 1; the table has rows 0 to 0": {"tables": torch.tensor([0, 1, 8])},
    "offsets begin with 1": {"offsets": torch.tensor([1, 2])},
    "offsets[2] is 1, under the one before": {"offsets": torch.tensor([0, 2, 1])},
    "offsets end at 5; indices has 4 entries": {"offsets": torch.tensor([0, 5])},
    "offsets end at 3; indices has 4 entries": {"offsets": torch.tensor([0, 3]), "include_last_offset": True},
    "indices has 4 entries and there are no bags": {"offsets": torch.tensor([0]), "include_last_offset": True},
    "tables[2] is 3, under the one before": {"tables": torch.tensor([0, 4, 3]), "padding_idx": 0},
    "tables end at 7; weight has 8 rows": {"tables": torch.tensor([0, 2, 7])},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_named(message):
    given = bad() | REFUSED[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.embedding_bag(**given)
    weight, indices = given.pop("weight"), given.pop("indices")
    provider = FORWARD.kernel.providers["torch"].run
    for compute in (lambda *args: FORWARD.kernel.run(CONFIG, *args), FORWARD.kernel.reference, provider):
        with pytest.raises(ValueError, match=re.escape(message)):
            compute(weight, Bags(indices, **given))


def test_the_backward_pass_checks_its_gradient():
    indices, offsets = bad()["indices"], bad()["offsets"]
    kernel = BACKWARD.kernel
    for compute in (
        lambda *args: ops.embedding_bag_backward(*args, offsets),
        lambda d_out, indices, rows: kernel.providers["torch"].run(d_out, rows, Bags(indices, offsets)),
    ):
        with pytest.raises(
            ValueError, match=re.escape("d_out has shape (3, 4); with these bags it must be (2, 4)")
        ):
            compute(torch.zeros(3, 4), indices, 8)
        with pytest.raises(ValueError, match=re.escape("indices[3] is 3; the table has rows 0 to 2")):
            compute(torch.zeros(2, 4), indices, 3)


def test_torchs_module_is_recorded_and_routed():
    layer = torch.nn.EmbeddingBag(20, 8, mode="sum", padding_idx=0)
    indices, offsets = indices_of(20), torch.tensor(OFFSETS)
    with autotune.record() as workload:
        expected = layer(indices, offsets)
    ((kernel, problem),) = workload.calls
    assert kernel == "embedding_bag"
    assert str(problem) == "B=7,V=20,D=8,L=4,dtype=float32,padded=true,ragged=true"
    with autotune.route():
        routed = layer(indices, offsets)
    torch.testing.assert_close(routed, expected)
    assert "autotune" in routed.grad_fn.name()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mode": "max"}, "the mode is max"),
        ({"max_norm": 1.0}, "max_norm changes the table"),
        ({"sparse": True}, "the gradient is to be sparse"),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq is on"),
    ],
)
def test_what_is_not_served_stays_torchs(options, why):
    torch.manual_seed(0)
    layer = torch.nn.EmbeddingBag(20, 8, **options)
    indices = indices_of(20, 20).view(4, 5)
    expected = layer(indices)
    with autotune.record() as workload:
        layer(indices)
    assert ("embedding_bag", why) in workload.skipped
    with autotune.route():
        assert torch.equal(layer(indices), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(indices).dtype == torch.float32


def test_providers_give_what_the_kernels_give():
    for name, loaded in (("embedding_bag", FORWARD), ("embedding_bag_backward", BACKWARD)):
        provider = loaded.kernel.providers["torch"]
        for text in loaded.kernel.problems:
            problem = loaded.kernel.parse(text)
            if provider.unavailable(problem, device.INTERPRETER):
                assert name == "embedding_bag" and "T=5" in text and "padded" in text
                continue
            # On a CPU torch adds up gradients of 16 bits in 16 bits.
            args = widened(loaded.kernel.inputs(problem, 3, "cpu"))
            result, expected = provider.run(*args), loaded.kernel.reference(*args)
            assert result.is_contiguous() and result.dtype == expected.dtype
            torch.testing.assert_close(result, expected)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with Worker({"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}) as worker:
        yield worker


@pytest.mark.parametrize(
    ("name", "text", "profile", "changes"),
    [
        ("embedding_bag", "B=4,V=90,D=40,L=64,dtype=float16,mode=mean,padded=true", "h100", {"SPLIT": 4}),
        ("embedding_bag", "B=5,V=90,D=1,L=2,dtype=bfloat16,T=3,ragged=true,index=int32", "mi300x", {"SPLIT": 1}),
        ("embedding_bag", "B=4,V=9,D=24,L=1,dtype=float32,weighted=true,aligned=false", "a100", {"SPLIT": 1}),
        ("embedding_bag_backward", "B=64,V=90,D=64,L=4,dtype=float16,mode=mean,ragged=true", "h100", {}),
        ("embedding_bag_backward", "B=4,V=1,D=1,L=1,dtype=float32,index=int32", "h100", {}),
    ],
)
def test_a_launch_finds_what_was_compiled_ahead(worker, name, text, profile, changes):
    ahead, launches, compiled_again = worker.call(
        compile_and_launch, *job(name, text, profile, **changes), timeout_s=120
    )
    assert launches == ahead
    assert compiled_again == 0


def test_the_spaces_say_why_not():
    h100 = device.profile("h100")
    problem = FORWARD.kernel.parse("B=3,V=1000,D=24,L=8,dtype=float16")
    default = FORWARD.space.default(problem, h100)
    for change, why in (
        ({"BAGS": 8}, "BAGS=8 is over the 3 bags"),
        ({"BLOCK_D": 64}, "BLOCK_D=64 is mostly padding for D=24; 32 covers it"),
        ({"SPLIT": 4, "UNROLL": 8}, "UNROLL and SPLIT make 32 rows of a bag; L=8 has up to 8"),
        ({"num_warps": 8, "BAGS": 1, "UNROLL": 1}, "8 warps gather 64 B at a time"),
    ):
        assert why in FORWARD.space.why_not(Config({**default, **change}), problem, h100)
    problem = BACKWARD.kernel.parse("B=3,V=1000,D=24,L=8,dtype=float16")
    default = BACKWARD.space.default(problem, h100)
    for change, why in (
        ({"CHUNK": 64}, "CHUNK=64 is over the 24 entries"),
        ({"UNROLL": 32, "CHUNK": 16}, "UNROLL=32 is over CHUNK=16"),
    ):
        assert why in BACKWARD.space.why_not(Config({**default, **change}), problem, h100)


def test_the_default_splits_only_what_leaves_the_device_idle():
    h100 = device.profile("h100")
    for text, split in (
        ("B=8192,V=1000000,D=128,L=32,dtype=float16", 1),
        # 528 programs wanted, of which a split of 32 rows is the smallest.
        ("B=1,V=1000000,D=128,L=1000000,dtype=float16", 32),
        ("B=1,V=1000000,D=128,L=128,dtype=float16", 4),
    ):
        assert FORWARD.space.default(FORWARD.kernel.parse(text), h100)["SPLIT"] == split
