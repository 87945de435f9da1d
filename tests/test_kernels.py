"""The conformance suite every kernel passes without adding a test, on CPU in Triton's interpreter."""

import importlib
import random

import pytest
import torch
from torch.utils._pytree import tree_leaves

from autotune import device, registry
from autotune.verify import Oracle, Truth, as_tuple, compare
from tests.drawing import drawn
from tests.problems import every, of

# Configs are sampled from GPU spaces too: the interpreter takes them all, and wrong tile logic shows there.
DEVICES = [device.INTERPRETER, device.profile("h100"), device.profile("mi300x")]
#: Of each space, beside the defaults.
SAMPLES = 1
NAMES = list(registry.entries())
PROBLEMS = [
    pytest.param(name, text, id=f"{name}-{text}") for name in NAMES for text in registry.load(name).kernel.problems
]


#: The interpreter takes about a millisecond a tile product, whatever its size.
AFFORDABLE_STEPS = 100


@pytest.mark.parametrize(("name", "text"), PROBLEMS)
def test_default_and_sampled_configs_match_the_reference(name, text):
    loaded = registry.load(name)
    problem = loaded.kernel.parse(text)
    oracle = Oracle(loaded.kernel, loaded.kernel.inputs(problem, seed=7, device="cpu"))
    steps, chance = importlib.import_module(loaded.entry.space).steps, random.Random(text)
    configs = {loaded.space.default(problem, where) for where in DEVICES}

    def affordable(config):
        return steps(config, problem) <= AFFORDABLE_STEPS

    for where in DEVICES:
        configs.update(drawn(loaded.space, problem, where, chance, SAMPLES, affordable))
    for config in sorted(configs, key=str):
        assert oracle.fault(config) is None, config


@pytest.mark.parametrize(("name", "text"), PROBLEMS)
def test_inputs_are_of_the_problem_and_of_the_seed(name, text):
    kernel = registry.load(name).kernel
    problem = kernel.parse(text)
    assert str(problem) == text
    first, again, other = (kernel.inputs(problem, seed, "cpu") for seed in (1, 1, 2))
    assert kernel.problem(*first) == problem
    assert kernel.key(*first) == kernel.key(*again)

    def same(one, two):
        return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))

    assert same(first, again) and not same(first, other)


def tensors(args):
    return [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("name", NAMES)
def test_work_grows_with_the_problem(name):
    kernel = registry.load(name).kernel
    for text in kernel.problems:
        problem = kernel.parse(text)
        work = kernel.work(problem)
        assert work.flops > 0 and work.bytes > 0
        size = of(name, "GROWS", kernel.fields[0].name)
        doubled = kernel.make(**{**problem, size: 2 * problem.integer(size, 1)})
        assert kernel.work(doubled).flops == 2 * work.flops


@pytest.mark.parametrize(("name", "text"), every("EMPTY"), ids=lambda value: value)
def test_empty_problems_give_zeros_or_nothing(name, text):
    loaded = registry.load(name)
    problem = loaded.kernel.parse(text)
    args = loaded.kernel.inputs(problem, 0, "cpu")
    oracle = Oracle(loaded.kernel, args)
    assert oracle.fault(loaded.space.default(problem, device.INTERPRETER)) is None
    assert not oracle.exact[0].any()


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_stay_in_their_row(name):
    loaded = registry.load(name)
    problem = next(p for p in map(loaded.kernel.parse, loaded.kernel.problems) if p["dtype"] == "float32")
    args = loaded.kernel.inputs(problem, 3, "cpu")
    last = args[0][(-1,) * (args[0].dim() - 2)]
    last[0, 0] = float("nan")
    # An infinite score is no number in any softmax.
    last[-1, 0] = float("inf") if "attention" not in name else 1.0
    result = as_tuple(loaded.kernel.run(loaded.space.default(problem, device.INTERPRETER), *args))[0]
    expected = as_tuple(loaded.kernel.reference(*args))[0]
    # bsr_matmul does not read zero blocks, so a bad row may have fewer NaN than the dense reference, never more.
    assert not (result.isnan() & ~expected.isnan()).any()
    assert result.isnan().any()
    good = expected.isfinite()
    assert 0 < good.sum() < good.numel()
    torch.testing.assert_close(result[good], expected[good], rtol=1e-4, atol=1e-4)


#: Twice this is over 2**31, while the stride itself is a 32-bit argument, whose product must be taken in 64 bits.
HUGE = 2**30 + 64


def far_apart(*shape, far, dtype=torch.float16):
    """Random numbers whose dimension ``far`` reaches over 2**31 elements, in memory that is not touched."""
    near = torch.randn(shape).to(dtype)
    strides = list(near.stride())
    strides[far] = HUGE
    storage = torch.empty((shape[far] - 1) * HUGE + near.numel(), dtype=dtype)
    return storage.as_strided(shape, strides).copy_(near)


@pytest.mark.parametrize("far", [0, 1])
def test_gemm_offsets_are_64_bit(far):
    loaded = registry.load("gemm")
    a = far_apart(*((3, 16) if far == 0 else (16, 3)), far=far)
    b = far_apart(*((a.shape[1], 16) if far == 1 else (16, 3)), far=1 - far)
    problem = loaded.kernel.problem(a, b)
    result = loaded.kernel.run(loaded.space.default(problem, device.INTERPRETER), a, b)
    torch.testing.assert_close(result.double(), a.double() @ b.double(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("far", [1, 2])
def test_attention_offsets_are_64_bit(far):
    loaded = registry.load("attention")
    q, k, v = (far_apart(1, *((3, 4) if far == 1 else (4, 3)), 16, far=far) for _ in range(3))
    config = loaded.space.default(loaded.kernel.problem(q, k, v), device.INTERPRETER)
    expected, _ = loaded.kernel.reference(q.double(), k.double(), v.double())
    result, _ = loaded.kernel.run(config, q, k, v)
    torch.testing.assert_close(result.double(), expected, rtol=1e-2, atol=1e-2)


def test_bsr_offsets_are_64_bit():
    loaded = registry.load("bsr_matmul")
    x = far_apart(3, 32, far=0)
    weight = torch.randn(32, 32).half().to_sparse_bsr((16, 16))
    config = loaded.space.default(loaded.kernel.problem(x, weight), device.INTERPRETER)
    expected = x.double() @ weight.to_dense().double().T
    torch.testing.assert_close(loaded.kernel.run(config, x, weight).double(), expected, rtol=1e-2, atol=1e-2)


def test_every_gemm_tile_is_visited_once():
    """The grouped order must cover the grid when the last band of GROUP_M tile rows is short."""
    from autotune.data import Config

    kernel = registry.load("gemm").kernel
    # 5 x 3 tiles of 16: bands of 4 leave one row of tiles.
    a, b = torch.randn(80, 16), torch.randn(16, 48)
    for group in (1, 2, 3, 4, 8, 16):
        config = Config(BLOCK_M=16, BLOCK_N=16, BLOCK_K=16, GROUP_M=group, num_warps=4, num_stages=2)
        torch.testing.assert_close(kernel.run(config, a, b), a @ b)


SHAPES = [
    ((5, 7), (7, 3)),
    ((2, 5, 7), (7, 3)),
    ((5, 7), (2, 7, 3)),
    ((2, 1, 5, 7), (3, 7, 4)),
    ((1, 5, 7), (6, 7, 4)),
]


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_gemm_broadcasts_as_torch(left, right):
    loaded = registry.load("gemm")
    a, b = torch.randn(left), torch.randn(right)
    config = loaded.space.default(loaded.kernel.problem(a, b), device.INTERPRETER)
    torch.testing.assert_close(loaded.kernel.run(config, a, b), a @ b)


STRIDES = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "every other row": lambda t: t.repeat_interleave(2, 0)[::2],
    "every other column": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "padded rows": lambda t: torch.nn.functional.pad(t, (0, 5))[..., :-5],
    "odd base address": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("second", STRIDES)
@pytest.mark.parametrize("first", STRIDES)
def test_gemm_takes_any_strides(first, second):
    loaded = registry.load("gemm")
    a, b = STRIDES[first](torch.randn(19, 35)), STRIDES[second](torch.randn(35, 21))
    config = loaded.space.default(loaded.kernel.problem(a, b), device.INTERPRETER)
    torch.testing.assert_close(loaded.kernel.run(config, a, b), a @ b)


def test_gemm_takes_expanded_operands():
    loaded = registry.load("gemm")
    a, b = torch.randn(1, 35).expand(19, 35), torch.randn(35, 1).expand(35, 21)
    config = loaded.space.default(loaded.kernel.problem(a, b), device.INTERPRETER)
    torch.testing.assert_close(loaded.kernel.run(config, a, b), a @ b)


@pytest.mark.parametrize("layout", ["bhsd", "bshd", "s"])
def test_attention_takes_any_strides(layout):
    loaded = registry.load("attention")
    problem = loaded.kernel.parse(f"B=2,H=4,HKV=2,SQ=33,SK=47,D=24,dtype=float32,layout={layout},causal=true")
    args = loaded.kernel.inputs(problem, 0, "cpu")
    assert Oracle(loaded.kernel, args).fault(loaded.space.default(problem, device.INTERPRETER)) is None


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (64, 1), (1, 64), (65, 64), (64, 65), (113, 203)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_sequence_lengths(rows, columns, causal):
    loaded = registry.load("attention")
    problem = loaded.kernel.make(B=1, H=1, HKV=1, SQ=rows, SK=columns, D=16, dtype="float32", causal=causal)
    args = loaded.kernel.inputs(problem, 0, "cpu")
    assert Oracle(loaded.kernel, args).fault(loaded.space.default(problem, device.INTERPRETER)) is None


def test_attention_of_huge_logits_does_not_overflow():
    loaded = registry.load("attention")
    problem = loaded.kernel.parse("B=1,H=1,HKV=1,SQ=64,SK=64,D=32,dtype=float16")
    q, k, v, *rest = loaded.kernel.inputs(problem, 0, "cpu")
    oracle = Oracle(loaded.kernel, (q * 50, k * 30, v, *rest))
    assert oracle.fault(loaded.space.default(problem, device.INTERPRETER)) is None


@pytest.mark.parametrize("rounded", [("q", "k"), ("v",)])
def test_attention_in_tf32_is_refused_for_a_single_row_too(rounded):
    """Where the mean is over few independent errors, and the tolerance has to be the widest."""
    kernel = registry.load("attention").kernel
    problem = kernel.parse("B=1,H=1,HKV=1,SQ=1,SK=33,D=16,dtype=float32")
    for seed in range(20):
        args = kernel.inputs(problem, seed, "cpu")
        tensors, rest = args[:3], args[3:]
        # The 13 bits that tf32 lacks are rounded away.
        coarse = [
            ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) if name in rounded else tensor
            for name, tensor in zip("qkv", tensors, strict=True)
        ]
        truth = Truth.of(kernel, args)
        result, _ = kernel.reference(*coarse, *rest)
        assert "error" in (compare(result, truth.peer[0], truth.exact[0], kernel.tolerances["float32"]) or "")


def test_bfloat16_is_right_in_the_interpreter():
    """Against torch, to one rounding: the interpreter by itself multiplies raw bits."""
    loaded = registry.load("gemm")
    a, b = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    config = loaded.space.default(loaded.kernel.problem(a, b), device.INTERPRETER)
    expected = (a.double() @ b.double()).bfloat16()
    result = loaded.kernel.run(config, a, b)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected, rtol=2**-7, atol=1e-3)


BAD = [
    ("gemm", lambda: (torch.ones(3), torch.ones(3, 3)), "a has shape"),
    ("gemm", lambda: (torch.ones(3, 4), torch.ones(3, 4)), "the last size of a"),
    ("gemm", lambda: (torch.ones(2, 3, 4), torch.ones(3, 4, 5)), "don't broadcast"),
    ("gemm", lambda: (torch.ones(3, 3), torch.ones(3, 3).half()), "b is torch.float16"),
    ("gemm", lambda: (torch.ones(3, 3).double(), torch.ones(3, 3).double()), "the kernels take"),
    ("attention", lambda: [torch.ones(2, 3, 4)] * 3, "takes .batch, heads, seq, head_dim"),
    ("attention", lambda: [torch.ones(1, 3, 4, 8), *[torch.ones(1, 2, 4, 8)] * 2], "must divide"),
    ("attention", lambda: [*[torch.ones(1, 2, 4, 8)] * 2, torch.ones(1, 2, 5, 8)], "must be equal"),
    ("attention", lambda: [torch.ones(1, 2, 4, 512)] * 3, "head_dim 512"),
    ("bsr_matmul", lambda: (torch.ones(3, 4), torch.ones(4, 4)), "to_sparse_bsr"),
    ("bsr_matmul", lambda: (torch.ones(3, 5), torch.ones(4, 4).to_sparse_bsr((2, 2))), "must be equal"),
    ("bsr_matmul", lambda: (torch.ones(3, 4), torch.ones(4, 4).to_sparse_bsr((2, 2))), "must be one of 16, 32"),
]


@pytest.mark.parametrize(("name", "args", "message"), BAD)
def test_bad_arguments_are_named(name, args, message):
    with pytest.raises(ValueError, match=message):
        registry.load(name).kernel.problem(*args())
