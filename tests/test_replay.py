import itertools
import math
import signal

import pytest

from autotune import device, dispatch, exchange, registry, tuning
from autotune.cli import main
from autotune.data import Config, Failure, Problem, Reason, Timing, Trial, UsageError
from autotune.rung import Resources, Rung
from autotune.store import Store
from autotune.targets import device_of, open_machine, open_target, resolve
from autotune.tuning import Job, sweep
from tests.test_table import rows_of, write_table

GEMM = registry.load("gemm")
PROBLEM = GEMM.kernel.parse("M=160,N=384,K=384,dtype=float32")
OTHER = GEMM.kernel.parse("M=160,N=384,K=400,dtype=float32")
H200 = "sm_90/132sm/140GiB/NVIDIA H200"
A10 = "sm_86/72sm/24GiB/NVIDIA A10G"
DEFAULT = GEMM.space.default(PROBLEM, device.INTERPRETER)
SEED = GEMM.space.seeds(PROBLEM, device.INTERPRETER)[0]
#: Twelve configs of the space; neither its default nor a seed of its own.
RECORDED = [
    config
    for config in itertools.islice(GEMM.space.allowed(PROBLEM, device.INTERPRETER), 0, None, 7)
    if config not in (DEFAULT, *GEMM.space.seeds(PROBLEM, device.INTERPRETER))
][:12]


def trial(config, number=0, **changes):
    """What a sweep left behind; every third failed."""
    ms, protocol = 1.0 + (7 * number) % 12, changes.pop("protocol", "wall-1")
    if number % 3 == 2:
        outcome = Failure(Reason.WRONG, f"off by {number}", protocol)
    else:
        outcome = Timing(ms, ms * 0.9, ms * 1.1, 5, protocol, score_ms=ms, rank_ms=ms)
    facts = {
        **{"kernel": "gemm", "source": GEMM.source, "problem": PROBLEM, "device": "interpreter"},
        **{"target": "interpreter", "triton": "3.7.1", "torch": "2.11.0", "driver": "none"},
        "created_at": f"2026-01-02T03:04:{number:02}.000000+00:00",
        "provenance": {"origin": "search", "seed": 3},
        **{"rung": Rung.VERIFY if number % 3 == 2 else Rung.FINAL, "seconds": {"verify": 0.25}},
        "resources": Resources(1024, 40, 0),
    }
    return Trial(config=config, outcome=outcome, **{**facts, **changes})


def recorded(path, trials):
    with Store(path) as store:
        for one in trials:
            store.record(one)
    return path


@pytest.fixture
def database(tmp_path):
    return recorded(tmp_path / "truth.db", [trial(config, number) for number, config in enumerate(RECORDED)])


def rows_in(path):
    with Store(path, readonly=True) as store:
        return list(store.rows())


def swept(target, path, *problems, kernel="gemm", **options):
    with Store(path) as store:
        return sweep([Job(kernel, problem) for problem in problems], target, store, **options)


def asked_of(target, monkeypatch):
    asked, answer = [], target.evaluate

    def evaluate(entry, problem, config, best_ms=None):
        asked.append(config)
        return answer(entry, problem, config, best_ms)

    monkeypatch.setattr(target, "evaluate", evaluate)
    return asked


def test_a_sweep_over_a_database_ends_with_its_rows(database, db_path, monkeypatch):
    with open_target(f"replay:{database}") as target:
        asked = asked_of(target, monkeypatch)
        (summary,) = swept(target, db_path, PROBLEM, trials=1000)
    assert set(asked) == set(RECORDED) and len(asked) == len(RECORDED)
    assert summary.best[1].median_ms == min(row["median_ms"] for row in rows_in(database) if row["median_ms"])
    assert rows_in(db_path) == rows_in(database)


def test_a_replay_into_its_own_database_changes_nothing(database):
    before = rows_in(database)
    for again in (False, True):
        (summary,) = tuning.tune("gemm", target=f"replay:{database}", trials=100, db=database, again=again)
        assert summary.measured == (len(RECORDED) if again else 0)
        assert rows_in(database) == before


def test_an_export_answers_as_its_database_does(database, tmp_path):
    lines = tmp_path / "truth.jsonl"
    exchange.export_to(database, lines)
    with open_target(f"replay:{lines}") as a, open_target(f"replay:{database}") as b:
        assert (a.device, a.protocol, a.triton, a.torch) == (b.device, b.protocol, b.triton, b.torch)
        answers = [a.evaluate(GEMM.entry, PROBLEM, config) for config in RECORDED]
        assert answers == [b.evaluate(GEMM.entry, PROBLEM, config) for config in RECORDED]


def test_an_answer_is_the_recorded_one_whole(database):
    target = open_target(f"replay:{database}")
    assert (target.triton, target.torch, target.protocol) == ("3.7.1", "2.11.0", "wall-1")
    failed, timed = (target.evaluate(GEMM.entry, PROBLEM, RECORDED[number]) for number in (2, 3))
    assert failed.outcome == Failure(Reason.WRONG, "off by 2", "wall-1") and failed.rung is Rung.VERIFY
    assert timed.rung is Rung.FINAL and timed.seconds == {"verify": 0.25}
    assert timed.resources == Resources(1024, 40, 0) and timed.recorded == trial(RECORDED[3], 3)
    assert target.evaluate(GEMM.entry, PROBLEM, RECORDED[3], best_ms=1e-6) == timed


def test_what_was_not_recorded_is_neither_allowed_nor_answered(database):
    target = open_target(f"replay:{database}")
    loaded = target.load("gemm", PROBLEM)
    assert set(loaded.space.allowed(PROBLEM, target.device)) == set(RECORDED)
    for name, values in loaded.space.params(PROBLEM, target.device).items():
        assert set(values) == {config[name] for config in RECORDED}
    assert loaded.space.broken_rule(DEFAULT, PROBLEM, target.device) == f"was not recorded in {database}"
    with pytest.raises(UsageError, match="was not recorded in"):
        target.evaluate(GEMM.entry, PROBLEM, DEFAULT)


def test_a_problem_that_was_not_recorded_is_told_with_the_closest(tmp_path):
    sizes = (64, 160, 512, 4096)
    texts = [f"M={size},N=384,K=384,dtype={dtype}" for dtype in ("float32", "float16") for size in sizes]
    h200 = device.profile("h200")
    problems = [GEMM.kernel.parse(text) for text in texts]
    trials = [trial(GEMM.space.default(one, h200), device=H200, problem=one) for one in problems]
    target = open_target(f"replay:{recorded(tmp_path / 'truth.db', trials)}")
    kernel = target.load("gemm").kernel
    assert set(kernel.problems) == set(texts) and [str(kernel.parse(text)) for text in texts] == texts
    with pytest.raises(UsageError, match="has no trial in") as caught:
        kernel.parse("M=256,N=384,K=384,dtype=float16")
    closest = str(caught.value).partition("the closest there: ")[2].split("; ")
    assert closest == [f"M={size},N=384,K=384,dtype=float16" for size in (160, 512, 64)]
    with pytest.raises(UsageError, match="has no trial in"):
        target.load("gemm", GEMM.kernel.parse("M=256,N=384,K=384,dtype=float16"))


def test_a_sweep_starts_where_the_space_does_or_else_where_the_recorded_one_did(tmp_path):
    cases = [([*RECORDED, SEED, DEFAULT], DEFAULT), ([*RECORDED, SEED], SEED), (RECORDED[::-1], RECORDED[-1])]
    for number, (configs, start) in enumerate(cases):
        path = recorded(tmp_path / f"{number}.db", [trial(config, place) for place, config in enumerate(configs)])
        target = open_target(f"replay:{path}")
        assert target.load("gemm", PROBLEM).space.default(PROBLEM, target.device) == start


def test_the_present_code_answers_where_it_was_measured_else_the_code_with_most_trials(tmp_path):
    trials = [trial(config, 0, source="old") for config in RECORDED[:3]]
    trials += [trial(RECORDED[0], 1), trial(RECORDED[0], 1, problem=OTHER, source="older")]
    trials += [trial(config, 0, problem=OTHER, source="old") for config in RECORDED[:2]]
    path = recorded(tmp_path / "truth.db", trials)
    target = open_target(f"replay:{path}")
    assert target.load("gemm", PROBLEM).source == GEMM.source
    assert target.load("gemm", OTHER).source == "old"
    assert target.evaluate(GEMM.entry, PROBLEM, RECORDED[0]).recorded.source == GEMM.source
    with pytest.raises(UsageError, match="was not recorded"):
        target.evaluate(GEMM.entry, PROBLEM, RECORDED[1])
    swept(target, tmp_path / "copy.db", OTHER, trials=10)
    assert {row["source"] for row in rows_in(tmp_path / "copy.db")} == {"old"}


def test_the_device_is_rebuilt_from_its_key(tmp_path):
    path = recorded(tmp_path / "truth.db", [trial(RECORDED[0], device=key) for key in (H200, "interpreter")])
    seen = open_target(f"replay:{path}").device
    profile = device.profile("h200")
    assert seen.key == H200 and seen.driver == "none"
    assert (seen.shared_bytes_per_block, seen.l2_bytes) == (profile.shared_bytes_per_block, profile.l2_bytes)
    path = recorded(tmp_path / "other.db", [trial(RECORDED[0], device=A10)])
    assert open_target(f"replay:{path}").device.key == A10 == device_of(f"replay:{path}").key
    path = recorded(tmp_path / "bad.db", [trial(RECORDED[0], device="abacus")])
    with pytest.raises(UsageError, match="'abacus' is not ARCH"):
        open_target(f"replay:{path}")


def test_of_several_devices_one_is_named(tmp_path):
    keys = (H200, A10, "interpreter")
    path = recorded(tmp_path / "truth.db", [trial(RECORDED[0], device=key) for key in keys])
    for text, match in [
        ("", "and 3 of them fit"),
        ("#sm_", "and 2 of them fit"),
        ("#B200", "has no device with 'B200' in its key"),
    ]:
        with pytest.raises(UsageError, match=match) as caught:
            open_target(f"replay:{path}{text}")
        assert A10 in str(caught.value) and (text == "#B200" or f"replay:{path}#TEXT" in str(caught.value))
    for text, key in [("A10", A10), ("H200", H200), ("interp", "interpreter")]:
        assert open_target(f"replay:{path}#{text}").device.key == key


def test_of_several_protocols_throughput_goes_first_then_the_most_rows(tmp_path):
    counts = {"wall-latency-2": 5, "wall-throughput-2": 2, "wall-1": 1}
    trials = [trial(RECORDED[n], protocol=name) for name, count in counts.items() for n in range(count)]
    target = open_target(f"replay:{recorded(tmp_path / 'truth.db', trials)}")
    assert target.protocol == "wall-throughput-2" and target.name.endswith("truth.db (wall-throughput-2)")
    only = open_target(f"replay:{recorded(tmp_path / 'one.db', trials[:5])}")
    assert only.protocol == "wall-latency-2" and only.name == f"replay:{tmp_path / 'one.db'}"


def test_without_problems_all_recorded_ones_are_tuned(tmp_path):
    path = recorded(tmp_path / "truth.db", [trial(RECORDED[0], problem=problem) for problem in (PROBLEM, OTHER)])
    summaries = tuning.tune("gemm", target=f"replay:{path}", db=tmp_path / "out.db")
    assert {summary.problem for summary in summaries} == {PROBLEM, OTHER}
    (summary,) = tuning.tune("gemm", str(OTHER), target=f"replay:{path}", db=tmp_path / "one.db")
    assert summary.problem == OTHER


def test_dispatch_serves_a_replayed_winner_on_the_recorded_device(tmp_path):
    path = recorded(tmp_path / "truth.db", [trial(config, n, source="old") for n, config in enumerate(RECORDED)])
    target = open_target(f"replay:{path}")
    (summary,) = tuning.tune("gemm", target=f"replay:{path}", trials=100, db=tmp_path / "out.db")
    choice = dispatch.Dispatcher(tmp_path / "out.db").explain(target.load("gemm", PROBLEM), PROBLEM, target.device)
    assert choice.source == "tuned" and choice.config == summary.best[0]
    with pytest.warns(RuntimeWarning, match="other kernel code"):
        live = dispatch.Dispatcher(tmp_path / "out.db").explain(GEMM, PROBLEM, target.device)
    assert live.source == "default"  # old rows never pretend to be of the present code


def test_a_sweep_over_a_table_finds_its_best_and_asks_each_row_once(tmp_path, monkeypatch):
    stem, path = write_table(tmp_path), tmp_path / "out.db"
    with open_target(f"replay:{stem}") as target:
        asked = asked_of(target, monkeypatch)
        problem = Problem(P0=4096, P1=128)
        (summary,) = swept(target, path, problem, kernel="scan", trials=1000)
    best, timing = summary.best
    assert best == Config(BLOCK=64, UNROLL=2, PAD=1) and timing.median_ms == 1.0
    assert asked[0] == summary.default == Config(BLOCK=32, UNROLL=2, PAD=0)
    rows = rows_of()
    assert len(asked) == len(set(asked)) == len(rows)
    assert {tuple(config[name] for name in ("BLOCK", "UNROLL", "PAD")) for config in asked} == {
        tuple(row[:3]) for row in rows
    }
    assert summary.failures == {Reason.RUNTIME: 3}
    before = rows_in(path)
    assert {row["device"] for row in before} == {"XX1/replay/MAKER CARD 7"}
    assert {row["detail"] for row in before if row["median_ms"] is None} == {"recorded as failed"}
    (again,) = tuning.tune("scan", target=f"replay:{stem}", trials=1000, db=path, again=True)
    assert again.measured == len(rows) and rows_in(path) == before


def test_a_table_tells_its_cost_and_has_no_code(tmp_path):
    target = open_target(f"replay:{write_table(tmp_path)}.json")
    loaded = target.load("scan")
    problem = loaded.kernel.parse(loaded.kernel.problems[0])
    answer = target.evaluate(loaded.entry, problem, loaded.space.default(problem, target.device))
    assert math.isclose(answer.seconds["timing"], 1.0) and answer.rung is Rung.TIMING
    with pytest.raises(UsageError, match="no code of scan to run"):
        loaded.kernel.run(Config())
    with pytest.raises(UsageError, match=r"'P0=1,P1=2': has no trial in .*; the closest there: P0=4096,P1=128"):
        loaded.kernel.parse("P0=1,P1=2")
    with pytest.raises(UsageError, match="no trials of 'gemm' on XX1/replay/MAKER CARD 7; it has scan"):
        target.load("gemm")
    with pytest.raises(UsageError, match="leave out #H200"):
        open_target(f"replay:{tmp_path / 'scan@Card'}#H200")


def test_nothing_runs_on_a_replay():
    with pytest.raises(UsageError, match=r"nothing runs on replay:tuning\.db; use --target auto"):
        open_machine("replay:tuning.db")
    with pytest.raises(UsageError, match="names no file"):
        resolve("replay:")


def test_a_file_that_can_not_be_replayed_is_told_in_one_line(tmp_path):
    missing, empty, only_failed = tmp_path / "missing.db", tmp_path / "empty.db", tmp_path / "failed.db"
    Store(empty).close()
    recorded(only_failed, [trial(RECORDED[2], 2)])
    for path, match in [(missing, "no file"), (empty, "has no trials"), (only_failed, "failures only")]:
        with pytest.raises(UsageError, match=match) as caught:
            open_target(f"replay:{path}")
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    for name, text in [("a.jsonl", "{"), ("b.jsonl", "[]\n"), ("c.jsonl", '{"kernel": "gemm"}\n')]:
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=rf"{name} is no database, export or table"):
            open_target(f"replay:{tmp_path / name}")


def test_columns_out_of_order_are_refused(database, tmp_path):
    lines = tmp_path / "truth.jsonl"
    exchange.export_to(database, lines)
    good = lines.read_text()
    for old, new in [('"rung": "final"', '"rung": "roof"'), ('"verify\\": 0.25', '"verify\\": \\"x\\"')]:
        assert old in good
        lines.write_text(good.replace(old, new))
        with pytest.raises(UsageError, match=r"truth\.jsonl is no database.*gemm M=160"):
            open_target(f"replay:{lines}")


def test_what_the_present_code_does_not_take_is_left_out(tmp_path):
    gone = [trial(RECORDED[0], problem=Problem(M=64, WIDTH=3)), trial(Config(TILE=3), problem=OTHER)]
    target = open_target(f"replay:{recorded(tmp_path / 'both.db', [*gone, trial(RECORDED[0])])}")
    assert target.load("gemm").kernel.problems == (str(PROBLEM),)
    target = open_target(f"replay:{recorded(tmp_path / 'gone.db', gone)}")
    with pytest.raises(UsageError, match=r"has no trial in .* that its present code takes"):
        target.load("gemm")


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run a command in this process: exit code, standard output, standard error."""
    # Commands set a handler for SIGTERM, which the tests that follow must not inherit.
    monkeypatch.setattr(signal, "signal", lambda *args: None)

    def run(*args):
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args], prog_name="autotune")
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def test_the_commands_take_a_replay(cli, tmp_path):
    target, db = f"replay:{write_table(tmp_path)}", tmp_path / "out.db"
    code, out, _ = cli("tune", "scan", "--target", target, "--trials", 100, "--db", db)
    assert code == 0 and "BLOCK=64 UNROLL=2 PAD=1" in out and "3 RUNTIME" in out
    code, out, _ = cli("explain", "scan", "--target", target, "--db", db)
    assert code == 0 and out.startswith('tuned: {"BLOCK":64,"PAD":1,"UNROLL":2}')
    code, out, _ = cli("device", "--target", target)
    assert code == 0 and "key: XX1/replay/MAKER CARD 7" in out
    for command in ("tune", "explain"):
        code, _, error = cli(command, "scan", "P0=1,P1=2", "--target", target)
        assert code == 2 and error.count("\n") == 1 and "the closest there: P0=4096,P1=128" in error
    for command in ("check", "bench"):
        code, _, error = cli(command, "gemm", "--target", target)
        assert (
            code == 2 and error == f"autotune: nothing runs on {target}; use --target auto, cuda:N or interpreter\n"
        )


def test_explain_wants_a_problem_where_several_are_recorded(cli, tmp_path):
    path = recorded(tmp_path / "truth.db", [trial(DEFAULT, problem=problem) for problem in (PROBLEM, OTHER)])
    code, _, error = cli("explain", "gemm", "--target", f"replay:{path}", "--db", path)
    assert code == 2 and f"no problem given for gemm; for example {PROBLEM}" in error
    code, out, _ = cli("explain", "gemm", OTHER, "--target", f"replay:{path}", "--db", path)
    assert code == 0 and out.startswith(f"tuned: {DEFAULT}")
