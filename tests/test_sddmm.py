"""``sddmm`` against block by block products in float64: patterns, tiles, parts of K, gradients, what it refuses."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune import device, dispatch, ops, registry
from autotune.data import Config
from autotune.kernels import _bsr_pattern
from autotune.kernels._bsr_pattern import pattern_of
from autotune.kernels._sddmm_chunks import chunks_in_order
from autotune.worker import Worker
from tests.test_compile import compile_and_launch, job
from tests.traffic import recorded

LOADED = registry.load("sddmm")
KERNEL, SPACE = LOADED.kernel, LOADED.space
CONFIG = Config(BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, SPLIT_K=1, GROUP_ROWS=1, num_warps=4, num_stages=2)
NAN = float("nan")


def case(places, block=(16, 16), inner=40, dtype=torch.float16, seed=0):
    """Arguments of the kernel for the pattern of a boolean matrix of blocks."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.as_tensor(places, dtype=torch.bool)
    (down, across), (rows, columns) = places.shape, block
    a, b = (
        torch.randn(*size, generator=generator).to(dtype)
        for size in ((down * rows, inner), (inner, across * columns))
    )
    crow = torch.cat([torch.zeros(1, dtype=torch.long), places.sum(1).cumsum(0)])
    return a, b, crow, places.nonzero()[:, 1].contiguous(), rows, columns


def exact(a, b, crow, columns, rows, width):
    """One block at a time, in float64."""
    found = []
    for row, (first, last) in enumerate(zip(crow[:-1].tolist(), crow[1:].tolist(), strict=True)):
        for column in columns[first:last].tolist():
            left, right = a[row * rows : (row + 1) * rows], b[:, column * width : (column + 1) * width]
            found.append(left.double() @ right.double())
    return torch.stack(found) if found else torch.zeros(0, rows, width, dtype=torch.float64)


def assert_right(config, *args, rtol=2e-3):
    result, expected = KERNEL.run(config, *args), exact(*args)
    assert result.shape == expected.shape and result.dtype == args[0].dtype and result.is_contiguous()
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=rtol * 10)
    return result


#: Rows of no block, one, three, all five, and two that are far apart.
PLACES = [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    "change",
    [
        {"BLOCK_N": 16},
        {"BLOCK_N": 32, "GROUP_ROWS": 4},
        {"BLOCK_N": 64, "SPLIT_K": 2},
        {"BLOCK_N": 128, "BLOCK_K": 16, "SPLIT_K": 4, "GROUP_ROWS": 16},
    ],
    ids=str,
)
def test_small_blocks_lie_side_by_side_in_a_tile(change):
    assert_right(Config({**CONFIG, **change}), *case(PLACES))


@pytest.mark.parametrize(
    "change",
    [{}, {"BLOCK_M": 32, "BLOCK_N": 64}, {"BLOCK_N": 16, "SPLIT_K": 2, "GROUP_ROWS": 4}, {"BLOCK_N": 128}],
    ids=str,
)
def test_large_blocks_are_computed_in_tiles(change):
    assert_right(Config({**CONFIG, **change}), *case([[1, 0, 1], [0, 1, 0]], block=(32, 64)))


def test_an_empty_pattern_gives_nothing_and_no_inner_size_zeros():
    assert KERNEL.run(CONFIG, *case([[0, 0], [0, 0]])).shape == (0, 16, 16)
    assert_right(Config({**CONFIG, "SPLIT_K": 2}), *case(PLACES, inner=0))


def test_a_full_pattern_is_the_dense_product():
    a, b, *rest = case(torch.ones(3, 4), dtype=torch.float32)
    blocks = KERNEL.run(CONFIG, a, b, *rest)
    dense = blocks.view(3, 4, 16, 16).transpose(1, 2).reshape(48, 64)
    torch.testing.assert_close(dense, a @ b)


def test_blocks_that_are_not_stored_are_not_computed():
    """Columns of b under none of them are NaN, and a row of a that is NaN stays one row."""
    a, b, *rest = case([[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.float32)
    expected = exact(a, b, *rest)
    b.view(-1, 4, 16)[:, 1::2] = NAN
    a[20] = NAN
    result = KERNEL.run(CONFIG, a, b, *rest)
    assert result[2, 4].isnan().all() and result.isnan().sum() == 16
    expected[2, 4] = NAN
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("width", "rows"), [(16, [0, 1, 3, 5, 2]), (32, [0, 1, 2, 3, 1])])
def test_a_block_loads_its_rows_and_columns_and_nothing_else(width, rows):
    """Once each, or rows once for two blocks side by side; of an odd number the last is loaded twice."""
    a, b, *rest = case(PLACES)
    with recorded() as traffic:
        KERNEL.run(Config({**CONFIG, "BLOCK_N": width}), a, b, *rest)
    assert torch.equal(traffic.loads(a), torch.tensor(rows).repeat_interleave(16)[:, None].expand(a.shape))
    columns = torch.tensor(PLACES).sum(0)
    if width == 32:
        columns += torch.tensor([0, 0, 1, 1, 1])
    assert torch.equal(traffic.loads(b), columns.repeat_interleave(16)[None, :].expand(b.shape))


def test_parts_of_k_change_only_roundings():
    args = case(PLACES, inner=200, dtype=torch.float32)
    whole, *parts = (KERNEL.run(Config({**CONFIG, "SPLIT_K": splits}), *args) for splits in (1, 2, 8))
    for each in parts:
        torch.testing.assert_close(each, whole, rtol=1e-5, atol=1e-5)


STRIDES = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "every other row": lambda t: t.repeat_interleave(2, 0)[::2],
    "every other column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "odd base address": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("name", STRIDES)
def test_any_strides(name):
    a, b, *rest = case(PLACES)
    assert torch.equal(KERNEL.run(CONFIG, *map(STRIDES[name], (a, b)), *rest), KERNEL.run(CONFIG, a, b, *rest))


@pytest.mark.parametrize("dimension", [0, 1])
def test_offsets_are_64_bit(dimension):
    """Of the rows or columns of b, in memory that is not touched. The stride itself fits 32 bits."""
    a, b, *rest = case([[1]], inner=3)
    strides = [1, 1]
    strides[dimension] = far = (2**30 + 64, 2**28 + 16)[dimension]
    storage = torch.empty((b.shape[dimension] - 1) * far + max(b.shape), dtype=b.dtype)
    assert_right(CONFIG, a, storage.as_strided(b.shape, strides).copy_(b), *rest)


@pytest.mark.parametrize("band", [1, 2, 3])
def test_every_block_is_in_one_chunk_and_chunks_keep_to_their_row(band):
    _, _, crow, columns, *_ = case(PLACES)
    pattern = pattern_of(crow, columns, 5)
    chunks = chunks_in_order(pattern, 2, band)
    assert sorted(block for first, last in chunks.tolist() for block in range(first, last)) == list(range(11))
    rows = pattern.row_of[chunks[:, 0]]
    assert torch.equal(rows, pattern.row_of[chunks[:, 1] - 1])
    places = list(zip((rows // band).tolist(), pattern.column_of[chunks[:, 0]].tolist(), strict=True))
    if band > 1:
        assert places == sorted(places)
    assert pattern.fact(chunks_in_order, 2, band) is pattern.fact(chunks_in_order, 2, band)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_pattern(data):
    draw = data.draw
    down, across = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    places = draw(st.lists(st.lists(st.booleans(), min_size=across, max_size=across), min_size=down, max_size=down))
    block = draw(st.sampled_from([(16, 16), (16, 32), (32, 16), (64, 32)]))
    config = {
        **CONFIG,
        "BLOCK_N": draw(st.sampled_from([16, 64])),
        "SPLIT_K": draw(st.sampled_from([1, 4])),
        "GROUP_ROWS": draw(st.sampled_from([1, 4])),
    }
    assert_right(Config(config), *case(places, block, inner=draw(st.integers(0, 70)), seed=draw(st.integers(0, 9))))


def pattern_and_operands(dtype=torch.float32):
    a, b, crow, columns, *block = case(PLACES, dtype=dtype)
    values = torch.full((columns.numel(), *block), NAN, dtype=dtype)
    return bsr(crow, columns, values, (a.shape[0], b.shape[1])), a, b


def bsr(crow, columns, values, shape):
    return torch.sparse_bsr_tensor(crow, columns, values, shape, check_invariants=True)


def parts(pattern):
    from autotune.kernels._bsr import BsrWeight

    return BsrWeight.of(pattern)


def test_the_result_has_the_patterns_kind_and_blocks():
    pattern, a, b = pattern_and_operands()
    crow, columns = pattern.crow_indices(), pattern.col_indices()
    expected = exact(a, b, crow, columns, 16, 16).float()
    sparse, in_parts = ops.sddmm(pattern, a, b), ops.sddmm(parts(pattern), a, b)
    assert sparse.layout == torch.sparse_bsr and sparse.shape == pattern.shape
    assert torch.equal(sparse.crow_indices(), crow) and torch.equal(sparse.col_indices(), columns)
    for values in (sparse.values(), in_parts.values):
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_the_pattern_of_a_result_is_not_checked_again(grad, monkeypatch):
    pattern, a, b = pattern_and_operands()
    x = torch.randn(3, pattern.shape[1])
    result = ops.sddmm(pattern, a.requires_grad_(grad), b)
    monkeypatch.setattr(_bsr_pattern, "_checked", None)
    product = ops.bsr_matmul(x, ops.sddmm(result, a, b))
    monkeypatch.undo()
    torch.testing.assert_close(product, x @ result.detach().to_dense().T, rtol=1e-4, atol=1e-4)
    result.col_indices()[0] = 1
    torch.testing.assert_close(ops.bsr_matmul(x, result), x @ result.detach().to_dense().T, rtol=1e-4, atol=1e-4)


def test_columns_may_be_of_any_strides():
    a, b, crow, columns, *block = case(PLACES)
    spread = torch.stack([columns, torch.full_like(columns, 99)], 1).int()[:, 0]
    torch.testing.assert_close(
        KERNEL.run(CONFIG, a, b, crow, spread, *block).double(),
        exact(a, b, crow, columns, *block),
        rtol=2e-3,
        atol=2e-2,
    )


def test_gradients_are_those_of_the_blocks():
    pattern, a, b = pattern_and_operands()
    a, b = (tensor.t().contiguous().t().requires_grad_() for tensor in (a, b))
    weights = torch.randn(pattern.values().shape)
    (ops.sddmm(pattern, a, b).values() * weights).sum().backward()
    dense = bsr(pattern.crow_indices(), pattern.col_indices(), weights.double(), pattern.shape).to_dense()
    torch.testing.assert_close(a.grad.double(), dense @ b.detach().double().T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(b.grad.double(), a.detach().double().T @ dense, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_operator_passes_opcheck(dtype):
    """Torch computes float64."""
    a, b, crow, columns, *block = case([[1, 0], [1, 1]], dtype=dtype)
    args = crow, columns, a.requires_grad_(), b.mT.contiguous().mT.requires_grad_(), *block
    results = torch.library.opcheck(torch.ops.autotune.sddmm.default, args)
    assert set(results.values()) == {"SUCCESS"}


def test_it_traces_whole_under_compile():
    pattern, a, b = pattern_and_operands()
    pattern = parts(pattern)

    def step(pattern, a, b):
        return ops.sddmm(pattern, a, b * 2).values + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(pattern, a, b), step(pattern, a, b))


def test_what_the_kernel_does_not_take_torch_computes():
    args = case([[1, 0], [1, 1]], block=(8, 24), dtype=torch.float32)
    assert dispatch.explain("sddmm", *args).source == "reference"
    torch.testing.assert_close(dispatch.run("sddmm", *args).double(), exact(*args), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KERNEL.providers)
def test_other_roads_lead_there_or_say_why_not(name):
    args = case(PLACES, dtype=torch.float32)
    why = KERNEL.providers[name].unavailable(KERNEL.problem(*args), device.INTERPRETER)
    if name == "torch":
        assert "on a GPU only" in why
        assert KERNEL.providers[name].unavailable(KERNEL.problem(*args), device.profile("h100")) is None
    else:
        result = KERNEL.providers[name].run(*args)
        assert result.is_contiguous()
        torch.testing.assert_close(result.double(), exact(*args), rtol=1e-5, atol=1e-5)


def replaced(args, **changes):
    names = ("a", "b", "crow", "columns", "block_rows", "block_columns")
    return tuple({**dict(zip(names, args, strict=True)), **changes}.values())


REFUSED = {
    "a is torch.strided (80, 40, 1)": lambda a: {"a": a[0][..., None]},
    "b is torch.sparse_coo": lambda a: {"b": a[1].to_sparse()},
    "a's columns must be b's rows": lambda a: {"b": a[1][1:]},
    "a is torch.float16 but b is torch.float32": lambda a: {"b": a[1].float()},
    "b is on meta but a is on cpu": lambda a: {"b": a[1].to("meta")},
    "rows of a are 79 and blocks have 16": lambda a: {"a": a[0][1:]},
    "columns of b are 80 and blocks have 0": lambda a: {"block_columns": 0},
    "a has 5 block rows, so it must be (6,)": lambda a: {"crow": a[2][1:]},
    "columns is torch.float32": lambda a: {"columns": a[3].float()},
    "crow goes from 0 to 11; it must ascend from 0 to the 10 blocks": lambda a: {"columns": a[3][1:]},
    "columns go from 0 to 5; block columns are 0 to 4": lambda a: {"columns": torch.where(a[3] == 4, 5, a[3])},
    "columns are repeated or out of order": lambda a: {"columns": a[3].where(a[3] != 1, 0)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_named_before_anything_runs(message):
    good = case(PLACES)
    bad = replaced(good, **REFUSED[message](good))
    for compute in (lambda *args: KERNEL.run(CONFIG, *args), KERNEL.reference):
        with pytest.raises(ValueError, match=re.escape(message)):
            compute(*bad)


def test_the_front_names_what_is_no_pattern_of_the_product():
    pattern, a, b = pattern_and_operands()
    with pytest.raises(ValueError, match=r"it must have a's rows and b's columns"):
        ops.sddmm(pattern, a[:16], b)
    with pytest.raises(ValueError, match=r"a is \(80, 40\) and b is \(\); it must have"):
        ops.sddmm(pattern, a, b[0, 0])
    with pytest.raises(ValueError, match="pattern_bsr's columns are"):
        ops.sddmm(parts(pattern)._replace(columns=parts(pattern).columns[1:]), a, b)
    with pytest.raises(ValueError, match="to_sparse_bsr"):
        ops.sddmm(pattern.to_dense(), a, b)


def test_a_launch_finds_what_was_compiled_ahead(tmp_path):
    with Worker({"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": str(tmp_path)}) as worker:
        text = "M=64,N=64,K=70,BLOCK_ROWS=16,BLOCK_COLUMNS=32,density=75,dtype=bfloat16,layout=st,aligned=false"
        task = job("sddmm", text, "a100", SPLIT_K=2, BLOCK_N=32)
        ahead, launches, compiled_again = worker.call(compile_and_launch, *task, timeout_s=120)
    assert launches == ahead and len(launches) == 2 and compiled_again == 0


def test_the_default_splits_k_where_blocks_are_few():
    h100 = device.profile("h100")
    for text, splits in (
        # 13 blocks of 128 x 128, 1024 steps of 64; 410 blocks fill the device.
        ("M=1024,N=1024,K=65536,BLOCK_ROWS=128,BLOCK_COLUMNS=128,density=20,dtype=bfloat16,layout=tn", 8),
        ("M=8192,N=8192,K=65536,BLOCK_ROWS=128,BLOCK_COLUMNS=128,density=10,dtype=bfloat16,layout=tn", 1),
    ):
        assert SPACE.default(KERNEL.parse(text), h100)["SPLIT_K"] == splits


def test_the_space_says_why_not():
    text = "M=2048,N=2048,K=2048,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=2,dtype=float16"
    problem, h100 = KERNEL.parse(text), device.profile("h100")
    default = SPACE.default(problem, h100)
    for change, why in (
        ({"BLOCK_M": 64}, "BLOCK_M=64 is over the 32 rows of a block"),
        ({"BLOCK_N": 128}, "BLOCK_N=128 is mostly padding: the mean block row stores 40 columns"),
        ({"SPLIT_K": 16}, "SPLIT_K=16 leaves under 4 of the 32 steps"),
    ):
        assert why in SPACE.why_not(Config({**default, **change}), problem, h100)
    odd = KERNEL.parse(text.replace("K=2048", "K=2047"))
    wide = Config({**SPACE.default(odd, h100), "BLOCK_K": 128, "num_warps": 1})
    assert "loads 128 elements one by one a thread" in SPACE.why_not(wide, odd, h100)
