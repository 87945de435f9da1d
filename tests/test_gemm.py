"""``matmul``: every structure, epilogue and dtype in the interpreter, and what is told of bad arguments."""

import random
import re
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import autotune
from autotune import device, dispatch, ops, registry
from autotune.compile import assembly
from autotune.data import Config, Problem, UsageError
from autotune.kernels import _gemm_problem, _gemm_reference, gemm
from autotune.kernels._gemm_arguments import ACTIVATIONS
from autotune.kernels._gemm_reference import baseline
from autotune.kernels._tile import place
from autotune.verify import Oracle
from autotune.worker import Worker
from tests.test_kernels import far_apart

KERNEL = gemm.KERNEL
TILE = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 2, "num_warps": 4, "num_stages": 2}
STRUCTURES = {
    "tiled": {"STRUCTURE": "tiled", "SPLIT_K": 1},
    "tiled in parts": {"STRUCTURE": "tiled", "SPLIT_K": 2},
    "persistent": {"STRUCTURE": "persistent", "FLATTEN": True},
    "descriptor": {"STRUCTURE": "descriptor", "EPILOGUE_SUBTILE": 1, "WARP_SPECIALIZE": True},
    "descriptor in pieces": {"STRUCTURE": "descriptor", "EPILOGUE_SUBTILE": 4},
    "skinny": {"STRUCTURE": "skinny", "SPLIT_K": 1},
    "skinny in parts": {"STRUCTURE": "skinny", "SPLIT_K": 2},
}


def config_of(name, **changes):
    return Config({**TILE, **STRUCTURES[name], **changes})


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels launched."""
    names = []
    launch = gemm.launch

    def spy(function, *args, **kwargs):
        names.append(function.fn.__name__)
        launch(function, *args, **kwargs)

    monkeypatch.setattr(gemm, "launch", spy)
    return names


PROBLEMS = [
    "M=40,N=48,K=80,dtype=float16,layout=nt,bias=true,activation=gelu",
    "M=40,N=48,K=80,dtype=bfloat16,layout=tn,bias=true,activation=silu,out=float32",
    "M=40,N=48,K=64,dtype=float16,layout=tt,activation=relu,residual=true,batch_invariant=true",
    "M=40,N=44,K=80,dtype=float32,bias=true,activation=gelu_tanh,residual=true,tf32=true",
    "M=40,N=80,K=80,dtype=float32,layout=nt,bias=true,activation=swiglu,residual=true",
    "M=40,N=80,K=48,dtype=float16,B=2,layout=nn,activation=swiglu",
    "M=40,N=48,K=64,dtype=float8_e4m3fn,layout=nt,bias=true,scale=tensor,out=float16",
    "M=40,N=48,K=64,dtype=float8_e5m2,residual=true,scale=row,out=float32,fast_accum=true",
    "M=40,N=48,K=80,dtype=float8_e4m3fn,B=2,layout=nt,scale=row",
    "M=40,N=48,K=64,dtype=int8,layout=nt",
    "M=40,N=48,K=64,dtype=int8,B=2,bias=true,activation=relu,residual=true,scale=row",
]


#: Every other pair, as on a chessboard: each structure meets half the problems, its neighbour the other half.
PAIRS = [(name, text) for i, name in enumerate(STRUCTURES) for j, text in enumerate(PROBLEMS) if (i + j) % 2 == 0]


@pytest.mark.parametrize(("name", "text"), PAIRS)
def test_structures_match_the_reference(name, text, launched):
    problem = KERNEL.parse(text.replace("M=40", "M=12") if name.startswith("skinny") else text)
    args = KERNEL.inputs(problem, 3, "cpu")
    assert KERNEL.problem(*args) == problem
    assert Oracle(KERNEL, args).fault(config_of(name)) is None
    expected = {name.split()[0]} | ({"reduce"} if "parts" in name else set())
    if name.startswith("descriptor") and not gemm.product_of(problem).fits_descriptors():
        expected = {"persistent"}
    assert set(launched) == expected


@pytest.mark.parametrize("asked", [True, False])
def test_sums_of_few_bits_are_wrong_where_nobody_asked_for_them(asked):
    problem = KERNEL.make(M=16, N=16, K=512, dtype="float8_e5m2", out="float32", fast_accum=asked)
    args = KERNEL.inputs(problem, 3, "cpu")
    # 10 bits after the leading one.
    short = replace(KERNEL, run=lambda config, a, b, *_: (a.float() @ b.float()).half().float())
    fault = Oracle(short, args).fault(Config())
    assert (fault is None) == asked, fault


def test_halves_of_b_that_start_at_no_multiple_of_16_bytes_do_not_fit_descriptors():
    text = "M=40,N=48,K=64,dtype=int8,layout=nn,activation=swiglu,scale=tensor"
    assert not gemm.product_of(KERNEL.parse(text)).fits_descriptors()
    for near in (text.replace("layout=nn", "layout=nt"), text.replace("N=48", "N=64")):
        assert gemm.product_of(KERNEL.parse(near)).fits_descriptors(), near


def test_of_these_problems_only_batches_do_not_fit_descriptors():
    for text in PROBLEMS:
        assert gemm.product_of(KERNEL.parse(text)).fits_descriptors() == ("B=2" not in text), text


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_formula_is_the_documented_one(activation):
    a, b = torch.randn(7, 16), torch.randn(16, 24)
    bias, residual = torch.randn(24), torch.randn(7, 12 if activation == "swiglu" else 24)
    x = a.double() @ b.double() + bias
    act = {
        "relu": torch.relu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "swiglu": lambda x: F.silu(x[:, :12]) * x[:, 12:],
    }[activation]
    result = ops.matmul(a, b, bias=bias, activation=activation, residual=residual)
    torch.testing.assert_close(result.double(), act(x) + residual, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8], ids=str)
@pytest.mark.parametrize("kind", ["tensor", "row"])
def test_scales_multiply_the_product(dtype, kind):
    a, b = (torch.randint(-8, 9, shape).to(dtype) for shape in ((5, 32), (32, 16)))
    scale_a, scale_b = (torch.rand(5, 1), torch.rand(1, 16)) if kind == "row" else (torch.rand(()), torch.rand(1))
    result = ops.matmul(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.float32)
    torch.testing.assert_close(result, (a.float() @ b.float()) * scale_a * scale_b)
    assert ops.matmul(a, b, scale_a=scale_a, scale_b=scale_b).dtype == torch.bfloat16


def test_a_scale_a_row_holds_for_every_product_of_a_batch():
    a, b = (torch.randint(-8, 9, shape).to(torch.int8) for shape in ((3, 5, 32), (3, 32, 16)))
    scale_a, scale_b = torch.rand(5, 1), torch.rand(1, 16)
    result = ops.matmul(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.float32)
    torch.testing.assert_close(result, (a.float() @ b.float()) * scale_a * scale_b)


@pytest.mark.parametrize("name", STRUCTURES)
def test_int8_is_exact(name):
    a, b = torch.full((9, 96), -128, dtype=torch.int8), torch.full((96, 33), -128, dtype=torch.int8)
    b[:, 1] = 127
    result = KERNEL.run(config_of(name), a, b)
    assert result.dtype == torch.int32
    assert torch.equal(result, (a.long() @ b.long()).int())


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("M,N,K", [(0, 32, 16), (16, 0, 16), (16, 32, 0)])
def test_empty_sizes(name, M, N, K):
    a, b = torch.randn(M, K), torch.randn(K, N)
    bias, residual = torch.randn(N), torch.randn(M, N)
    result = KERNEL.run(config_of(name), a, b, bias, "relu", residual)
    torch.testing.assert_close(result, torch.relu(a @ b + bias) + residual)


@pytest.mark.parametrize("name", ["tiled in parts", "skinny in parts"])
def test_more_parts_than_steps(name):
    a, b = torch.randn(9, 40), torch.randn(40, 33)
    torch.testing.assert_close(KERNEL.run(config_of(name, SPLIT_K=16), a, b), a @ b)


@pytest.mark.parametrize("far", [0, 1])
@pytest.mark.parametrize("name", STRUCTURES)
def test_offsets_are_64_bit(name, far):
    a = far_apart(*((3, 16) if far == 0 else (16, 3)), far=far)
    b = far_apart(*((a.shape[1], 16) if far == 1 else (16, 3)), far=1 - far)
    result = KERNEL.run(config_of(name), a, b)
    torch.testing.assert_close(result.double(), a.double() @ b.double(), rtol=1e-2, atol=1e-2)


@triton.jit
def count_visits(counts, B, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    for tile in tl.range(tl.program_id(0), B * tiles_m * tiles_n, tl.num_programs(0)):
        batch, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        tl.atomic_add(counts + (batch * tiles_m + tile_m) * tiles_n + tile_n, 1)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
def test_each_tile_is_visited_once(group):
    """Bands of 4 and of 3 rows leave a short last one."""
    counts = torch.zeros(2, 5, 3, dtype=torch.int32)
    count_visits[(4,)](counts, 2, 5, 3, GROUP_M=group)
    assert (counts == 1).all()


@pytest.mark.parametrize("name", ["persistent", "descriptor"])
def test_persistent_programs_take_every_tile(name):
    a, b = torch.randn(80, 16), torch.randn(16, 48)
    for group in (1, 4, 8):
        config = config_of(name, BLOCK_M=16, BLOCK_N=16, BLOCK_K=16, GROUP_M=group)
        torch.testing.assert_close(KERNEL.run(config, a, b), a @ b)


MISALIGNED = {
    "rows of 17": lambda: (torch.randn(16, 17), torch.randn(17, 32)),
    "results of 17": lambda: (torch.randn(16, 32), torch.randn(17, 32).mT),
    "odd base address": lambda: (torch.randn(16 * 32 + 1)[1:].view(16, 32), torch.randn(32, 32)),
    "padded rows": lambda: (torch.randn(16, 33)[:, :32], torch.randn(32, 32)),
    "every other column": lambda: (torch.randn(16, 64)[:, ::2], torch.randn(32, 32)),
    "one row for all": lambda: (torch.randn(1, 32).expand(16, 32), torch.randn(32, 32)),
    "a batch": lambda: (torch.randn(2, 16, 32), torch.randn(2, 32, 32)),
}


@pytest.mark.parametrize("case", MISALIGNED)
def test_descriptors_give_way_where_they_may_not_be_used(case, launched):
    a, b = MISALIGNED[case]()
    torch.testing.assert_close(KERNEL.run(config_of("descriptor"), a, b), a @ b)
    assert launched == ["persistent"]


def test_skinny_gives_way_to_many_rows(launched):
    a, b = torch.randn(17, 32), torch.randn(32, 32)
    torch.testing.assert_close(KERNEL.run(config_of("skinny"), a, b), a @ b)
    assert launched == ["tiled"]


@pytest.mark.parametrize("name", ["tiled", "tiled in parts", "persistent", "descriptor"])
def test_a_rows_bits_do_not_depend_on_other_rows(name):
    a, b = torch.randn(40, 48), torch.randn(48, 40)
    config = config_of(name)
    whole = KERNEL.run(config, a, b)
    for rows in (1, 33):
        assert torch.equal(KERNEL.run(config, a[:rows], b), whole[:rows])


@pytest.mark.parametrize("profile", ["h100", "mi300x"])
def test_whatever_is_tuned_for_its_batch_a_row_of_a_batch_invariant_product_has_the_same_bits(profile):
    space, where = registry.load("gemm").space, device.profile(profile)
    a, b = torch.randn(200, 96).half(), torch.randn(96, 64).half()
    bits, structures = set(), set()
    for rows in (1, 17, 200):
        args = a[:rows], b, None, "silu", None, None, None, None, True
        allowed = list(space.allowed(KERNEL.problem(*args), where))
        for config in random.Random(rows).sample(allowed, 4):
            bits.add(KERNEL.run(config, *args)[0].numpy().tobytes())
            structures.add(config["STRUCTURE"])
    assert len(bits) == 1
    assert structures == {"tiled"} | ({"descriptor"} if profile == "h100" else set())


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(STRUCTURES)),
    st.tuples(*[st.integers(0, 70)] * 3),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from([None, *ACTIVATIONS]),
)
def test_any_small_shape(name, sizes, flags, activation):
    (M, N, K), (a_by_column, b_by_column, extras) = sizes, flags
    M, N = M % 17 if name.startswith("skinny") else M, N - N % 2
    a = torch.randn(K, M).mT if a_by_column else torch.randn(M, K)
    b = torch.randn(N, K).mT if b_by_column else torch.randn(K, N)
    columns = N // 2 if activation == "swiglu" else N
    bias, residual = (torch.randn(N), torch.randn(M, columns)) if extras else (None, None)
    args = a, b, bias, activation, residual
    exact = KERNEL.reference(*(x.double() if isinstance(x, torch.Tensor) else x for x in args))
    result = KERNEL.run(config_of(name), *args)
    torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-4)


def test_no_config_needs_the_parameters_of_another_architecture():
    a, b = torch.randn(8, 32), torch.randn(32, 32)
    for structure in ("tiled", "persistent", "descriptor", "skinny"):
        torch.testing.assert_close(KERNEL.run(Config({**TILE, "STRUCTURE": structure}), a, b), a @ b)


def test_a_launch_in_parts_has_two_signatures():
    problem = KERNEL.parse("M=64,N=96,K=256,dtype=float16,bias=true,activation=swiglu")
    parts, whole = KERNEL.signature(problem, config_of("tiled in parts"))
    assert parts.types["c"] == "*fp32" and parts.constexprs["bias"] is None
    assert whole.types["c"] == whole.types["bias"] == "*fp16" and whole.types["parts"] == "*fp32"
    # 2 parts of 2 x 3 tiles; tiles of 16 x 64 results.
    assert (parts.programs, whole.programs) == (12, 4)
    (one,) = KERNEL.signature(problem, config_of("persistent"))
    assert one.programs == 6


def test_results_go_where_they_are_wanted():
    a, b = torch.randn(5, 16).bfloat16(), torch.randn(16, 8).bfloat16()
    out = torch.full((5, 8), float("nan"), dtype=torch.bfloat16)
    assert ops.matmul(a, b, activation="relu", out=out) is out
    torch.testing.assert_close(out, torch.relu(a.float() @ b.float()).bfloat16())
    for name in STRUCTURES:
        out = torch.full((5, 8), float("nan"))
        assert KERNEL.run(config_of(name), a.float(), b.float(), out=out) is out
        torch.testing.assert_close(out, a.float() @ b.float())


def test_a_result_shares_no_memory_with_what_is_still_read():
    rows = torch.randn(33, 16)
    a, b, residual = rows[:16], torch.randn(16, 16), torch.randn(16, 16)
    for out, name in ((a, "a"), (rows[1:17], "a"), (b, "b")):
        with pytest.raises(ValueError, match=f"out shares memory with {name}, which is still read"):
            ops.matmul(a, b, out=out)
    with pytest.raises(ValueError, match="out shares memory with residual"):
        ops.matmul(torch.randn(16, 16), b, residual=rows[:16], out=rows[1:17])
    expected = a @ b + residual
    assert ops.matmul(a, b, residual=residual, out=residual) is residual
    torch.testing.assert_close(residual, expected)


def test_what_is_added_may_be_of_another_16_bit_dtype_than_the_operands():
    a, b = torch.randn(4, 16).bfloat16(), torch.randn(16, 6).bfloat16()
    bias, residual = torch.randn(6).half(), torch.randn(4, 6).half()
    result = ops.matmul(a, b, bias=bias, residual=residual, out_dtype=torch.float16)
    exact = a.double() @ b.double() + bias.double() + residual.double()
    torch.testing.assert_close(result, exact.half(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_gradients_are_those_of_the_formula(activation):
    def arguments(dtype):
        generator = torch.Generator().manual_seed(1)
        shapes = (2, 1, 3, 4), (5, 4, 6), (6,), (2, 5, 3, 3 if activation == "swiglu" else 6)
        return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]

    def ours(a, b, bias, residual):
        return ops.matmul(a, b, bias=bias, activation=activation, residual=residual)

    exact, single = arguments(torch.float64), arguments(torch.float32)
    assert torch.autograd.gradcheck(ours, exact, fast_mode=True)
    weights = torch.rand_like(ours(*exact))
    expected = torch.autograd.grad((ours(*exact) * weights).sum(), exact)
    result = torch.autograd.grad((ours(*single) * weights.float()).sum(), single)
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [None, "gelu", "swiglu"])
def test_gradients_have_gradients(activation):
    a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (4, 6)))
    assert torch.autograd.gradgradcheck(
        lambda a, b: ops.matmul(a, b, activation=activation), (a, b), fast_mode=True
    )


def test_a_layer_of_half_precision_with_a_wide_result_trains():
    a, b = torch.randn(2, 5, 16).bfloat16().requires_grad_(), torch.randn(16, 8).bfloat16().requires_grad_()
    result = ops.matmul(a, b, bias=torch.zeros(8), out_dtype=torch.float32)
    grad_a, grad_b = torch.autograd.grad(result.sum(), (a, b))
    assert grad_a.dtype == grad_b.dtype == torch.bfloat16
    torch.testing.assert_close(grad_b.float(), a.float().sum((0, 1))[:, None].expand(16, 8), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(grad_a.float(), b.float().sum(1).expand(2, 5, 16), rtol=2e-2, atol=2e-2)


def test_gradients_of_frozen_operands_are_not_computed(monkeypatch):
    calls = []
    run = dispatch.run
    monkeypatch.setattr(dispatch, "run", lambda name, *args, **more: calls.append(name) or run(name, *args, **more))
    ops.matmul(torch.randn(3, 4), torch.randn(4, 6, requires_grad=True)).sum().backward()
    assert calls == ["gemm", "gemm"]


def test_float8_has_no_gradient():
    a, b = torch.randn(16, 16).to(torch.float8_e4m3fn), torch.randn(16, 16).to(torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match="float8_e4m3fn has no gradient; train in bfloat16"):
        ops.matmul(a.requires_grad_(), b).sum().backward()


X, W = torch.ones(3, 4), torch.ones(4, 6)
FP8 = X.to(torch.float8_e5m2), W.to(torch.float8_e5m2)
BYTES = X.to(torch.int8), W.to(torch.int8)
ONE = torch.ones(())
BAD = {
    "activation": (
        (X, W),
        {"activation": "tanh"},
        "activation is 'tanh'; use None or one of relu, gelu, gelu_tanh",
    ),
    "odd": ((X, torch.ones(4, 5)), {"activation": "swiglu"}, "b has 5 columns; swiglu takes an even number"),
    "bias shape": ((X, W), {"bias": torch.ones(4)}, r"bias has shape \(4,\); it must be \(6,\)"),
    "bias dtype": ((X, W), {"bias": torch.ones(6).half()}, "bias is torch.float16 on cpu; like the result"),
    "bias device": ((X, W), {"bias": torch.ones(6, device="meta")}, "bias is torch.float32 on meta"),
    "residual": ((X, W), {"residual": torch.ones(6)}, r"residual has shape \(6,\); it must be \(3, 6\)"),
    "gated residual": ((X, W), {"residual": torch.ones(3, 6), "activation": "swiglu"}, r"it must be \(3, 3\)"),
    "one scale": (FP8, {"scale_b": ONE}, "scale_a is None and scale_b is given; give both or neither"),
    "scaled float": ((X, W), {"scale_a": ONE, "scale_b": ONE}, "scales are for float8 and int8"),
    "scale dtype": (FP8, {"scale_a": ONE, "scale_b": ONE.double()}, "scale_b is torch.float64 on cpu"),
    "scale shapes": (FP8, {"scale_a": torch.ones(3, 1), "scale_b": ONE}, r"or \(3, 1\) and \(1, 6\)"),
    "scale count": (BYTES, {"scale_a": torch.ones(3), "scale_b": torch.ones(6)}, "give one number each"),
    "out_dtype": (
        (X, W),
        {"out_dtype": torch.float64},
        "out_dtype is torch.float64; for torch.float32 it is one of",
    ),
    "wide out_dtype": ((X, W), {"out_dtype": torch.int32}, "out_dtype is torch.int32"),
    "double": (
        (X.double(), W.double()),
        {"out_dtype": torch.float32},
        "for torch.float64 it is one of torch.float64",
    ),
    "int32 and bias": (BYTES, {"bias": torch.ones(6)}, "bias is given and the result is int32"),
    "mixed float8": ((X.to(torch.float8_e4m3fn), FP8[1]), {}, "b is torch.float8_e5m2"),
    "out shape": ((X, W), {"out": torch.ones(3, 5)}, r"out has shape \(3, 5\); it must be \(3, 6\)"),
    "out dtype": ((X, W), {"out": torch.ones(3, 6).half()}, "out is torch.float16 on cpu"),
    "out strides": ((X, W), {"out": torch.ones(6, 3).T}, r"out has strides \(1, 3\); it must be contiguous"),
    "out and gradients": ((X.clone().requires_grad_(), W), {"out": torch.ones(3, 6)}, "call it without out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_before_anything_runs(case, monkeypatch):
    monkeypatch.setattr(dispatch, "run", lambda *args, **kwargs: pytest.fail("it ran"))
    args, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ops.matmul(*args, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("M=4,N=5,K=4,dtype=float16,activation=swiglu", "N=5 must be even"),
        ("M=4,N=4,K=4,dtype=float16,scale=row", "scale=row is for float8 and int8"),
        ("M=4,N=4,K=4,dtype=float16,tf32=true", "tf32=true is for dtype=float32"),
        ("M=4,N=4,K=4,dtype=int8,fast_accum=true", "fast_accum=true is for float8, not for dtype=int8"),
        ("M=4,N=4,K=4,dtype=int8,bias=true", "give out=bfloat16"),
        ("M=4,N=4,K=4,dtype=float16,out=int32", "a result in int32 is of dtype=int8"),
        ("M=4,N=4,K=4,dtype=int32", "dtype=int32 must be one of float16"),
    ],
)
def test_bad_problems_are_told(text, message):
    with pytest.raises(UsageError, match=message):
        KERNEL.parse(text)


def test_what_is_the_default_is_not_spelled():
    a, b = X.half(), W.half()
    plain = "M=3,N=6,K=4,dtype=float16"
    assert str(KERNEL.problem(a, b, out_dtype=torch.float16, allow_tf32=True, fast_accum=True)) == plain
    assert (
        str(KERNEL.problem(a, b, out_dtype=torch.float32, bias=torch.ones(6))) == f"{plain},bias=true,out=float32"
    )
    assert str(KERNEL.problem(*BYTES, out_dtype=torch.int32)) == "M=3,N=6,K=4,dtype=int8"
    assert "out=" not in str(KERNEL.problem(*FP8, scale_a=ONE, scale_b=ONE, out_dtype=torch.bfloat16))


def test_keys_tell_problems_apart():
    options = [{}, {"bias": torch.ones(6)}, {"activation": "relu"}, {"residual": torch.ones(3, 6)}]
    options += [{"out_dtype": torch.half}, {"batch_invariant": True}, {"allow_tf32": True}, {"fast_accum": True}]
    assert len({KERNEL.key(X, W, **option) for option in options}) == len(options)
    scales = [(ONE, ONE), (torch.ones(3, 1), torch.ones(1, 6)), (None, None)]
    assert len({KERNEL.key(*FP8, scale_a=a, scale_b=b) for a, b in scales}) == len(scales)


@pytest.fixture
def served(monkeypatch):
    """Arguments of the kernel, one tuple a call."""
    calls = []
    run = dispatch.run
    monkeypatch.setattr(dispatch, "run", lambda name, *args: calls.append(args) or run(name, *args))
    return calls


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.linear(X, W.T.contiguous(), torch.arange(6.0)),
        lambda: torch.addmm(torch.arange(6.0), X, W),
    ],
)
def test_a_layers_bias_is_added_by_the_kernel(call, served):
    with autotune.route():
        result = call()
    torch.testing.assert_close(result, X @ W + torch.arange(6.0))
    ((_, _, bias, *_),) = served
    assert torch.equal(bias, torch.arange(6.0))


@pytest.mark.parametrize("allowed", [True, False])
def test_torchs_own_setting_decides_on_tf32(allowed, served):
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        with autotune.route():
            X @ W
        ops.matmul(X, W)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    # What is at its default at the end, torch leaves out.
    assert [args[9:] for args in served] == [(True,) if allowed else (), ()]


@pytest.mark.parametrize("fast", [True, False])
def test_torchs_scaled_product_is_served(fast, served):
    a, b = torch.randn(16, 32).to(torch.float8_e4m3fn), torch.randn(16, 32).to(torch.float8_e4m3fn).T
    scale_a, scale_b = torch.rand(16, 1), torch.rand(1, 16)
    with autotune.route():
        result = torch._scaled_mm(a, b, scale_a, scale_b, out_dtype=torch.bfloat16, use_fast_accum=fast)
    expected = ((a.float() @ b.float()) * scale_a * scale_b).bfloat16()
    torch.testing.assert_close(result, expected)
    assert [args[10:] for args in served] == [(True,) if fast else ()]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("dtype=float8_e4m3fn", True),
        ("dtype=float8_e4m3fn,scale=tensor,out=float32", True),
        ("dtype=float8_e4m3fn,scale=row", True),
        ("dtype=float8_e4m3fn,scale=row,out=float16", False),
        ("dtype=float8_e5m2", False),
        ("dtype=float8_e4m3fn,K=24", False),
        ("dtype=float8_e4m3fn,layout=nn", False),
        ("dtype=int8", True),
        ("dtype=int8,M=16", False),
        ("dtype=int8,K=0", False),
        ("dtype=int8,K=36", False),
        ("dtype=int8,N=36", False),
    ],
)
def test_torchs_product_of_8_bits_is_the_baseline_where_torch_takes_it(text, fits):
    problem = KERNEL.make(**{"M": 32, "N": 32, "K": 32, "layout": "nt", **Problem.parse(text)})
    a, b, _, _, _, scale_a, *_ = (*KERNEL.inputs(problem, 0, "cpu"), *[None] * 8)
    if a.dtype == torch.int8:
        assert _gemm_reference._fits_int_mm(a, b) == fits
    else:
        dtype = getattr(torch, _gemm_problem.out_dtype(problem))
        assert _gemm_reference._fits_scaled_mm(a, b, scale_a, dtype) == fits


def test_the_baseline_computes_the_same():
    for text in PROBLEMS:
        args = KERNEL.inputs(KERNEL.parse(text), 0, "cpu")
        result, expected = baseline(*args), KERNEL.reference(*args)
        assert result.dtype == expected.dtype and result.shape == expected.shape
        torch.testing.assert_close(result.double(), expected.double(), rtol=2e-2, atol=2e-1)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    with Worker({"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": cache}) as worker:
        yield worker


def assembled(worker, profile, text, **config):
    loaded = registry.load("gemm")
    tile = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP_M": 8, "num_warps": 4, "num_stages": 3}
    task = loaded.entry, KERNEL.parse(text), Config({**tile, **config}), device.profile(profile)
    return worker.call(assembly, *task, timeout_s=120)


SQUARE = "M=4096,N=4096,K=4096,dtype=float16,layout=nt"


@pytest.mark.parametrize(("profile", "instruction"), [("h100", "wgmma.mma_async"), ("b200", "tcgen05.mma")])
def test_descriptors_move_tiles_by_tma_and_warps_specialize(worker, profile, instruction):
    plain = assembled(worker, profile, SQUARE, STRUCTURE="descriptor")
    assert "cp.async.bulk.tensor" in plain and instruction in plain and "setmaxnreg" not in plain
    assert "setmaxnreg" in assembled(worker, profile, SQUARE, STRUCTURE="descriptor", WARP_SPECIALIZE=True)


def test_the_tiled_loop_copies_16_bytes_at_a_time(worker):
    gated = SQUARE.replace("nt", "nn") + ",bias=true,activation=swiglu"
    for text in (SQUARE, gated):
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global.*, (0x\w+|\d+)", assembled(worker, "h100", text))
        assert copies and {int(size, 0) for size in copies} == {16}, text


def test_the_skinny_loop_reads_16_bytes_at_a_time_and_shuffles_nothing(worker):
    text = assembled(worker, "h100", SQUARE.replace("M=4096", "M=1"), STRUCTURE="skinny", BLOCK_N=32, num_stages=1)
    loop = text[: text.rindex("bra")]
    assert re.search(r"ld\.global[.\w:]*\.v4", loop) and "shfl" not in loop


def test_float8_is_taken_over_into_float32_unless_its_own_bits_will_do(worker):
    text = SQUARE.replace("float16", "float8_e4m3fn") + ",scale=row"
    fast, exact = (assembled(worker, "h100", text + flag, BLOCK_K=128) for flag in (",fast_accum=true", ""))
    assert exact.count("add.f32") - fast.count("add.f32") >= 128
