import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from autotune import device, registry
from autotune.data import Choice, Config, Failure, Problem, Reason, Timing, Trial
from autotune.kernel import Work
from autotune.kernels._block_mask import BlockMask
from autotune.measure import Setting
from autotune.protocol import protocol_at
from autotune.store import Store
from benchmarks import _beside, attention, decode, matmul, record, sparse
from benchmarks._beside import time_beside
from benchmarks._fbgemm import fbgemm
from benchmarks._flex import flex
from benchmarks._operators import chosen_of
from benchmarks._rows import Row, summary, table
from benchmarks._scaled import scaled
from benchmarks.shapes import ATTENTION, DECODE, MATMUL, MODELS
from benchmarks.sparse_shapes import SPARSE

LISTS = {"gemm": MATMUL, "attention": ATTENTION, "decode_attention": DECODE, **SPARSE}
WALL = protocol_at("cpu")


def timing(ms):
    return Timing(ms, ms, ms, 3, str(WALL))


def row(problem="M=4,dtype=float16", tuned=1.0, name="list", flops=10**9, **peers):
    """Times in milliseconds; None where it did not run."""
    failure = Failure(Reason.RUNTIME, "no such backend", str(WALL))
    outcomes = {key: failure if ms is None else timing(ms) for key, ms in {**peers, "tuned": tuned}.items()}
    config = Config(BLOCK_M=16)
    return Row(
        name=name,
        kernel="gemm",
        problem=Problem.parse(problem),
        work=Work(flops=flops, bytes=10**6),
        choice=Choice(config, "tuned", "measured"),
        default_config=config,
        tuned=outcomes.pop("tuned"),
        default=timing(2.0),
        peers=outcomes,
    )


@pytest.mark.parametrize("kernel", LISTS)
def test_every_shape_is_a_problem_of_its_kernel_in_its_own_spelling(kernel):
    lists = {**LISTS[kernel], "recorded": record.RECORDED[kernel]}
    for name, texts in lists.items():
        assert texts and len(set(texts)) == len(texts), name
        for text in texts:
            assert str(registry.load(kernel).kernel.parse(text)) == text, name


@pytest.mark.parametrize("kernel", LISTS)
def test_scaled_inputs_are_the_problem_that_dispatch_sees(kernel):
    """One problem of a list at each class: a layout that its sizes give the lie would be tuned and never served."""
    loaded = registry.load(kernel)
    for texts in LISTS[kernel].values():
        for problem in chosen_of(loaded, texts, limit=2, small=True):
            assert loaded.kernel.problem(*loaded.kernel.inputs(problem, 0, "cpu")) == problem
            assert loaded.kernel.work(problem).flops < 10**8


@pytest.mark.parametrize(
    ("model", "ways", "layers"),
    [
        # 32 + 2 * 8 heads of 128 make 6144.
        ("llama3-8b", 1, [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]),
        ("llama3-70b", 8, [(1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584), (16032, 8192)]),
        ("llama3-405b", 8, [(2304, 16384), (16384, 2048), (13312, 16384), (16384, 6656), (16032, 16384)]),
        # 128 * (128 + 64) = 24576, 128 * (128 + 128) = 32768, 512 + 64 = 576.
        (
            *("deepseek-v3", 1),
            [
                *((1536, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (36864, 7168)),
                *((7168, 18432), (4096, 7168), (7168, 2048), (256, 7168), (129280, 7168)),
            ],
        ),
    ],
)
def test_layers_of_a_model_follow_from_its_config(model, ways, layers):
    assert MODELS[model].layers(ways) == layers


def test_the_fa3_grid_holds_its_tokens_and_hidden_size():
    for problem in map(Problem.parse, ATTENTION["fa3"]):
        assert problem.integer("B") * problem.integer("SQ") == 16384
        assert problem.integer("H") * problem.integer("D") == 2048


@pytest.mark.parametrize(
    ("large", "small"),
    [
        ("M=1,N=6144,K=4096", "M=1,N=96,K=256"),
        ("M=8192,N=13,K=16032", "M=64,N=13,K=240"),
        # A window of an eighth of the keys; values narrower than keys; four query heads for each of two.
        (
            "B=8,H=32,HKV=8,SQ=8192,SK=8192,D=192,DV=128,window=1024",
            "B=2,H=8,HKV=2,SQ=128,SK=128,D=48,DV=32,window=16",
        ),
        # 8190 is 14 over a multiple of 16, and so is 126.
        ("B=16,H=5,HKV=1,SK=8190,D=128", "B=2,H=5,HKV=1,SK=126,D=64"),
        ("B=1,H=16,HKV=16,SK=8192,D=256,page=256", "B=1,H=2,HKV=2,SK=128,D=64,page=32"),
    ],
)
def test_scaled_problems_keep_their_class(large, small):
    assert str(scaled(Problem.parse(large))) == small


def test_a_limit_takes_problems_from_all_over_a_list():
    loaded = registry.load("gemm")
    texts = MATMUL["squares"]
    assert [str(problem) for problem in chosen_of(loaded, texts, limit=3)] == [texts[0], texts[10], texts[20]]
    assert len(chosen_of(loaded, texts, limit=1000)) == len(texts)


def test_the_table_has_rates_of_ours_and_a_dash_where_a_peer_has_no_time():
    lines = table([row(tuned=0.5, torch=1.0, flash=None, math=4.0)]).splitlines()
    cells = dict(zip(lines[0].replace(" ms", "").split(), lines[1].split(), strict=True))
    # 1e9 operations and 1e6 bytes in 0.5 ms: 2e12 and 2e9 a second. The fastest peer takes twice as long.
    assert cells == {
        **{"problem": "M=4,dtype=float16", "config": "m16", "from": "tuned", "tuned": "0.5", "default": "2"},
        **{"torch": "1", "flash": "-", "math": "4", "TFLOP/s": "2", "GB/s": "2", "speed-up": "2x"},
    }


def test_the_summary_is_a_geometric_mean_and_the_worst_of_each_list():
    rows = [
        *(row("M=1", tuned=1.0, torch=2.0), row("M=2", tuned=1.0, torch=0.5), row("M=3", tuned=1.0, torch=8.0)),
        *(row("M=4", tuned=None, torch=1.0), row("M=5", name="other", torch=None)),
    ]
    first, other = summary(rows).splitlines()
    assert math.prod((2, 0.5, 8)) ** (1 / 3) == pytest.approx(2)
    assert first == (
        "list: 2x the speed of the fastest peer in the geometric mean, worst 0.5x at M=2; 3 of 4 problems compared"
    )
    assert other == "other: none of 1 problems could be compared"


def test_the_summary_tells_the_peers_apart_where_there_are_several():
    rows = [row("M=1", tuned=1.0, torch=2.0, dense=4.0), row("M=2", tuned=2.0, torch=16.0, dense=None)]
    assert summary(rows).endswith("2 of 2 problems compared; by peer: torch 4x of 2, dense 4x of 1")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda a: a * 1.2, Reason.WRONG),
        (lambda a: a.where(a > a.min(), math.nan), Reason.WRONG),
        (lambda a: a @ torch.ones(3), Reason.RUNTIME),
    ],
    ids=["another result", "nan", "raises"],
)
def test_a_peer_that_does_not_compute_the_same_has_no_time(function, reason):
    a = torch.arange(1.0, 10.0)
    begun = _beside._begin(function, (a.double(),), [(a,)], Setting("cpu", WALL))
    assert isinstance(begun, Failure) and begun.reason is reason and begun.detail


def test_a_peer_that_takes_the_worker_down_costs_its_own_time_only():
    config, died = Config(BLOCK_M=16), Failure(Reason.RUNTIME, "killed", str(WALL))

    class Machine:
        def attempt(self, function, entry, problem, configs, peers):
            return died if peers else {config: timing(1.0) for config in configs}

    found = time_beside(Machine(), registry.load("gemm").entry, Problem(M=1), [config], ("torch", "flash"))
    assert found == {config: timing(1.0), "torch": died, "flash": died}


@pytest.mark.parametrize(
    ("benchmark", "name", "missing"),
    [
        (matmul, "llama3-70b-decode", set()),
        # On a CPU; and the caches of two sequences are not full.
        (attention, "fa3", {"cudnn", "efficient"}),
        (decode, "llama4-tp8", {"cudnn", "efficient", "unmasked"}),
        (sparse, "pruned", {"cusparselt", "torch_bsr"}),
    ],
    ids=["matmul", "attention", "decode", "sparse"],
)
def test_a_dry_run_prints_a_table_and_keeps_what_it_is_made_of(benchmark, name, missing, tmp_path):
    output = tmp_path / "rows.jsonl"
    arguments = ["--scaled", "--limit", "1", "--list", name, "--output", str(output)]
    command = benchmark.COMMAND.commands["bsr_matmul"] if benchmark is sparse else benchmark.COMMAND
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and f"{name}: " in result.stdout
    kept = json.loads(output.read_text())
    assert kept["protocol"] == "wall-throughput-2" and kept["device"] == "interpreter" and kept["list"] == name
    assert 0 < kept["tuned"]["p20_ms"] <= kept["tuned"]["median_ms"] <= kept["tuned"]["p80_ms"]
    failed = {peer for peer, outcome in kept["peers"].items() if "reason" in outcome}
    assert failed == missing
    assert all(kept["peers"][peer]["detail"] for peer in failed)
    for name, provider in registry.load(kept["kernel"]).kernel.providers.items():
        why = provider.unavailable(Problem.parse(kept["problem"]), device.INTERPRETER)
        assert why is None or why == kept["peers"][name]["detail"]


def test_providers_are_none_of_the_configs_that_are_known(db_path):
    loaded, h100 = registry.load("bsr_matmul"), device.profile("h100")
    problem = loaded.kernel.parse(record.RECORDED["bsr_matmul"][0])
    machine = SimpleNamespace(device=h100, protocol="cudagraph-throughput-2")
    where = {"target": "cuda:0", "triton": "", "torch": "", "created_at": "2026-01-01"}
    with Store(db_path) as store:
        for config in (loaded.space.default(problem, h100), Config(provider="dense")):
            outcome = Timing(1.0, 1.0, 1.0, 3, machine.protocol)
            store.record(Trial(loaded.name, loaded.source, problem, h100.key, config, outcome, **where))
        assert record.record(loaded, problem, machine, store, configs=1, seed=0, end=0.0) == 1


@pytest.mark.slow
def test_recording_goes_on_from_what_its_folder_has(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RECORDED", {"gemm": ("M=16,N=64,K=64,dtype=float16",)})
    arguments = ["--folder", str(tmp_path), "--kernel", "gemm", "--samples", "0", "--configs", "3", "--refine", "1"]

    def run(minutes):
        CliRunner().invoke(record.command, [*arguments, "--minutes", minutes], catch_exceptions=False)
        with Store(tmp_path / "trials.db", readonly=True) as store:
            return list(store.rows())

    first = run("1")
    assert len(first) == 4 and sum('"random"' in trial["provenance"] for trial in first) == 3
    checks = (tmp_path / "checks.jsonl").read_text()
    assert len(checks.splitlines()) == len(registry.load("gemm").kernel.problems)
    second = run("1")
    assert len(second) == 5 and {trial["config"] for trial in first} < {trial["config"] for trial in second}
    assert (tmp_path / "checks.jsonl").read_text() == checks
    assert len((tmp_path / "comparison.jsonl").read_text().splitlines()) == 2
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("causal", [False, True])
def test_flex_attention_is_given_the_blocks_of_the_mask(causal):
    kept = torch.rand(8, 8, generator=torch.manual_seed(0)) < 0.4
    mask = BlockMask.from_blocks(kept, 128, 128, 16, causal=causal)
    q, k, v = (torch.randn(1, heads, 128, 16) for heads in (4, 2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        result = flex(q, k, v, mask)
    seen = kept.repeat_interleave(16, 0).repeat_interleave(16, 1)
    seen &= torch.ones_like(seen).tril() if causal else True
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    torch.testing.assert_close(result, expected.nan_to_num(0.0))


# Its own.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "text",
    [
        "B=6,V=50,D=40,L=8,dtype=float32,weighted=true,ragged=true,index=int32",
        "B=3,V=400,D=32,L=2,dtype=float16,T=5,ragged=true",
        "B=8,V=50,D=32,L=4,dtype=float32,mode=mean",
    ],
)
def test_fbgemm_is_given_the_bags(text):
    pytest.importorskip("fbgemm_gpu", reason="no dependency: its versions go with one torch each")
    kernel = registry.load("embedding_bag").kernel
    arguments = kernel.inputs(kernel.parse(text), 0, "cpu")
    torch.testing.assert_close(fbgemm(*arguments), kernel.reference(*arguments))
