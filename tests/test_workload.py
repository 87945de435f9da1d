import json

import pytest
import torch
from torch.nn import functional as F

import autotune
from autotune.data import Problem, UsageError
from autotune.kernels._bsr import BsrWeight
from autotune.summary import Job
from autotune.workload import Workload


def recorded(function):
    with autotune.record() as workload:
        function()
    return {f"{kernel} {problem}": count for (kernel, problem), count in workload.calls.items()}


X, W = torch.randn(2, 3, 8), torch.randn(5, 8)
NT = "gemm M=6,N=5,K=8,dtype=float32,layout=nt"
CALLS = {
    "linear": (lambda: F.linear(X, W), {NT: 1}),
    "linear with bias": (lambda: F.linear(X, W, torch.ones(5)), {f"{NT},bias=true": 1}),
    "module": (lambda: torch.nn.Linear(8, 5)(X), {f"{NT},bias=true": 1}),
    "matmul": (lambda: torch.matmul(X, W.T), {NT: 1}),
    "operator": (lambda: X @ W.T, {NT: 1}),
    "method": (lambda: X.matmul(W.T), {NT: 1}),
    "mm": (lambda: torch.mm(X[0], W.T), {"gemm M=3,N=5,K=8,dtype=float32,layout=nt": 1}),
    "addmm": (
        lambda: torch.addmm(torch.ones(5), X[0], W.T),
        {"gemm M=3,N=5,K=8,dtype=float32,layout=nt,bias=true": 1},
    ),
    "bmm": (lambda: torch.bmm(X, X.mT), {"gemm M=3,N=3,K=8,dtype=float32,B=2,layout=nt": 1}),
    "baddbmm": (
        lambda: torch.baddbmm(torch.ones(3), X, X.mT),
        {"gemm M=3,N=3,K=8,dtype=float32,B=2,layout=nt,bias=true": 1},
    ),
    "einsum": (lambda: torch.einsum("bik,nk->bin", X, W), {NT: 1}),
    "attention": (
        lambda: F.scaled_dot_product_attention(*[torch.randn(1, 2, 4, 8)] * 3, is_causal=True),
        {"attention B=1,H=2,HKV=2,SQ=4,SK=4,D=8,dtype=float32,causal=true": 1},
    ),
    "many": (lambda: [F.linear(X, W) for _ in range(7)], {NT: 7}),
    "nothing": (lambda: X + 1, {}),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode], ids=lambda m: m.__name__)
@pytest.mark.parametrize("case", CALLS)
def test_calls_become_problems(case, mode):
    function, expected = CALLS[case]
    with mode():
        assert recorded(function) == expected


def test_results_are_untouched():
    with autotune.record():
        inside = F.linear(X, W)
    assert torch.equal(inside, F.linear(X, W))


def test_modules_that_call_inside_torch_are_seen():
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    expected = {
        "gemm M=20,N=96,K=32,dtype=float32,layout=nt": 1,
        "attention B=2,H=4,HKV=4,SQ=10,SK=10,D=8,dtype=float32,layout=bshd": 1,
        "gemm M=20,N=32,K=32,dtype=float32,layout=nt,bias=true": 1,
        "gemm M=20,N=64,K=32,dtype=float32,layout=nt,bias=true": 1,
        "gemm M=20,N=32,K=64,dtype=float32,layout=nt,bias=true": 1,
    }
    assert recorded(lambda: layer.eval()(torch.randn(2, 10, 32))) == expected


def test_the_backward_pass_is_recorded():
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    seen = recorded(lambda: F.linear(x, w).sum().backward())
    # Forward, x's gradient (6x5 @ 5x8) and w's (5x6 @ 6x8).
    shapes = sorted(key.split(",dtype")[0] for key in seen)
    assert shapes == ["gemm M=5,N=8,K=6", "gemm M=6,N=5,K=8", "gemm M=6,N=8,K=5"] and set(seen.values()) == {1}


def test_operators_without_a_torch_call_are_recorded():
    q, k, v = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    seen = recorded(lambda: autotune.ops.attention(q, k, v).sum().backward())
    problem = "B=1,H=2,HKV=2,SQ=4,SK=4,D=8,dtype=float32"
    assert seen == {f"attention {problem}": 1, f"attention_backward {problem}": 1}
    cache = torch.randn(1, 16, 2, 8)
    decode = recorded(lambda: autotune.ops.decode_attention(cache[:, :1], cache, cache, torch.tensor([3])))
    assert decode == {"decode_attention B=1,H=2,HKV=2,SK=16,D=8,dtype=float32": 1}


def test_what_cannot_be_served_is_told_with_the_reason():
    q = torch.randn(1, 2, 4, 8)
    with autotune.record() as workload, torch.no_grad():
        F.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(4, 4, dtype=torch.bool))
        F.linear(X.double(), W.double())
        torch.ones(3, 3, dtype=torch.int64) @ torch.ones(3, 3, dtype=torch.int64)
    assert not [key for key in workload.calls if key[0] == "attention"]
    reasons = {f"{call}: {reason}": count for (call, reason), count in workload.skipped.items()}
    assert reasons["scaled_dot_product_attention: a mask is given"] == 1
    assert any(reason.startswith("linear: x is torch.float64") or "torch.float64" in reason for reason in reasons)
    assert any("torch.int64" in reason for reason in reasons)
    assert sum(workload.skipped.values()) == 3


def test_a_sparse_layer_is_recorded_as_sparse():
    dense = torch.randn(64, 64)
    dense[:32, :32] = 0
    weight = dense.to_sparse_bsr((32, 32))
    seen = recorded(lambda: F.linear(torch.randn(5, 64), weight))
    assert seen == {"bsr_matmul M=5,N=64,K=64,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=75,dtype=float32": 1}


def test_save_and_load(tmp_path):
    with autotune.record() as workload:
        for _ in range(3):
            F.linear(X, W)
        torch.bmm(X, X.mT)
    workload.save(tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert {"kernel": "gemm", "problem": NT.removeprefix("gemm "), "calls": 3} in [
        json.loads(line) for line in lines
    ]
    loaded = Workload.load(tmp_path / "a.jsonl")
    assert loaded == workload
    loaded.save(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    # Most work first: 3 calls of 6 x 5 x 8 before one of 2 x 3 x 3 x 8.
    bmm = Problem.parse("M=3,N=3,K=8,dtype=float32,B=2,layout=nt")
    assert loaded.jobs() == [Job("gemm", Problem.parse(NT.removeprefix("gemm ")), 3), Job("gemm", bmm, 1)]


def test_calls_weigh_as_work_does(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps({"kernel": "gemm", "problem": f"M={m},N=64,K=64,dtype=float32", "calls": calls}) + "\n"
            for m, calls in ((64, 1), (32, 3), (16, 3), (64, 1))
        )
    )
    jobs = Workload.load(tmp_path / "a.jsonl").jobs()
    # 64 x 2 before 32 x 3 before 16 x 3: the two lines of one problem are one job.
    assert [(job.problem["M"], job.calls) for job in jobs] == [(64, 2), (32, 3), (16, 3)]


GOOD = '{"kernel": "gemm", "problem": "M=1,N=2,K=3,dtype=float16", "calls": 2}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 2 is not"),
        ("[]", "line 2 is not"),
        ('{"kernel": "gemm"}', "line 2 is not"),
        (GOOD.replace("gemm", "gem"), "line 2: unknown kernel"),
        (GOOD.replace("M=1", "M=-1"), "line 2: problem"),
        (GOOD.replace("float16", "float99"), "line 2: problem"),
        (GOOD.replace("2}", "0}"), "line 2: calls is 0"),
        (GOOD.replace("2}", '"2"}'), "line 2: calls is '2'"),
        (GOOD.replace("2}", "9" * 5000 + "}"), "line 2 is not"),
        (GOOD.replace('"gemm"', "[]"), "line 2: kernel is"),
        ("[" * 100_000, "line 2 is not"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(GOOD + line + "\n")
    with pytest.raises(UsageError, match=message):
        Workload.load(path)


def test_a_file_without_problems_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00" * 100)
    for name, message in (("empty", "names no problem"), ("binary", "can't be read"), ("absent", "can't be read")):
        with pytest.raises(UsageError, match=message):
            Workload.load(tmp_path / name)


def test_what_runs_is_recorded_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16), autotune.record() as workload:
        F.linear(X, W)
        F.linear(X.bfloat16(), W)
        # Not cast by autocast, nor by what follows it.
        autotune.ops.matmul(X[0], W.mT)
    assert {str(problem): count for (_, problem), count in workload.calls.items()} == {
        "M=6,N=5,K=8,dtype=bfloat16,layout=nt": 2,
        "M=3,N=5,K=8,dtype=float32,layout=nt": 1,
    }
    assert not workload.skipped


def test_recording_harms_no_program():
    """Tensors that have no data, or no strides, are told as skipped."""
    with autotune.record() as workload:
        F.linear(X, W[0])
        torch.func.grad(lambda x: F.linear(x, W).sum())(X)
        torch.vmap(torch.mm)(X, X.mT)
        F.linear(torch.ones(2, 8, device="meta"), torch.ones(5, 8, device="meta"))
    assert any(call == "linear" for call, _ in workload.skipped)


def test_the_operators_are_recorded_too():
    a, q = torch.randn(16, 16), torch.randn(1, 2, 4, 8)
    weight = BsrWeight.of(torch.ones(32, 32).to_sparse_bsr((16, 16)))

    def call():
        autotune.ops.matmul(a, a)
        autotune.ops.attention(q, q, q, causal=True)
        autotune.ops.bsr_matmul(torch.ones(4, 32), weight)
        with autotune.route():
            F.linear(X, W)

    seen = recorded(call)
    assert sorted(key.split()[0] for key in seen) == ["attention", "bsr_matmul", "gemm", "gemm"]
    assert set(seen.values()) == {1}
