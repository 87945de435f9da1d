import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune import exchange, locate
from autotune.data import Config, Failure, Problem, Reason, Timing, Trial
from autotune.report.study import sections
from autotune.row import COLUMNS, KEY
from autotune.store import Store, StoreError
from autotune.summary import Job, Summary

PROBLEM = Problem.parse("M=1,N=2,K=3,dtype=float16")


def trial(config=1, ms=1.0, when="2026-01-01T00:00:00", **more):
    outcome = more.pop("outcome", None) or Timing(ms, ms, ms, 3, "wall-1")
    fields = {"kernel": "gemm", "source": "s", "problem": PROBLEM, "device": "interpreter", **more}
    return Trial(
        **fields,
        config=Config(A=config),
        outcome=outcome,
        target="interpreter",
        triton="3",
        torch="2",
        created_at=when,
    )


def dump(path):
    text = io.StringIO()
    exchange.export(path, text)
    return text.getvalue()


def test_schema(db_path):
    Store(db_path).close()
    connection = sqlite3.connect(db_path)
    columns = [row[1] for row in connection.execute("pragma table_info(trials)")]
    key = [row[1] for row in connection.execute("pragma table_info(trials)") if row[5]]
    view = [row[1] for row in connection.execute("pragma table_info(best)")]
    applied = [row[0] for row in connection.execute("select name from _sqlite_migrations order by id")]
    connection.close()
    assert columns == view == list(COLUMNS)
    assert key == list(KEY)
    assert applied == list(locate.MIGRATIONS)


def test_best_is_the_fastest_and_ties_go_to_the_smaller_config(db_path):
    with Store(db_path) as store:
        for config, ms in ((3, 2.0), (2, 1.0), (1, 1.0), (4, 9.0)):
            store.record(trial(config, ms))
        store.record(trial(5, outcome=Failure(Reason.WRONG, "off", "wall-1")))
        (row,) = store.best()
    assert (row["config"], row["median_ms"], row["problem"]) == ('{"A":1}', 1.0, str(PROBLEM))


def finalist(ms, rank_ms, score_ms=None):
    score_ms = ms if score_ms is None else score_ms
    return Timing(ms, ms, ms, 3, "wall-1", score_ms, score_ms * 0.9, score_ms * 1.1, rank_ms)


def test_ties_of_finalists_go_by_rank_then_by_score_and_then_by_the_configs_text(db_path):
    with Store(db_path) as store:
        # 2 is the fastest, 10 and 3 can't be told apart from it; 1 can, by its score, which is not its median.
        for config, outcome in (
            (1, finalist(1.0, 2.5, score_ms=2.5)),
            (2, finalist(1.9, 1.9, score_ms=1.9)),
            (3, finalist(2.0, 1.9, score_ms=2.0)),
            (10, finalist(2.1, 1.9, score_ms=1.9)),
        ):
            store.record(trial(config, outcome=outcome))
        (row,) = store.best()
    # As text, {"A":10} comes before {"A":2}.
    assert (row["config"], row["rank_ms"], row["median_ms"]) == ('{"A":10}', 1.9, 2.1)


def test_a_lucky_single_time_does_not_beat_a_finalist(db_path):
    with Store(db_path) as store:
        store.record(trial(1, 0.5))
        store.record(trial(2, outcome=Timing(0.4, 0.4, 0.4, 3, "wall-1", score_ms=0.3)))
        assert [row["config"] for row in store.best()] == ['{"A":2}']  # of times taken alone, by score
        store.record(trial(3, outcome=finalist(2.0, 2.0)))
        assert [row["config"] for row in store.best()] == ['{"A":3}']


@st.composite
def outcomes(draw):
    """Few values, so that times, scores and ranks tie, within themselves and with each other."""
    few = st.sampled_from([1.0, 2.0, 3.0])
    if draw(st.integers(0, 5)) == 0:
        return Failure(Reason.WRONG, "off", "wall-1")
    ms, score_ms = draw(few), draw(few | st.none())
    rank_ms = draw(few | st.none())
    score = ms if score_ms is None else score_ms
    return Timing(ms, ms, ms, 3, "wall-1", score_ms, rank_ms=None if rank_ms is None else min(rank_ms, score))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(1, 30), outcomes(), max_size=8))
def test_the_view_a_sweep_and_the_report_name_one_winner(tmp_path_factory, found):
    trials = [trial(config, outcome=outcome) for config, outcome in found.items()]
    with Store(tmp_path_factory.mktemp("best") / "a.db") as store:
        for one in trials:
            store.record(one)
        winners = [row["config"] for row in store.best()]
        known = store.outcomes("gemm", "s", PROBLEM, "interpreter", "wall-1")
    summary = Summary(Job("gemm", PROBLEM), "interpreter", Config(A=1), "wall-1", known)
    studies = [study for section in sections(trials, {}) for study in section.studies]
    assert winners == [str(summary.best[0]) for _ in winners]
    assert winners == [str(study.best.trial.config) for study in studies if study.best is not None]
    assert bool(winners) == (summary.best is not None)


def test_best_keeps_sources_devices_and_protocols_apart(db_path):
    with Store(db_path) as store:
        store.record(trial(1))
        store.record(trial(1, device="sm_90/132sm/80GiB/NVIDIA H100"))
        store.record(trial(1, source="other"))
        store.record(trial(1, outcome=Timing(1.0, 1.0, 1.0, 3, "cudagraph-coldL2-1")))
        assert len(store.best()) == 4
        assert store.best("attention") == []


def test_failures_are_rows_with_reasons(db_path):
    failure = Failure(Reason.TIMEOUT, "not done in 60 s", "wall-1")
    with Store(db_path) as store:
        store.record(trial(1, outcome=failure))
        assert store.outcomes("gemm", "s", PROBLEM, "interpreter", "wall-1") == {Config(A=1): failure}
        (row,) = store.rows()
    assert (row["reason"], row["detail"], row["median_ms"]) == ("TIMEOUT", "not done in 60 s", None)


def test_recording_twice_is_recording_once_and_the_later_measurement_stays(db_path):
    with Store(db_path) as store:
        store.record(trial(ms=2.0, when="2026-01-02"))
        store.record(trial(ms=2.0, when="2026-01-02"))
        store.record(trial(ms=1.0, when="2026-01-01"))
        (row,) = store.rows()
        assert row["median_ms"] == 2.0
        store.record(trial(outcome=Failure(Reason.WRONG, "off", "wall-1"), when="2026-01-03"))
        (row,) = store.rows()
        assert row["reason"] == "WRONG" and row["median_ms"] is None


times = st.sampled_from([1.0, 2.0, 3.0])
trials = st.builds(
    trial, st.integers(1, 3), times, st.sampled_from(["2026-01-01", "2026-01-02"]), source=st.sampled_from("ab")
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(trials, max_size=6), st.lists(trials, max_size=6))
def test_merging_is_idempotent_and_blind_to_order(tmp_path_factory, left, right):
    folder = tmp_path_factory.mktemp("merge")
    for name, rows in (("l", left), ("r", right)):
        with Store(folder / name) as store:
            for row in rows:
                store.record(row)
    exchange.merge([folder / "l", folder / "r"], folder / "lr")
    exchange.merge([folder / "r", folder / "l"], folder / "rl")
    once = dump(folder / "lr")
    assert once == dump(folder / "rl")
    assert exchange.merge([folder / "l", folder / "r", folder / "lr"], folder / "lr") == 0
    assert dump(folder / "lr") == once


def test_export_and_import_round_trip(db_path, tmp_path):
    with Store(db_path) as store:
        store.record(trial(1))
        store.record(trial(2, outcome=Failure(Reason.COMPILE, 'odd "text"\nof two lines', "wall-1")))
    text = dump(db_path)
    assert exchange.import_(tmp_path / "copy.db", io.StringIO(text)) == 2
    assert dump(tmp_path / "copy.db") == text
    assert exchange.import_(tmp_path / "copy.db", io.StringIO(text)) == 0


BROKEN = {
    "no JSON": "{",
    "no object": "[]",
    "no kernel": {"kernel": None},
    "problem is no text": {"problem": 3},
    "config is no JSON": {"config": "x"},
    "config of floats": {"config": '{"A":1.5}'},
    "negative time": {"median_ms": -1.0},
    "time is text": {"median_ms": "fast"},
    "unknown reason": {"median_ms": None, "reason": "BAD LUCK"},
}


@pytest.mark.parametrize("case", BROKEN)
def test_import_of_a_bad_line_writes_nothing(db_path, tmp_path, case):
    with Store(db_path) as store:
        store.record(trial(1))
    good = dump(db_path)
    bad = BROKEN[case] if isinstance(BROKEN[case], str) else json.dumps({**json.loads(good), **BROKEN[case]})
    with pytest.raises(StoreError, match=r"(line|row) 2 is not"):
        exchange.import_(tmp_path / "copy.db", io.StringIO(good + bad + "\n"))
    assert not (tmp_path / "copy.db").exists() or dump(tmp_path / "copy.db") == ""


def test_files_that_are_no_database_are_refused(tmp_path):
    (tmp_path / "text").write_text("hello" * 1000)
    foreign = sqlite3.connect(tmp_path / "foreign")
    foreign.execute("create table users (name)")
    foreign.close()
    for path, message in (
        (tmp_path, "unable to open"),
        (tmp_path / "text", "not a database"),
        (tmp_path / "foreign", "something else"),
        (tmp_path / "no" / "folder.db", "no folder"),
    ):
        with pytest.raises(StoreError, match=message):
            Store(path)
    with pytest.raises(StoreError, match="no database"):
        Store(tmp_path / "absent", readonly=True)
    assert not (tmp_path / "absent").exists()


def test_a_newer_schema_is_refused_and_left_alone(db_path):
    Store(db_path).close()
    connection = sqlite3.connect(db_path)
    connection.execute("insert into _sqlite_migrations (migration_set, name) values ('autotune', '0099_future')")
    connection.commit()
    connection.close()
    for readonly in (True, False):
        with pytest.raises(StoreError, match="newer schema 0099_future"):
            Store(db_path, readonly=readonly)


def test_readonly_writes_nothing(db_path):
    with Store(db_path) as store:
        store.record(trial(1))
    before = db_path.read_bytes()
    with Store(db_path, readonly=True) as store:
        assert len(store.best()) == 1
        with pytest.raises(StoreError, match="readonly"):
            store.record(trial(2))
    assert db_path.read_bytes() == before


WRITER = """
import sys
sys.path.insert(0, {root!r})
from tests.test_store import trial
from autotune.store import Store
with Store(sys.argv[1]) as store:
    for number in range(int(sys.argv[3])):
        store.record(trial(number, device=sys.argv[2]))
        print(number, flush=True)
"""


def writer(db_path, root, name, count):
    code = WRITER.format(root=str(root))
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(db_path), name, str(count)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_that_write_at_once_lose_nothing(db_path, root):
    """All open a file that is not there yet, so they race for the schema too."""
    writers = [writer(db_path, root, f"device {number}", 40) for number in range(4)]
    assert [process.communicate() and process.returncode for process in writers] == [0] * 4
    with Store(db_path, readonly=True) as store:
        assert len(list(store.rows())) == 160


def test_kill_9_loses_no_finished_trial(db_path, root):
    process = writer(db_path, root, "device", 100_000)
    seen = -1
    deadline = time.monotonic() + 60
    while seen < 50 and time.monotonic() < deadline:
        seen = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    seen = max([seen, *(int(line) for line in process.stdout.read().splitlines()[:-1])])
    process.wait()
    process.stdout.close()
    with Store(db_path) as store:
        kept = {Config.parse(row["config"])["A"] for row in store.rows()}
        assert kept >= set(range(seen + 1)) and seen >= 50
        store.record(trial(-1))
    connection = sqlite3.connect(db_path)
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_file_of_the_first_schema_is_read_and_migrated(db_path, tmp_path):
    """As version 0.1.0 left it: no columns of the ladder."""
    Store(db_path).close()
    connection = sqlite3.connect(db_path)
    connection.execute("drop view best")
    for name in COLUMNS[COLUMNS.index("score_ms") :]:
        connection.execute(f"alter table trials drop column {name}")
    connection.execute("delete from _sqlite_migrations where name = '0003_ladder'")
    connection.execute(
        "insert into trials (kernel, source, problem, device, config, protocol, median_ms, p20_ms, p80_ms, n, "
        "target, created_at) values ('gemm', 's', ?, 'interpreter', '{\"A\":1}', 'wall-1', 1, 1, 1, 3, 't', "
        "'2026-01-01')",
        [str(PROBLEM)],
    )
    connection.commit()
    connection.close()
    exchange.merge([db_path], tmp_path / "new.db")
    for path in (tmp_path / "new.db", db_path):
        with Store(path) as store:
            assert [row["config"] for row in store.best()] == ['{"A":1}']
            assert store.outcomes("gemm", "s", PROBLEM, "interpreter", "wall-1") == {
                Config(A=1): Timing(1.0, 1.0, 1.0, 3, "wall-1")
            }
