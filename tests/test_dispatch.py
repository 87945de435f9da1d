import os
import sqlite3
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import autotune
from autotune import device, dispatch, locate, registry
from autotune.data import Config, Timing, Trial, UsageError
from autotune.decide import decide
from autotune.dispatch import Dispatcher
from autotune.row import COLUMNS
from autotune.store import Store
from autotune.winners import Winner

GEMM = registry.load("gemm")
H100 = device.profile("h100")
PROBLEM = GEMM.kernel.parse("M=64,N=64,K=64,dtype=float32")
TUNED = Config({**GEMM.space.default(PROBLEM, device.INTERPRETER), "BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32})


def winner(problem=PROBLEM, config=TUNED, source=GEMM.source):
    return Winner(problem, source, config, 1.0, "wall-1", "3.9.0")


def choose(problem, *winners, where=device.INTERPRETER):
    return decide(GEMM, GEMM.kernel.parse(problem), where, winners)


def record(
    path,
    problem=PROBLEM,
    config=TUNED,
    source=GEMM.source,
    ms=1.0,
    where=device.INTERPRETER,
    protocol="wall-throughput-2",
):
    with Store(path) as store:
        store.record(
            Trial(
                *("gemm", source, problem, where.key, config, Timing(ms, ms, ms, 3, protocol)),
                **{"target": "interpreter", "triton": "3.9.0", "torch": "2.13.0", "created_at": "2026-01-01"},
            )
        )


def test_nothing_tuned_gives_the_default():
    choice = choose(str(PROBLEM))
    assert (choice.source, choice.config) == ("default", GEMM.space.default(PROBLEM, device.INTERPRETER))
    assert choice.why == "nothing is tuned on interpreter"


def test_the_winner_of_this_problem_is_served():
    choice = choose(str(PROBLEM), winner())
    assert (choice.source, choice.config) == ("tuned", TUNED)
    assert choice.why == "measured 1 ms (wall-1) with triton 3.9.0"


def test_a_near_problems_winner_is_served_and_named():
    choice = choose("M=100,N=64,K=64,dtype=float32", winner())
    assert (choice.source, choice.config) == ("nearest", TUNED)
    assert choice.why.startswith(f"tuned for {PROBLEM}, 1.56x away")


def test_the_nearest_of_several_is_taken_whatever_their_order():
    other = Config({**TUNED, "BLOCK_K": 16})
    near, far = winner(config=other), winner(GEMM.kernel.parse("M=256,N=64,K=64,dtype=float32"))
    for winners in ((near, far), (far, near)):
        assert choose("M=80,N=64,K=64,dtype=float32", *winners).config == other


@pytest.mark.parametrize(
    ("problem", "named"),
    [
        ("M=64,N=64,K=64,dtype=float16", "dtype=float32"),
        ("M=64,N=64,K=64,dtype=float32,layout=nt", "layout=nn"),
        ("M=4096,N=64,K=64,dtype=float32", "M=64"),
        ("M=0,N=64,K=64,dtype=float32", "M=64"),
    ],
)
def test_no_winner_crosses_a_trait_or_a_large_distance(problem, named):
    choice = choose(problem, winner())
    assert choice.source == "default"
    assert named in choice.why


def test_a_winner_outside_the_space_is_not_served():
    for config in (Config(BLOCK_M=48), Config({**TUNED, "num_warps": 8}), Config({**TUNED, "BLOCK_M": 256})):
        choice = choose(str(PROBLEM), winner(config=config))
        assert choice.source == "default"
        assert "the winner of this problem is not allowed here" in choice.why


def test_a_winner_that_a_constraint_now_forbids_is_not_served():
    config = Config({**TUNED, "BLOCK_M": 128})  # in the ranges, but M is 64
    choice = choose(str(PROBLEM), winner(config=config))
    assert choice.source == "default" and "mostly padding" in choice.why


def test_a_winner_measured_on_other_code_is_not_served():
    choice = choose(str(PROBLEM), winner(source="older"))
    assert choice.source == "default" and "other kernel code" in choice.why


sizes = st.integers(0, 5000)
problems = st.builds(
    lambda M, N, K, dtype: GEMM.kernel.make(M=M, N=N, K=K, dtype=dtype),
    sizes,
    sizes,
    sizes,
    st.sampled_from(["float16", "float32"]),
)
parameters = {
    name: st.sampled_from([1, 2, 3, 4, 8, 16, 32, 64, 128, 256, True, "x"])
    for name in GEMM.space.params(PROBLEM, H100)
}
configs = (
    st.fixed_dictionaries(parameters).map(Config)
    | st.just(TUNED)
    | problems.map(lambda p: GEMM.space.default(p, H100))
)
winners = st.builds(winner, problems, configs, st.sampled_from([GEMM.source, "older"]))


@settings(max_examples=200, deadline=None)
@given(problems, st.lists(winners, max_size=5))
def test_what_is_served_is_always_allowed(problem, found):
    choice = decide(GEMM, problem, H100, tuple(found))
    assert GEMM.space.why_not(choice.config, problem, H100) is None
    assert choice == decide(GEMM, problem, H100, tuple(found))


def tensors():
    return torch.randn(64, 64), torch.randn(64, 64)


def test_choose_and_run_use_the_database(db_path):
    record(db_path)
    a, b = tensors()
    assert autotune.choose("gemm", a, b) == GEMM.space.default(PROBLEM, device.INTERPRETER)
    autotune.use(db_path)
    assert autotune.choose("gemm", a, b) == TUNED
    assert autotune.explain("gemm", a, b).source == autotune.explain("gemm", str(PROBLEM)).source == "tuned"
    torch.testing.assert_close(autotune.run("gemm", a, b), a @ b)


def test_a_memo_hit_asks_nobody(db_path, monkeypatch):
    a, b = tensors()
    first = autotune.choose("gemm", a, b)
    monkeypatch.setattr(dispatch, "decide", None)
    monkeypatch.setattr(dispatch, "read_rows", None)
    assert autotune.choose("gemm", a, b) is first
    assert autotune.choose("gemm", a + 1, b) is first


def test_the_memo_tells_apart_what_the_problem_tells_apart():
    a, b = tensors()
    dispatcher = Dispatcher(locate.for_reading(None))
    variants = [
        (a, b),
        (a[:32], b),
        (a.mT, b),
        (a.half(), b.half()),
        (a, b.mT),
        (torch.randn(64 * 64 + 1)[1:].view(64, 64), b),
    ]
    for x, y in variants:
        dispatcher.choose("gemm", x, y)
    _, memo = dispatcher.known["gemm"]
    assert len(memo) == len(variants)


def test_arguments_that_do_not_fit_are_told_by_name():
    a, b = tensors()
    for bad, message in (
        ((a, b[:3]), "the last size of a"),
        ((a, b.half()), "float16"),
        ((a[0], b), "2 dimensions"),
    ):
        with pytest.raises(ValueError, match=message):
            autotune.run("gemm", *bad)
    with pytest.raises(UsageError, match=r"gemm can't take \(Tensor, str\)"):
        autotune.choose("gemm", a, "b")
    with pytest.raises(UsageError, match="unknown kernel"):
        autotune.choose(["gemm"], a, b)
    with pytest.raises(UsageError, match="takes a tensor first"):
        autotune.choose("gemm", 3, 4)
    with pytest.raises(UsageError, match="unknown kernel"):
        autotune.choose("gem", a, b)
    with pytest.raises(UsageError, match="lacks N"):
        autotune.explain("gemm", "M=3")


def test_what_no_kernel_takes_goes_to_torch():
    a, b = (t.double() for t in tensors())
    choice = autotune.explain("gemm", a, b)
    assert choice.source == "reference" and "torch.float64" in choice.why
    assert torch.equal(autotune.run("gemm", a, b), a @ b)


def test_threads_agree(db_path):
    record(db_path)
    dispatcher = Dispatcher(db_path)
    a, b = tensors()
    barrier, chosen = threading.Barrier(8), []

    def ask():
        barrier.wait()
        for _ in range(200):
            chosen.append(dispatcher.choose("gemm", a, b).config)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(chosen) == {TUNED} and len(chosen) == 1600


def missing(path):
    pass


def directory(path):
    path.mkdir()


def empty(path):
    path.touch()


def text(path):
    path.write_text("not SQLite at all" * 500)


def fifo(path):
    os.mkfifo(path)


def endless(path):
    connection = sqlite3.connect(path)
    columns = (
        "'gemm' as kernel, 'x' as device, n as problem, n as source, n as config, 1.0 as median_ms, n as protocol, "
    )
    connection.execute(
        "create view best as with recursive t(n) as (select 1 union all select n + 1 from t) "
        f"select {columns} n as triton from t"
    )
    connection.close()


def truncated(path):
    record(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def foreign(path):
    connection = sqlite3.connect(path)
    connection.execute("create table users (name)")
    connection.close()


def other_columns(path):
    connection = sqlite3.connect(path)
    connection.execute("create table best (kernel, winner)")
    connection.close()


UNREADABLE = [missing, fifo, endless, directory, empty, text, truncated, foreign, other_columns]


def served(path):
    """The choice for PROBLEM, the messages of all warnings, and the seconds it took; asked three times."""
    autotune.use(path)
    started = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        a, b = tensors()
        result = autotune.run("gemm", a, b)
        autotune.run("gemm", a[:32], b)
        choice = autotune.explain("gemm", str(PROBLEM))
    torch.testing.assert_close(result, a @ b)
    return choice, [str(warning.message) for warning in caught], time.monotonic() - started


@pytest.mark.parametrize("make", UNREADABLE, ids=lambda make: make.__name__)
def test_an_unreadable_database_means_the_default_and_one_warning(tmp_path, make):
    path = tmp_path / "bad.db"
    make(path)
    choice, messages, _ = served(path)
    assert choice.source == "default"
    assert len(messages) == 1 and str(path) in messages[0]


def test_a_locked_database_means_the_default_soon(db_path):
    record(db_path)
    connection = sqlite3.connect(db_path)
    connection.execute("begin exclusive")
    choice, messages, seconds = served(db_path)
    connection.close()
    assert choice.source == "default"
    assert len(messages) == 1 and "locked" in messages[0]
    assert seconds < 5


def newer(path):
    record(path)
    connection = sqlite3.connect(path)
    connection.execute("insert into _sqlite_migrations (migration_set, name) values ('autotune', '0099_future')")
    connection.commit()
    connection.close()


def test_a_newer_schema_means_the_default_and_one_warning(db_path):
    newer(db_path)
    choice, messages, _ = served(db_path)
    assert choice.source == "default"
    assert len(messages) == 1 and "newer schema 0099_future" in messages[0]


REFUSED = {
    "outside the space": ({"config": Config({**TUNED, "BLOCK_M": 48})}, "BLOCK_M=48 is not one of"),
    "forbidden by a constraint": ({"config": Config({**TUNED, "BLOCK_M": 256})}, "mostly padding"),
    "of other code": ({"source": "older"}, "other kernel code"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_winner_means_the_default_and_one_warning(db_path, case):
    changes, message = REFUSED[case]
    record(db_path, **changes)
    choice, messages, _ = served(db_path)
    assert choice.source == "default" and message in choice.why
    assert len(messages) == 1 and message in messages[0] and str(db_path) in messages[0]


NONSENSE = [
    ("config", "[1,"),
    ("config", '{"BLOCK_M":[1]}'),
    ("problem", "=,="),
    ("problem", "M=abc,N=64,K=64,dtype=float32"),
    ("problem", "N=64,K=64,dtype=float32"),
    ("median_ms", "fast"),
    ("median_ms", float("inf")),
    ("median_ms", -1.0),
]


def test_rows_of_nonsense_are_passed_over(db_path):
    record(db_path)
    connection = sqlite3.connect(db_path)
    for number, (column, value) in enumerate(NONSENSE):
        changed = {"source": number, column: value}
        columns = ", ".join("?" if name in changed else name for name in COLUMNS)
        values = [changed[name] for name in COLUMNS if name in changed]
        connection.execute(
            f"insert into trials select {columns} from trials where source = ?", [*values, GEMM.source]
        )
    connection.commit()
    assert connection.execute("select count(*) from trials").fetchone() == (1 + len(NONSENSE),)
    connection.close()
    choice, messages, _ = served(db_path)
    assert choice.source == "tuned" and messages == []


OTHER = Config({**TUNED, "BLOCK_K": 16})
THIRD = Config({**TUNED, "BLOCK_M": 16})


def explained(path, objective="throughput"):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Dispatcher(path, objective).explain(GEMM, PROBLEM, device.INTERPRETER)


def test_each_objective_is_served_its_own_winner(db_path):
    record(db_path, config=TUNED, ms=1.0, protocol="wall-throughput-2")
    record(db_path, config=OTHER, ms=2.0, protocol="wall-latency-2")
    assert explained(db_path).config == TUNED
    choice = explained(db_path, "latency")
    assert (choice.source, choice.config) == ("tuned", OTHER) and "2 ms (wall-latency-2)" in choice.why
    for objective, config in (("throughput", TUNED), ("latency", OTHER), ("throughput", TUNED)):
        autotune.use(db_path, objective=objective)
        dispatch.forget()  # which must not forget the objective
        assert autotune.choose("gemm", *tensors()) == config


@pytest.mark.parametrize(
    ("protocol", "objective"),
    [("wall-throughput-2", "latency"), ("wall-1", "latency"), ("wall-latency-2", "throughput")],
)
def test_no_winner_of_the_other_objective_is_served(db_path, protocol, objective):
    record(db_path, protocol=protocol)
    record(db_path, GEMM.kernel.parse("M=72,N=64,K=64,dtype=float32"), protocol=protocol)
    choice = explained(db_path, objective)
    assert (choice.source, choice.why) == ("default", "nothing is tuned on interpreter")


@pytest.mark.parametrize("protocol", ["wall-1", "cudagraph-coldL2-1"])
def test_the_first_protocols_count_as_throughput(db_path, protocol):
    record(db_path, protocol=protocol)
    choice = explained(db_path)
    assert (choice.source, choice.config) == ("tuned", TUNED) and f"({protocol})" in choice.why


def test_of_two_protocol_versions_the_newer_wins_however_fast_the_older(db_path):
    record(db_path, config=TUNED, ms=5.0, protocol="wall-throughput-10")
    record(db_path, config=OTHER, ms=2.0, protocol="wall-throughput-9")
    record(db_path, config=THIRD, ms=1.0, protocol="wall-1")
    assert explained(db_path).config == TUNED


def test_where_the_newer_protocols_winner_is_of_other_code_the_older_ones_is_served(db_path):
    record(db_path, config=OTHER, source="older", protocol="wall-throughput-2")
    record(db_path, config=TUNED, protocol="wall-1")
    assert explained(db_path).config == TUNED


@pytest.mark.parametrize(
    "protocol", ["nonsense", "wall-speed-2", "wall-throughput", "wall-latency-2\n", "2", b"wall-1"]
)
def test_a_row_of_a_nonsense_protocol_is_left_out_and_hurts_nothing(db_path, protocol):
    record(db_path, config=OTHER, ms=0.1)
    connection = sqlite3.connect(db_path)
    connection.execute("update trials set protocol = ?", [protocol])
    connection.commit()
    connection.close()
    for objective in ("throughput", "latency"):
        assert explained(db_path, objective).why == "nothing is tuned on interpreter"
    record(db_path)
    assert explained(db_path).config == TUNED


def test_an_objective_that_is_none_is_one_clear_error(db_path):
    record(db_path)
    autotune.use(db_path)
    for bad in ("speed", "", None):
        with pytest.raises(UsageError) as caught:
            autotune.use(None, objective=bad)
        assert str(caught.value) == f"objective is {bad!r}; use one of throughput, latency"
    assert autotune.choose("gemm", *tensors()) == TUNED  # and nothing has changed


def test_what_a_killed_writer_left_is_rolled_back(db_path, root):
    """A journal that a crash in mid-commit leaves behind can't be read past without undoing it."""
    record(db_path)
    code = (
        "import os, signal, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('pragma cache_size = 1'); c.execute('begin immediate')\n"
        "c.execute('update trials set config = hex(randomblob(20000))'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(db_path)], check=False)
    assert db_path.with_name("test.db-journal").stat().st_size > 0
    choice, messages, _ = served(db_path)
    assert (choice.source, choice.config, messages) == ("tuned", TUNED, [])


def test_the_database_is_looked_for_in_the_stated_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate.for_reading() == locate.SHIPPED
    assert str(locate.for_writing()) == "tuning.db"
    (tmp_path / "tuning.db").touch()
    assert str(locate.for_reading()) == "tuning.db"
    monkeypatch.setenv("AUTOTUNE_DB", "/env.db")
    assert str(locate.for_reading()) == str(locate.for_writing()) == "/env.db"
    assert str(locate.for_reading("/named.db")) == str(locate.for_writing("/named.db")) == "/named.db"


def test_on_a_cpu_outside_the_interpreter_torch_computes(root):
    code = (
        "import torch, autotune; a = torch.randn(3, 4); b = torch.randn(4, 5)\n"
        "c = autotune.explain('gemm', a, b); print(c.source, '|', c.why)\n"
        "assert dict(autotune.choose('gemm', a, b)) == {}\n"
        "print(autotune.explain('gemm', 'M=3,N=4,K=5,dtype=float32').source)\n"
        "assert torch.equal(autotune.ops.matmul(a, b), a @ b)\n"
        "assert torch.equal(autotune.run('gemm', a, b), a @ b)"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    del environment["TRITON_INTERPRET"]
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    first, second = printed.stdout.splitlines()
    assert first.startswith("reference | torch computes it")
    assert second == "reference"


@pytest.mark.parametrize("attempt", ["run", "choose"])
def test_a_mistake_does_not_decide_for_right_calls_of_the_same_key(attempt):
    a, b = torch.ones(16, 16), torch.ones(16, 16)
    wrong, right = torch.ones(16).half(), torch.ones(16)
    assert GEMM.kernel.key(a, b, wrong) == GEMM.kernel.key(a, b, right)
    if attempt == "run":
        with pytest.raises(ValueError, match="bias is"):
            dispatch.run("gemm", a, b, wrong)
    else:
        assert dispatch.choose("gemm", a, b, wrong) == Config()
    assert dispatch.explain("gemm", a, b, right).source == "default"


def test_what_torch_can_compute_is_remembered_once_it_has():
    a = torch.ones(4, 4, dtype=torch.float64)
    assert torch.equal(dispatch.run("gemm", a, a), a @ a)
    _, memo = dispatch._dispatcher.known["gemm"]
    assert memo[GEMM.kernel.key(a, a)].source == "reference"
