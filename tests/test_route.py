"""Routed models must not notice: the same results as plain torch, in whatever they are wrapped."""

import threading

import pytest
import torch
from torch.nn import functional as F

import autotune
from autotune import dispatch, ops

GENERATOR = torch.Generator().manual_seed(0)
X, W = torch.randn(2, 3, 8, generator=GENERATOR), torch.randn(5, 8, generator=GENERATOR)


def both(function):
    expected = function()
    with autotune.route():
        return function(), expected


ROUTED = {
    "linear": lambda: F.linear(X, W, torch.ones(5)),
    "operator": lambda: X @ W.T,
    "addmm": lambda: torch.addmm(torch.ones(5), X[0], W.T, beta=2, alpha=3),
    "addmm of nothing": lambda: torch.addmm(torch.full((5,), float("nan")), X[0], W.T, beta=0),
    "addmm that scales nothing": lambda: torch.addmm(torch.ones(5), torch.full((3, 8), float("inf")), W.T, alpha=0),
    "baddbmm": lambda: torch.baddbmm(torch.ones(3), X, X.mT),
    "baddbmm that would overflow": lambda: torch.baddbmm(
        torch.zeros(2, 8, 8).half(),
        torch.full((2, 8, 64), 60.0).half(),
        torch.full((2, 64, 8), 60.0).half(),
        beta=0,
        alpha=0.1,
    ),
    "attention": lambda: F.scaled_dot_product_attention(*[X.view(1, 2, 3, 8)] * 3),
    "masked attention": lambda: F.scaled_dot_product_attention(
        *[X.view(1, 2, 3, 8)] * 3, attn_mask=torch.ones(3, 3, dtype=torch.bool).tril()
    ),
    "vector": lambda: F.linear(X[0, 0], W),
    "weight of one dimension": lambda: F.linear(X, W[0]),
    "out": lambda: torch.mm(X[0], W.T, out=torch.empty(3, 5)),
    "integers": lambda: torch.ones(3, 3, dtype=torch.int64) @ torch.ones(3, 3, dtype=torch.int64),
    "autocast": lambda: autocast(lambda: F.linear(F.linear(X.abs(), W.abs(), torch.ones(5)), torch.ones(4, 5))),
    "autocast of mixed dtypes": lambda: autocast(lambda: F.linear(X.bfloat16(), W)),
    "grad transform": lambda: torch.func.grad(lambda x: F.linear(x, W).square().sum())(X),
    "forward mode": lambda: torch.func.jvp(lambda x: F.linear(x, W), (X,), (X,))[1],
    "vmap": lambda: torch.vmap(torch.mm)(X, X.mT),
    "nested": lambda: F.linear(
        torch.nested.as_nested_tensor([X[0], X[1, :2]], layout=torch.jagged), W
    ).to_padded_tensor(0),
}


def autocast(function):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return function()


# Both are torch's own: nested tensors are a prototype, and forward mode still uses torch.jit.script.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("case", ROUTED)
def test_routed_calls_give_torchs_results(case):
    result, expected = both(ROUTED[case])
    # A rounding to bfloat16 is off by 2**-8 of the value at most. Each side of "autocast" has up to three on the
    # way to a result: a product, the same with its bias, and the sum of five of these, which is off by no more than
    # they are, since all are positive. "autocast of mixed dtypes" has one.
    rtol = 6 * 2**-8 if expected.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(result, expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.mm(X, X.mT),
        lambda: torch.bmm(X[0], X[0].T),
        lambda: F.linear(X, torch.randn(1, 8), torch.randn(7)),
        lambda: torch.addmm(torch.ones(9, 9), X[0], W.T),
        lambda: X @ W,
        lambda: X @ W.T.half(),
    ],
)
def test_what_torch_refuses_is_refused_by_torch(call):
    with pytest.raises(RuntimeError) as plain:
        call()
    with autotune.route(), pytest.raises(RuntimeError) as routed:
        call()
    assert str(routed.value) == str(plain.value)


def test_routed_calls_do_go_through_dispatch(monkeypatch):
    calls = []
    run = dispatch.run
    monkeypatch.setattr(dispatch, "run", lambda name, *args: calls.append(name) or run(name, *args))
    with autotune.route():
        ROUTED["linear"](), ROUTED["attention"](), ROUTED["masked attention"]()
    F.linear(X, W)
    assert calls == ["gemm", "attention"]


def test_a_routed_model_trains():
    layer = torch.nn.Linear(8, 5)
    with autotune.route():
        layer(X).square().sum().backward()
    routed = layer.weight.grad.clone()
    layer.zero_grad()
    layer(X).square().sum().backward()
    torch.testing.assert_close(routed, layer.weight.grad, rtol=1e-4, atol=1e-4)


def test_a_routed_model_compiles_whole():
    layer = torch.nn.Linear(8, 5)
    with autotune.route():
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(X), layer(X))


def test_operators_keep_their_dtype_under_autocast():
    a, q = torch.randn(16, 16), torch.randn(1, 2, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = ops.matmul(a, a), ops.attention(q, q, q), ops.matmul(a.double(), a.double())
    assert [result.dtype for result in results] == [torch.float32, torch.float32, torch.float64]
    torch.testing.assert_close(results[0], a @ a)


def test_threads_may_interpret():
    a, b = torch.randn(32, 32), torch.randn(32, 32)
    results = []
    threads = [threading.Thread(target=lambda: results.append(ops.matmul(a, b))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        torch.testing.assert_close(result, a @ b)
