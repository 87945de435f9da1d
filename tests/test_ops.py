from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from autotune import ops, route
from autotune.kernels._bsr import BsrWeight

MATMUL_SHAPES = [
    ((5, 7), (7, 3)),
    ((2, 5, 7), (7, 3)),
    ((5, 7), (2, 7, 3)),
    ((2, 1, 5, 7), (3, 7, 3)),
    ((4, 1, 5, 7), (1, 3, 7, 2)),
    ((0, 7), (7, 3)),
    ((5, 0), (0, 3)),
    ((5, 7), (7, 0)),
    ((2, 0, 7), (7, 3)),
    ((0, 5, 7), (0, 7, 3)),
    ((3, 5, 0), (3, 0, 2)),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def assert_near(result, expected, dtype):
    rtol = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-5, torch.float64: 1e-9}[dtype]
    assert result.dtype == dtype and result.shape == expected.shape
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=rtol)


def attention_inputs(dtype=torch.float32, grad=False):
    shapes = ((2, 4, 9, 16), (2, 2, 11, 16), (2, 2, 11, 16))
    return tuple(torch.randn(shape).to(dtype).requires_grad_(grad) for shape in shapes)


def packed_inputs(grad=False):
    """Three sequences, the second empty."""
    q, k, v = (torch.randn(*shape, 16, requires_grad=grad) for shape in ((9, 4), (11, 2), (11, 2)))
    offsets = (torch.tensor(ends, dtype=torch.int32) for ends in ([0, 5, 5, 9], [0, 8, 8, 11]))
    return q, k, v, *offsets, 5, 8


def sparse(rows=64, columns=96, block=(32, 32), dtype=torch.float32, share=0.5):
    blocks = torch.rand(rows // block[0], columns // block[1]) < share
    dense = torch.randn(rows, columns) * blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return dense.to(dtype).to_sparse_bsr(block)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("left", "right"), MATMUL_SHAPES, ids=str)
def test_matmul_has_torchs_shapes(left, right, dtype):
    a, b = torch.randn(left).to(dtype), torch.randn(right).to(dtype)
    result = ops.matmul(a, b)
    assert_near(result, torch.matmul(a.double(), b.double()), dtype)
    assert result.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs(dtype, causal):
    q, k, v = attention_inputs(dtype)
    for scale in (None, 0.3):
        expected = torch.nn.functional.scaled_dot_product_attention(
            q.double(), k.double(), v.double(), is_causal=causal, scale=scale, enable_gqa=True
        )
        assert_near(ops.attention(q, k, v, causal=causal, scale=scale), expected, dtype)


def test_attention_without_keys_is_zero():
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 0, 8)
    assert torch.equal(ops.attention(q, k, k), torch.zeros_like(q))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(96,), (5, 96), (2, 3, 96), (0, 96)], ids=str)
def test_bsr_matmul_is_linear(shape, dtype):
    weight = sparse(dtype=dtype)
    x = torch.randn(shape).to(dtype)
    assert_near(ops.bsr_matmul(x, weight), x.double() @ weight.to_dense().double().T, dtype)


@pytest.mark.parametrize("block", [(16, 16), (16, 32), (64, 16), (8, 8), (3, 5)], ids=str)
def test_bsr_matmul_takes_any_block(block):
    """Those that are no power of two from 16 up go to torch."""
    weight = sparse(block[0] * 4, block[1] * 6, block)
    x = torch.randn(7, block[1] * 6)
    assert_near(ops.bsr_matmul(x, weight), (x.double() @ weight.to_dense().double().T), torch.float32)


def test_bsr_matmul_of_no_and_of_all_blocks():
    x = torch.randn(5, 96)
    for share in (0.0, 1.1):
        weight = sparse(share=share)
        assert_near(ops.bsr_matmul(x, weight), x.double() @ weight.to_dense().double().T, torch.float32)


def test_bsr_matmul_of_an_empty_block_row_and_32_bit_indices():
    dense = torch.randn(96, 64)
    dense[32:64] = 0
    weight = dense.to_sparse_bsr((32, 32))
    indices = weight.crow_indices().int(), weight.col_indices().int()
    narrow = torch.sparse_bsr_tensor(*indices, weight.values(), weight.shape, check_invariants=True)
    x = torch.randn(5, 64)
    for one in (weight, narrow):
        torch.testing.assert_close(ops.bsr_matmul(x, one), x @ dense.T)


def bsr_arguments(grad=True):
    weight = BsrWeight.of(sparse())
    values = weight.values.clone().requires_grad_(grad)
    return torch.randn(5, 96, requires_grad=grad), weight.crow, weight.columns, values, *weight.shape


def matmul_arguments(a, b, **options):
    """As the operator takes them."""
    rest = ("bias", "activation", "residual", "scale_a", "scale_b", "out_dtype", "batch_invariant", "allow_tf32")
    return a, b, *(options.get(name, False if name in rest[-2:] else None) for name in rest)


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


def scaled_arguments():
    # opcheck itself compares its arguments, which torch can't do in float8.
    a, b = torch.randint(-9, 9, (5, 32), dtype=torch.int8), torch.randint(-9, 9, (32, 16), dtype=torch.int8)
    return matmul_arguments(a, b, scale_a=torch.rand(5, 1), scale_b=torch.rand(1, 16), activation="silu")


SAMPLES = {
    "matmul": lambda: matmul_arguments(leaf(3, 5, 7), leaf(7, 3)),
    "matmul broadcast": lambda: matmul_arguments(torch.randn(3, 1, 5, 7), leaf(2, 7, 4)),
    "matmul empty": lambda: matmul_arguments(leaf(5, 0), leaf(0, 4), bias=leaf(4)),
    "matmul half": lambda: matmul_arguments(torch.randn(5, 7).half(), torch.randn(7, 4).half()),
    "matmul fused": lambda: matmul_arguments(
        leaf(5, 7), leaf(7, 6), bias=leaf(6), activation="swiglu", residual=leaf(5, 3), allow_tf32=True
    ),
    "matmul widened": lambda: matmul_arguments(
        torch.randn(5, 7).half(), torch.randn(7, 4).half(), out_dtype=torch.float32, batch_invariant=True
    ),
    "matmul scaled": scaled_arguments,
    "matmul_out": lambda: (torch.randn(5, 7), torch.randn(7, 4), torch.randn(4), "relu"),
    "attention": lambda: (*attention_inputs(grad=True), True, None),
    "attention scaled": lambda: (*attention_inputs(grad=True), False, 0.2, 4, 3.0),
    "attention_varlen": lambda: (*packed_inputs(grad=True), True, None, 4),
    "bsr_matmul": bsr_arguments,
}


@pytest.mark.parametrize("case", SAMPLES)
def test_operators_pass_opcheck(case):
    operator = getattr(torch.ops.autotune, case.split()[0]).default
    out = {"out": torch.empty(5, 4)} if case.endswith("_out") else {}
    results = torch.library.opcheck(operator, SAMPLES[case](), out)
    assert set(results.values()) == {"SUCCESS"}


def fused(a, b, bias, residual):
    return ops.matmul(a, b, bias=bias, activation="swiglu", residual=residual) + 1


def test_operators_trace_whole_under_compile():
    weight = BsrWeight.of(sparse())
    packed = packed_inputs(grad=True)
    cases = [
        (lambda a, b: torch.relu(ops.matmul(a, b)), SAMPLES["matmul"]()[:2]),
        (fused, (leaf(5, 7), leaf(7, 6), leaf(6), leaf(5, 3))),
        (lambda q, k, v: ops.attention(q, k, v, causal=True, window=5) * 2, attention_inputs(grad=True)),
        (
            lambda q, k, v: ops.attention_varlen(q, k, v, *packed[3:], causal=True, return_lse=True)[1] * 2,
            packed[:3],
        ),
        (lambda x: ops.bsr_matmul(x, weight) + 1, (torch.randn(5, 96, requires_grad=True),)),
    ]
    for function, args in cases:
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        expected = torch.autograd.grad(function(*args).sum(), args)
        result = compiled(*args)
        assert torch.equal(result, function(*args))
        for ours, theirs in zip(torch.autograd.grad(result.sum(), args), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def gradients(function, args):
    result = function(*args)
    weights = torch.linspace(0.5, 1.5, result.numel()).view_as(result)
    return torch.autograd.grad((result * weights).sum(), args)


def test_gradients_are_torchs():
    a, b = torch.randn(2, 5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    q, k, v = attention_inputs(grad=True)
    x = torch.randn(5, 96, requires_grad=True)
    weight = sparse()

    def sdpa(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def causal(q, k, v):
        return ops.attention(q, k, v, causal=True)

    for ours, theirs, args in (
        (ops.matmul, torch.matmul, (a, b)),
        (causal, sdpa, (q, k, v)),
        (lambda x: ops.bsr_matmul(x, weight), lambda x: x @ weight.to_dense().T, (x,)),
    ):
        for one, other in zip(gradients(ours, args), gradients(theirs, args), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_gradients_in_float64():
    q, k, v = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((1, 2, 3, 4), (1, 1, 5, 4), (1, 1, 5, 2))
    )
    options = {"causal": True, "window": 2, "return_lse": True}
    assert torch.autograd.gradcheck(lambda *args: ops.attention(*args, softcap=2.0, **options), (q, k, v))
    packed = tuple(t[0].transpose(0, 1).detach().requires_grad_() for t in (q, k, v))
    offsets = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 5])
    assert torch.autograd.gradcheck(lambda *args: ops.attention_varlen(*args, *offsets, 2, 4, **options), packed)
    a = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.matmul, (a, b))


def test_a_block_sparse_layer_trains():
    """The values are the parameter; their gradient is the dense one's blocks."""
    start = sparse()
    values = start.values().detach().clone().requires_grad_()
    indices = start.crow_indices(), start.col_indices()
    weight = torch.sparse_bsr_tensor(*indices, values, start.shape, check_invariants=True)
    dense = start.to_dense().requires_grad_()
    x = torch.randn(5, 96)
    ops.bsr_matmul(x, weight).square().sum().backward()
    (x @ dense.T).square().sum().backward()
    parts = BsrWeight.of(start)
    blocks = dense.grad.view(2, 32, 3, 32).transpose(1, 2)[parts.pattern.row_of, parts.columns]
    torch.testing.assert_close(values.grad, blocks, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.matmul(torch.ones(3), torch.ones(3, 3)), "a has shape"),
        (lambda: ops.matmul(torch.ones(3, 4), torch.ones(3, 4)), "the last size of a"),
        (lambda: ops.matmul(torch.ones(3, 3), torch.ones(3, 3).half()), "b is torch.float16"),
        (lambda: ops.attention(*[torch.ones(2, 3, 4)] * 3), "takes .batch, heads"),
        (lambda: ops.attention(torch.ones(1, 3, 4, 8), *[torch.ones(1, 2, 4, 8)] * 2), "divide"),
        (lambda: ops.bsr_matmul(torch.ones(3, 4), torch.ones(4, 4)), "to_sparse_bsr"),
    ],
)
def test_bad_input_is_told_before_anything_runs(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unknown_operator_is_named():
    with pytest.raises(AttributeError, match=r"BlockMask, BsrWeight, attention, .*matmul, sddmm"):
        _ = ops.convolution


class Severed(torch.autograd.Function):
    """Its argument gets no gradient, though it needs one."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


def test_a_result_without_gradient_has_none_to_pass_on():
    a, b = leaf(3, 4), leaf(4, 5)
    (Severed.apply(ops.matmul(a, b)).sum() + a.sum()).backward()
    assert torch.equal(a.grad, torch.ones(3, 4)) and b.grad is None


def test_unused_lse_costs_no_gradient(monkeypatch):
    seen = []
    backward = torch.ops.autotune.attention_backward
    monkeypatch.setattr(
        torch.ops.autotune, "attention_backward", lambda *args: seen.append(args) or backward(*args)
    )
    q, k, v = attention_inputs(grad=True)
    ops.attention(q, k, v).sum().backward()
    _, lse = ops.attention(q, k, v, return_lse=True)
    lse.sum().backward()
    assert [d_lse is None for _, d_lse, *_ in seen] == [True, False]
    assert not seen[1][0].any()


@pytest.mark.parametrize("routed", [False, True])
def test_activation_checkpointing(routed):
    x, layer = leaf(3, 5), torch.nn.Linear(5, 6)
    expected = torch.autograd.grad(layer(x).square().sum(), x)

    def called(x):
        return layer(x) if routed else ops.matmul(x, layer.weight.mT, bias=layer.bias)

    where = route if routed else nullcontext
    with where():
        result = checkpoint(called, x, use_reentrant=False, context_fn=lambda: (nullcontext(), where()))
    torch.testing.assert_close(torch.autograd.grad(result.square().sum(), x), expected)


def test_what_has_no_gradient_says_so():
    q, k, v = attention_inputs(grad=True)
    (slope,) = torch.autograd.grad(ops.attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="attention_backward has no gradient; detach"):
        slope.sum().backward()
    out = ops.decode_attention(leaf(1, 1, 2, 8), torch.ones(1, 4, 2, 8), torch.ones(1, 4, 2, 8), torch.tensor([3]))
    with pytest.raises(RuntimeError, match="decode_attention has no gradient"):
        out.sum().backward()


def test_gradients_of_tensors_without_data_have_their_shapes():
    a = torch.randn(3, 4, device="meta", requires_grad=True)
    ops.matmul(a, torch.randn(4, 5, device="meta")).sum().backward()
    assert a.grad.shape == a.shape and a.grad.is_meta


def test_whoever_keeps_out_for_a_backward_pass_learns_that_it_changed():
    kept = leaf(5, 4).exp()
    with torch.no_grad():
        ops.matmul(torch.randn(5, 7), torch.randn(7, 4), out=kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()
