"""Products with a block-sparse matrix: patterns, sides, structures, traffic, gradients."""

import copy
import io
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import device, dispatch, ops, registry
from autotune.data import Choice, Config, UsageError
from autotune.kernels import _bsr_matmul_kept, _bsr_matmul_reference
from autotune.kernels._bsr import BsrWeight
from autotune.kernels._bsr_matmul_kept import kept, semi_structured
from autotune.kernels._bsr_matmul_reference import PROVIDERS
from autotune.kernels._gemm_reference import activate
from tests.traffic import recorded

LOADED = registry.load("bsr_matmul")
STRUCTURES = ("row", "ordered", "persistent", "split")


def config(structure="row", tile=(32, 16, 16), split=2):
    sizes = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), tile, strict=True))
    rest = {"SPLIT": split, "PER_SM": 1, "GROUP_M": 4, "num_warps": 4, "num_stages": 2}
    return Config(STRUCTURE=structure, **sizes, **rest)


def weight_of(pattern, block=(16, 32), dtype=torch.float32):
    """A weight with blocks where ``pattern`` (block rows, block columns) is true."""
    pattern = torch.as_tensor(pattern, dtype=torch.bool)
    crow = torch.cat([torch.zeros(1, dtype=torch.long), pattern.sum(1).cumsum(0)])
    values = torch.randn(int(pattern.sum()), *block).to(dtype)
    shape = pattern.shape[0] * block[0], pattern.shape[1] * block[1]
    return BsrWeight(crow, pattern.nonzero()[:, 1].contiguous(), values, shape)


def whole(weight):
    """The dense matrix by a loop, which has nothing in common with the code under test."""
    dense = torch.zeros(weight.shape, dtype=weight.values.dtype)
    rows, columns = weight.block
    for row in range(len(weight.crow) - 1):
        for place in range(int(weight.crow[row]), int(weight.crow[row + 1])):
            top, left = row * rows, int(weight.columns[place]) * columns
            dense[top : top + rows, left : left + columns] = weight.values[place]
    return dense


def close(result, expected, rtol=1e-4):
    assert result.shape == expected.shape
    torch.testing.assert_close(result.double(), expected.double(), rtol=rtol, atol=rtol)


#: Four block rows: short, empty, one full, short.
SKEWED = [[0, 1, 0, 0, 0, 0], [0] * 6, [1] * 6, [0, 0, 1, 0, 0, 1]]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures_agree_on_rows_of_any_length(structure, transposed):
    weight, activation = weight_of(SKEWED), "gelu"
    outputs, inner = weight.shape[::-1] if transposed else weight.shape
    x, bias = torch.randn(37, inner), torch.randn(outputs)
    result = LOADED.kernel.run(config(structure), x, weight, bias, activation, transposed)
    product = x @ (whole(weight) if transposed else whole(weight).T)
    close(result, torch.nn.functional.gelu(product + bias))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("pattern", [[[0, 0]] * 3, [[1, 1]] * 3, [[1, 1], [0, 0], [0, 0]]], ids=str)
def test_no_block_all_blocks_and_one_full_row(pattern, structure):
    weight, x = weight_of(pattern), torch.randn(5, 64)
    bias = torch.randn(48)
    close(LOADED.kernel.run(config(structure), x, weight, bias), x @ whole(weight).T + bias)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_random_patterns(data):
    rows, across = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    block = data.draw(st.sampled_from([(16, 16), (16, 64), (64, 16), (32, 32), (128, 16)]))
    cells = data.draw(st.lists(st.booleans(), min_size=rows * across, max_size=rows * across))
    transposed, structure = data.draw(st.booleans()), data.draw(st.sampled_from(STRUCTURES))
    weight = weight_of(torch.tensor(cells).view(rows, across), block)
    x = torch.randn(data.draw(st.integers(1, 20)), weight.shape[0 if transposed else 1])
    result = LOADED.kernel.run(config(structure), x, weight, None, None, transposed)
    close(result, x @ (whole(weight) if transposed else whole(weight).T))


@pytest.mark.parametrize("block", [32, 64, 128, 256])
def test_blocks_are_taken_in_parts(block):
    weight, x = weight_of([[1, 0], [1, 1]], (block, block)), torch.randn(16, 2 * block)
    for tile in ((16, block // 2, block), (16, block, block // 2)):
        close(LOADED.kernel.run(config(tile=tile), x, weight), x @ whole(weight).T)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_only_stored_blocks_are_loaded_each_once_a_tile_of_x(structure, transposed):
    """The values lie between NaN, and every program's loads of them are counted."""
    weight = weight_of(SKEWED)
    storage = torch.full((weight.values.numel() * 3,), float("nan"))
    values = storage[weight.values.numel() : -weight.values.numel()].view_as(weight.values)
    values.copy_(weight.values)
    weight = weight._replace(values=values)
    x = torch.randn(70, weight.shape[0 if transposed else 1])  # 3 tiles of 32 rows
    # A tile as wide as the block, in two steps along it.
    outputs, inner = weight.block[::-1] if transposed else weight.block
    tile = config(structure, (32, outputs, inner // 2 if inner > 16 else inner))
    with recorded() as traffic:
        result = LOADED.kernel.run(tile, x, weight, None, None, transposed)
    close(result, x @ (whole(weight) if transposed else whole(weight).T))
    beside = traffic.loads(storage).view(3, -1)
    assert not beside[0].any() and not beside[2].any()
    assert (traffic.loads(values) == 3).all()

    # By program: a row's blocks, or a chunk of at most two, and each of their elements once.
    programs = traffic.programs(values)
    if structure == "persistent":
        return
    assert all(set(blocks.values()) == {16 * 32} for blocks in programs.values())
    pattern = torch.tensor(SKEWED).T if transposed else torch.tensor(SKEWED)
    lengths = [length for length in pattern.sum(1).tolist() if length]
    if structure == "split":
        lengths = [min(2, length - start) for length in lengths for start in range(0, length, 2)]
    assert Counter(map(len, programs.values())) == Counter(3 * lengths)


def test_nan_meets_no_block_that_is_not_stored():
    weight, x = weight_of([[1, 0], [0, 1]], (16, 16)), torch.randn(4, 32)
    x[1, :16], x[2, 20] = float("nan"), float("inf")
    result = ops.bsr_matmul(x, weight)
    assert result[1, :16].isnan().all() and not result[2, 16:].isfinite().any()
    close(result[[0, 3]], (x @ whole(weight).T)[[0, 3]])
    close(result[1, 16:], (x[1, 16:] @ whole(weight)[16:, 16:].T))
    close(result[2, :16], (x[2, :16] @ whole(weight)[:16, :16].T))


@pytest.mark.parametrize("shape", [(64, 7), (2, 3, 64, 5), (0, 64, 7), (64, 0)], ids=str)
def test_from_the_left(shape):
    weight, bias = weight_of([[1, 0], [0, 0], [1, 1]]), torch.randn(48)
    for x in (torch.randn(shape), torch.randn(*shape[:-2], shape[-1], 64).mT):
        result = ops.bsr_matmul(weight, x, bias=bias, activation="relu")
        assert result.is_contiguous()
        close(result, torch.relu(whole(weight) @ x + bias[:, None]))


def test_from_the_left_nothing_is_copied_nor_looped(monkeypatch):
    weight, x = weight_of([[1, 0], [0, 1]]), torch.randn(3, 64, 40)
    launched = []
    module = __import__("sys").modules[LOADED.kernel.run.__module__]
    monkeypatch.setattr(module, "launch", lambda *args, **rest: launched.append(args))
    ops.bsr_matmul(weight, x)
    assert [args[2].data_ptr() for args in launched] == [x.data_ptr()]


@pytest.mark.parametrize("split", [slice(None), slice(1, 3)])
def test_batches_share_the_weight(split):
    weight, x = weight_of([[1, 0], [0, 1]]), torch.randn(2, 3, 5, 64)[:, :, split]
    close(ops.bsr_matmul(x, weight), x @ whole(weight).T)


@pytest.mark.parametrize("text", [problem for problem in LOADED.kernel.problems if "bfloat16" not in problem])
def test_providers_give_what_the_kernel_gives(text):
    problem = LOADED.kernel.parse(text)
    args = LOADED.kernel.inputs(problem, 5, "cpu")
    expected = LOADED.kernel.run(LOADED.space.default(problem, device.INTERPRETER), *args)
    for name, provider in PROVIDERS.items():
        if provider.unavailable(problem, device.INTERPRETER) is None:
            result = provider.run(*args)
            assert result.stride() == expected.stride(), name
            assert result.dtype == expected.dtype
            close(result, expected, rtol=1e-2)
    assert PROVIDERS["cusparselt"].unavailable(problem, device.INTERPRETER) is not None


@pytest.mark.parametrize(
    ("shape", "by_column"), [((48,), False), ((1, 5, 48), False), ((1, 5, 48), True), ((2, 3, 48), True)], ids=str
)
@pytest.mark.parametrize("name", PROVIDERS)
def test_providers_take_x_of_any_rank(name, by_column, shape, monkeypatch):
    """cuSPARSELt's product by the dense one, which takes matrices only too."""
    monkeypatch.setattr(_bsr_matmul_reference, "_compressed", BsrWeight.dense)
    weight, x, bias = weight_of([[1, 0, 1], [0, 1, 0]], (16, 16)), torch.randn(shape), torch.randn(32)
    result = PROVIDERS[name].run(x, weight, bias, "relu", False, by_column)
    close(result, torch.relu(x @ whole(weight).T + bias))
    assert (result.mT if by_column else result).is_contiguous()
    with pytest.raises(ValueError, match="bias is"):
        PROVIDERS[name].run(x, weight, bias[:1], None, False, by_column)


def test_a_dense_copy_is_kept_until_the_weight_changes():
    weight, made = weight_of([[1, 0], [0, 1]], (16, 16)), []

    def make(weight):
        made.append(weight.dense())
        return made[-1]

    assert kept(weight, make) is kept(weight, make)
    weight.values.mul_(2)
    assert torch.equal(kept(weight, make), whole(weight))
    weight.columns[:] = torch.tensor([1, 0])
    assert torch.equal(kept(weight, make), whole(weight)) and len(made) == 3
    weight.values.data = weight.values * 2
    assert torch.equal(kept(weight, make), whole(weight)) and len(made) == 4
    with torch.inference_mode():
        frozen = BsrWeight(*(part.clone() for part in weight[:3]), weight.shape)
        kept(frozen, make)
        frozen.values.mul_(2)
        assert torch.equal(kept(frozen, make), whole(frozen))


def test_no_copy_outlives_training():
    """Fused optimizers count no version, so none is kept of values that are trained, nor from before they were."""
    weight = weight_of([[1, 0], [0, 1]], (16, 16))
    x, values = torch.randn(3, 32), weight.values
    for compute in (PROVIDERS["dense"].run, lambda *args: LOADED.kernel.run(config(), *args)):
        PROVIDERS["dense"].run(x, weight)
        values.requires_grad_().grad = torch.ones_like(values)
        compute(x, weight)
        torch.optim.SGD([values], lr=1.0, fused=True).step()
        values.requires_grad_(False)
        close(PROVIDERS["dense"].run(x, weight), x @ whole(weight).T)


def test_what_is_kept_stays_behind_when_a_weight_is_copied_or_saved():
    parts = weight_of([[1, 0], [0, 1]], (16, 16))
    sparse, x = parts.sparse(), torch.randn(3, 32)
    for weight in (parts, sparse):
        PROVIDERS["dense"].run(x, weight)
    for tensor in (*parts[:3], sparse):
        file = io.BytesIO()
        torch.save(tensor, file)
        file.seek(0)
        assert tensor.__dict__ or tensor is parts.columns
        assert not any(torch.load(file).__dict__.values())
    assert not any(copy.deepcopy(parts.crow).__dict__.values())
    close(ops.bsr_matmul(x, copy.deepcopy(parts)), x @ whole(parts).T)


def test_it_is_looked_at_for_two_of_four_when_it_is_met_again(monkeypatch):
    """Not at a gradient, which is the weight of one product, nor while a CUDA graph is recorded."""
    weight, looked, recording = weight_of([[1, 0], [0, 1]], (16, 16), torch.float16), [], [True]
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: recording[0])
    monkeypatch.setattr(_bsr_matmul_kept, "keeps_two_of_four", lambda weight: looked.append(weight) or True)
    assert [semi_structured(weight) for _ in range(3)] == [False] * 3 and not looked
    recording[0] = False
    assert semi_structured(weight) and semi_structured(weight) and len(looked) == 1
    weight.values.mul_(2)
    assert not semi_structured(weight) and semi_structured(weight)
    weight.values.requires_grad_()
    assert not semi_structured(weight) and not semi_structured(weight) and len(looked) == 2


@pytest.mark.parametrize("kind", ["sparse", "parts"])
def test_a_weight_changed_in_place_is_another_weight(kind):
    parts = weight_of([[1, 0], [0, 1], [1, 1]], (16, 16))
    weight = torch.sparse_bsr_tensor(*parts[:3], parts.shape, check_invariants=True) if kind == "sparse" else parts
    parts, x = BsrWeight.of(weight), torch.randn(3, 32)
    close(ops.bsr_matmul(x, weight), x @ whole(parts).T)
    parts.values.mul_(3)
    close(ops.bsr_matmul(x, weight), x @ whole(parts).T)
    parts.columns[:2] = torch.tensor([1, 0])
    close(ops.bsr_matmul(x, weight), x @ whole(parts).T)
    parts.columns[2:] = torch.tensor([1, 0])
    with pytest.raises(ValueError, match="repeated or out of order"):
        ops.bsr_matmul(x, weight)


def test_index_tensors_may_be_replaced_and_of_any_strides():
    weight, x = weight_of([[1, 0], [0, 1]], (16, 16)), torch.randn(3, 32)
    close(ops.bsr_matmul(x, weight), x @ whole(weight).T)
    weight.columns.data = torch.tensor([1, 0])
    close(ops.bsr_matmul(x, weight), x @ whole(weight).T)
    spread = torch.stack([weight.columns, torch.full((2,), 99)], 1).int()[:, 0]
    close(ops.bsr_matmul(x, weight._replace(columns=spread)), x @ whole(weight).T)


def test_imbalance_is_part_of_the_key():
    even, skewed = ([[1, 0, 0, 0, 0, 0, 0, 0]] * 8, [[1] * 8, *[[0] * 8] * 7])
    x = torch.randn(3, 128)
    one, other = (weight_of(pattern, (16, 16)) for pattern in (even, skewed))
    assert LOADED.kernel.key(x, one) != LOADED.kernel.key(x, other)
    assert LOADED.kernel.problem(x, other)["imbalance"] == 4  # 8 blocks where the mean is 1; 16 is as near
    # Of the transpose it is the columns that count: all in one, or evenly.
    assert "imbalance" not in LOADED.kernel.problem(torch.randn(3, 128), other, None, None, True)
    assert LOADED.kernel.problem(torch.randn(3, 128), one, None, None, True)["imbalance"] == 4


@pytest.mark.parametrize(
    "text",
    [
        f"M=16,N={n},K=1024,BLOCK_ROWS=16,BLOCK_COLUMNS=32,density={density},dtype=float16{rest}"
        for n, density, rest in (
            (512, 1, ",imbalance=16"),
            (512, 5, ",imbalance=4"),
            (2048, 20, ",imbalance=2,transposed=true"),
            (48, 35, ""),
            (16, 100, ""),
        )
    ],
)
def test_drawn_patterns_are_as_dense_and_as_uneven_as_the_problem_says(text):
    problem = LOADED.kernel.parse(text)
    for seed in range(3):
        assert LOADED.kernel.problem(*LOADED.kernel.inputs(problem, seed, "cpu")) == problem


def test_a_problem_that_no_pattern_has_is_refused():
    with pytest.raises(UsageError, match="no pattern of 2 x 4 blocks has density=100 and imbalance=2"):
        LOADED.kernel.parse("M=1,N=32,K=64,BLOCK_ROWS=16,BLOCK_COLUMNS=16,density=100,dtype=float16,imbalance=2")


def leaves(weight, *shape, dtype=torch.float64):
    x, values = torch.randn(shape, dtype=dtype), weight.values.to(dtype)
    bias = torch.randn(weight.shape[0], dtype=dtype)
    return [tensor.clone().requires_grad_() for tensor in (x, values, bias)]


@pytest.mark.parametrize(
    ("left", "activation"), [(False, None), (True, None), (False, "relu"), (True, "gelu"), (False, "gelu_tanh")]
)
def test_gradients_are_the_dense_layers(left, activation):
    weight = weight_of(SKEWED, (16, 16))
    x, values, bias = leaves(weight, *((2, 96, 5) if left else (2, 5, 96)), dtype=torch.float32)
    placed = weight._replace(values=values)
    args = (placed, x) if left else (x, placed)
    result = ops.bsr_matmul(*args, bias=bias, activation=activation)
    dense = placed.dense()
    expected = dense @ x + bias[:, None] if left else x @ dense.T + bias
    expected = activate(expected, activation)
    slope = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(result, (x, values, bias), slope),
        torch.autograd.grad(expected, (x, values, bias), slope),
        strict=True,
    ):
        close(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("grid", [(0, 2), (2, 0), (2, 2)], ids=str)
def test_gradients_of_nothing_are_zeros(grid, left):
    weight = weight_of(torch.zeros(grid), (16, 16))
    inner = weight.shape[1]
    x, values, bias = leaves(weight, *((inner, 3) if left else (3, inner)), dtype=torch.float32)
    placed = weight._replace(values=values)
    result = ops.bsr_matmul(*((placed, x) if left else (x, placed)), bias=bias)
    grads = torch.autograd.grad(result.sum(), (x, values, bias))
    assert [grad.shape for grad in grads] == [x.shape, values.shape, bias.shape]
    assert not grads[0].any() and torch.equal(grads[2], torch.full_like(bias, 3))


def test_second_derivatives():
    weight = weight_of([[1, 0], [1, 1]], (2, 2))
    x, values, bias = leaves(weight, 3, 4)

    def layer(x, values, bias):
        return ops.bsr_matmul(x, weight._replace(values=values), bias=bias, activation="silu")

    assert torch.autograd.gradcheck(layer, (x, values, bias))
    assert torch.autograd.gradgradcheck(layer, (x, values, bias))


@pytest.mark.parametrize("provider", [None, "dense"])
def test_a_block_sparse_layer_trains_as_its_masked_dense_one(provider, monkeypatch):
    """Whichever road dispatch takes, and with an optimizer that counts no version."""
    if provider is not None:
        served = Choice(Config(provider=provider), "tuned", "")
        monkeypatch.setattr(dispatch._dispatcher, "_choice", lambda *args: (served, True))
    torch.manual_seed(0)
    weight = weight_of(SKEWED)
    x, target = torch.randn(20, 192), torch.randn(20, 64)
    values, bias = (weight.values * 0.05).requires_grad_(), torch.zeros(64, requires_grad=True)
    dense = weight._replace(values=values).dense().detach().requires_grad_()
    other, mask = torch.zeros(64, requires_grad=True), whole(weight._replace(values=torch.ones_like(values)))
    optimizer, losses = torch.optim.SGD([values, bias, dense, other], lr=2.0, fused=True), []
    for _ in range(4):
        ours = ops.bsr_matmul(x, weight._replace(values=values), bias=bias, activation="gelu_tanh")
        theirs = torch.nn.functional.gelu(x @ (dense * mask).T + other, approximate="tanh")
        losses.append((ours - target).square().mean())
        losses[-1].backward()
        (theirs - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.01
    close(weight._replace(values=values.detach()).dense(), dense * mask)
    close(bias, other)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_operator_passes_opcheck(transposed):
    weight = weight_of([[1, 0], [1, 1]], (16, 16))
    x, values, bias = leaves(weight, 5, 32, dtype=torch.float32)
    arguments = x, weight.crow, weight.columns, values, *weight.shape, bias, "silu", transposed, not transposed
    results = torch.library.opcheck(torch.ops.autotune.bsr_matmul.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


def test_both_sides_trace_whole_under_compile():
    weight = weight_of(SKEWED, (16, 16))
    x, values, bias = leaves(weight, 5, 96, dtype=torch.float32)

    def both(x, values, bias):
        placed = weight._replace(values=values)
        return ops.bsr_matmul(placed, ops.bsr_matmul(x, placed, bias=bias).mT[:, :1].repeat(2, 3)[:96])

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(both(x, values, bias).sum(), (x, values, bias))
    result = compiled(x, values, bias)
    close(result, both(x, values, bias))
    for ours, theirs in zip(torch.autograd.grad(result.sum(), (x, values, bias)), expected, strict=True):
        close(ours, theirs)


def changed(**changes):
    return lambda weight: (torch.randn(3, 64), weight._replace(**{k: f(weight) for k, f in changes.items()}))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (changed(columns=lambda w: torch.tensor([0, 2])), "columns go from 0 to 2; block columns are 0 to 1"),
        (changed(columns=lambda w: torch.tensor([0, -1])), "columns go from -1"),
        (changed(crow=lambda w: torch.tensor([0, 2, 2]), columns=lambda w: torch.tensor([1, 0])), "out of order"),
        (changed(crow=lambda w: torch.tensor([0, 2, 2]), columns=lambda w: torch.tensor([1, 1])), "repeated"),
        (changed(crow=lambda w: torch.tensor([0, 2, 1])), "crow goes from 0 to 1"),
        (changed(crow=lambda w: torch.tensor([0, 3, 2])), "must ascend"),
        (changed(crow=lambda w: w.crow[:-1]), r"crow is \(2,\); 32 rows in blocks of 16 have 3 offsets"),
        (changed(crow=lambda w: w.crow.float()), "crow is torch.float32"),
        (changed(columns=lambda w: w.columns.short()), "columns is torch.int16"),
        (changed(columns=lambda w: w.columns[:1]), "one column a block"),
        (changed(values=lambda w: w.values[0]), "blocks, block rows, block columns"),
        (changed(shape=lambda w: (40, 64)), "40 rows in blocks of 16; the second must divide the first"),
        (changed(shape=lambda w: (32, 72)), "72 columns in blocks of 32"),
        (lambda w: (torch.randn(3, 32), w), "the last size of both must be equal"),
        (lambda w: (torch.randn(3, 64).half(), w), "convert one of them"),
        (lambda w: (w, torch.randn(32, 3)), r"it must be \(..., 64, columns\)"),
        (lambda w: (w, torch.randn(64)), r"it must be \(..., 64, columns\)"),
        (lambda w: (w, w), "one of them must be dense"),
        (lambda w: (torch.randn(3, 64), torch.randn(32, 64)), "to_sparse_bsr"),
    ],
)
def test_bad_arguments_are_named(args, message):
    weight = weight_of([[1, 0], [0, 1]])
    with pytest.raises(ValueError, match=message) as caught:
        ops.bsr_matmul(*args(weight))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": torch.ones(64)}, r"bias is \(64,\) torch.float32 on cpu; it must be \(32,\)"),
        ({"bias": torch.ones(32).half()}, "torch.float16"),
        ({"activation": "swiglu"}, "activation is 'swiglu'; it must be one of relu, gelu, gelu_tanh, silu"),
    ],
)
def test_bad_options_are_named(options, message):
    for args in ((torch.randn(3, 64), weight_of([[1, 0]] * 2)), (weight_of([[1, 0]] * 2), torch.randn(64, 3))):
        with pytest.raises(ValueError, match=message):
            ops.bsr_matmul(*args, **options)
