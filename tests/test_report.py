"""The report of a database: its numbers are the rows', and its page stands alone."""

import random
import re
import shlex
import signal
import sqlite3
import struct
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import product

import pytest
from matplotlib.figure import Figure

from autotune import registry
from autotune.cli import main
from autotune.data import AutotuneError, Config, Failure, Problem, Reason, Timing, Trial, UsageError
from autotune.report import importance, plots, rows, write
from autotune.report.study import sections, steps
from autotune.report.style import log_milliseconds, styled, to_svg
from autotune.report.words import duration
from autotune.rung import Resources, Rung
from autotune.store import Store

GPU, GRAPH, EAGER = "sm_90/132sm/80GiB/NVIDIA H100 80GB HBM3", "cudagraph-throughput-2", "eager-latency-2"
BIG, SMALL = "M=4096,N=4096,K=4096,dtype=float16", "M=64,N=64,K=64,dtype=float16"
HOSTILE = "<script>alert('x')</script> & \"more\""
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
VOID = {"meta", "br"}


def config_of(block_m, block_n, warps, stages):
    return Config(BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=32, num_warps=warps, num_stages=stages)


def made_trials(problem=BIG, *, protocol=GRAPH, device=GPU, source=None, size=40, scale=1.0, detail=HOSTILE):
    """One problem's trials with every column in use: finalists, ties, duplicates, each reason of failure."""
    drawn = random.Random(3)
    configs = [config_of(*point) for point in product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3, 4))]
    drawn.shuffle(configs)
    failing = dict(zip(range(4, size, 5), [*Reason, Reason.COMPILE, Reason.COMPILE], strict=False))
    made, times = [], {}
    for number, config in enumerate(configs[:size]):
        seconds, rung, same_as = {"compile": 0.5, "verify": 0.25, "screen": 0.125}, Rung.SCREEN, None
        ms = scale * (8192 / config["BLOCK_M"] / config["BLOCK_N"] + 0.5 + drawn.random() / 5)
        outcome = Timing(ms, ms * 0.98, ms * 1.05, 20, protocol)
        if number in failing:
            rungs = {Reason.COMPILE: Rung.COMPILE, Reason.RESOURCES: Rung.RESOURCES}
            outcome, rung = Failure(failing[number], detail, protocol), rungs.get(failing[number], Rung.VERIFY)
        elif number in (12, 22):
            same_as, rung, seconds = configs[1], Rung.DUPLICATE, {"compile": 0.5}
            outcome = times[configs[1]]
        else:
            times[config] = outcome
        made.append([config, outcome, rung, seconds, same_as])
    for place, one in enumerate(sorted((one for one in made if one[0] in times), key=lambda one: one[1].score)[:6]):
        best = min(times.values(), key=lambda timing: timing.score)
        score = one[1].score
        later = {"score_ms": score, "low_ms": score * 0.99, "high_ms": score * 1.01, "n": 200}
        one[1] = replace(one[1], **later, rank_ms=best.score if place < 3 else score)
        one[2], one[3] = Rung.FINAL, {**one[3], "timing": 0.5, "final": 2.0}
    return [
        Trial(
            **{"kernel": "gemm", "source": source or registry.load("gemm").source, "device": device},
            **{"problem": Problem.parse(problem), "config": config, "outcome": outcome, "target": "cuda:0"},
            **{"triton": "3.9.0", "torch": "2.13.0", "driver": "13.0", "rung": rung, "seconds": seconds},
            created_at=(START + timedelta(seconds=number)).isoformat(timespec="microseconds"),
            provenance={"origin": "default" if number == 0 else "seed" if number < 3 else "search", "seed": 0},
            resources=Resources(49152, 128, 0),
            same_as=same_as,
        )
        for number, (config, outcome, rung, seconds, same_as) in enumerate(made)
    ]


def stored(path, trials):
    with Store(path) as store:
        for trial in trials:
            store.record(trial)
    return path


class Page(HTMLParser):
    """What a browser would see: balanced tags, the text of each cell, what is fetched."""

    def __init__(self, html):
        super().__init__()
        self.open, self.fetched, self.ids, self.rows, self.tags = [], [], [], [], set()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def row(self, first):
        (found,) = (row for row in self.rows if row and row[0] == first)
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A database with every column in use, two protocols, older code; and the report of it."""
    folder = tmp_path_factory.mktemp("made")
    older = made_trials("M=128,N=128,K=128,dtype=float16", source="f" * 64, size=12)
    trials = [*made_trials(), *made_trials(protocol=EAGER, scale=1000.0, size=15), *older]
    stored(folder / "made.db", trials)
    write.write(folder / "made.db", folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def html(made):
    return (made / "report.html").read_text(encoding="utf-8")


def sections_of(trials):
    return sections(trials, {"gemm": registry.load("gemm").source})


def one_study(trials):
    ((study,),) = (section.studies for section in sections_of(trials))
    return study


def test_the_page_is_balanced_and_fetches_nothing(html):
    page = Page(html)
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in page.fetched)
    assert not {"script", "link", "iframe", "img"} & page.tags and "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids))
    assert html.lstrip().startswith("<!DOCTYPE html>") and len(html) < 1_000_000


def test_text_of_the_database_is_escaped(html):
    assert "&lt;script&gt;alert(" in html and "<script" not in html


def test_the_numbers_are_the_databases(made, html):
    with sqlite3.connect(made / "made.db") as connection:
        find = "select coalesce(score_ms, median_ms), low_ms, high_ms from best where problem = ? and protocol = ?"
        best_ms, low_ms, high_ms = connection.execute(find, (BIG, GRAPH)).fetchone()
        where = "where problem = ? and protocol = ?"
        default = f"select score_ms from trials {where} and json_extract(provenance, '$.origin') = 'default'"
        (default_ms,) = connection.execute(default, (BIG, GRAPH)).fetchone()
        failed = f"select count(*) from trials {where} and median_ms is null"
        (failures,) = connection.execute(failed, (BIG, GRAPH)).fetchone()
        (spent_s,) = connection.execute("select sum(value) from trials, json_each(trials.seconds)").fetchone()
    connection.close()
    rows_of_big = [row for row in Page(html).rows if row and row[0] == BIG]
    (row,) = (row for row in rows_of_big if row[-2] == "40")
    interval = f"{low_ms:#.4g} to {high_ms:#.4g}"
    assert row[1:5] == [f"{default_ms:#.4g}", f"{best_ms:#.4g}", f"{default_ms / best_ms:.2f}x", interval]
    assert row[5] == "2 others" and row[-1] == str(failures)
    assert f"<dd>{duration(spent_s)}</dd>" in html


def test_times_of_two_protocols_share_no_section_and_no_plot(made):
    trials = rows.read(made / "made.db")
    found = sections_of(trials)
    assert [section.protocol for section in found] == [GRAPH, EAGER]
    for section in found:
        for study in section.studies:
            assert {trial.outcome.protocol for trial in study.trials} == {section.protocol}
            with styled("test"):
                low_ms, high_ms = plots.history(study, {}).axes[0].get_ylim()
            assert (low_ms > 100) == (section.protocol == EAGER) and high_ms / low_ms < 100


def test_devices_are_apart():
    trials = [*made_trials(size=5), *made_trials(size=5, device="sm_90/132sm/140GiB/NVIDIA H200")]
    assert [section.device for section in sections_of(trials)] == sorted({trial.device for trial in trials})


def test_every_reason_of_failure_is_told_with_its_message(html):
    table = {row[0]: row[1:] for row in Page(html).rows if row and row[0] in set(Reason.__members__)}
    assert set(table) == set(Reason.__members__)
    assert all(HOSTILE in message for _, message in table.values())


def test_the_most_frequent_message_stands_for_its_reason():
    trials = made_trials(size=30, detail="rare")
    failed = [trial for trial in trials if isinstance(trial.outcome, Failure)]
    often = [Failure(Reason.WRONG, "often", GRAPH)] * 2
    rewritten = [replace(trial, outcome=one) for trial, one in zip(failed, often, strict=False)]
    wrong = next(one for one in one_study([*trials, *rewritten]).failures() if one.reason is Reason.WRONG)
    assert (wrong.detail, wrong.detail_count, wrong.count) == ("often", 2, 3)


def test_older_code_is_marked_and_left_out_of_the_totals(made, html):
    section = sections_of(rows.read(made / "made.db"))[0]
    assert [study.stale for study in section.studies] == [False, True]
    assert section.mean_gain == pytest.approx(section.studies[0].gain)
    assert Page(html).row("M=128,N=128,K=128,dtype=float16 older code")[-2] == "12"


def test_the_steps_count_each_candidate_once_and_all_the_seconds():
    trials = made_trials()
    climbed = steps(trials)
    assert sum(step.timed + step.failed + step.duplicates for step in climbed) == len(trials)
    assert sum(step.seconds for step in climbed) == sum(sum(trial.seconds.values()) for trial in trials)
    assert {step.rung: step.duplicates for step in climbed if step.duplicates} == {Rung.DUPLICATE: 2}


def test_ties_are_other_code_of_equal_rank():
    study = one_study(made_trials())
    ranks = [one for one in study.timed if one.timing.rank_ms == study.best.timing.rank_ms]
    assert len(study.tied) == 2 == len(ranks) - 1
    copy = replace(study.best.trial, config=Config(BLOCK_M=1), same_as=study.best.trial.config)
    assert len(one_study([*study.trials, copy]).tied) == 2


def test_the_best_is_that_of_the_databases_view(db_path):
    trials = made_trials()
    lucky = Timing(0.01, 0.01, 0.01, 5, GRAPH)  # timed alone: those timed in turns come first
    stored(db_path, [*trials, replace(trials[-1], config=Config(BLOCK_M=16), outcome=lucky)])
    with Store(db_path, readonly=True) as store:
        (row,) = store.best()
    assert str(one_study(rows.read(db_path)).best.trial.config) == row["config"]


def test_the_parameters_that_decide_come_first():
    shares = importance.importances(one_study(made_trials(size=50)))
    assert {*list(shares)[:2]} == {"BLOCK_M", "BLOCK_N"} and sum(shares.values()) == pytest.approx(1)
    assert importance.importances(one_study(made_trials(size=importance.FEWEST - 1))) == {}


def test_the_plots_are_pictures_of_sensible_size(made):
    files = sorted((made / "report_plots").iterdir())
    kinds = [re.sub(r".*-", "", file.stem) for file in files]
    assert [kinds.count(kind) for kind in ("gains", "ladder", "history", "parameters")] == [2, 2, 3, 3]
    for file in files:
        content = file.read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert content.startswith(b"\x89PNG\r\n\x1a\n") and 400 <= width <= 2400 and 100 <= height <= 2400
        assert 4_000 < len(content) < 300_000


def test_a_plot_of_the_page_takes_its_colours():
    with styled("test"):
        svg = to_svg(plots.ladder(steps(made_trials(size=10))))
    assert svg.startswith("<svg") and "var(--tuned)" in svg and "#0072b2" not in svg


def test_many_marks_become_a_picture(monkeypatch):
    study = one_study(made_trials())
    drawn = {}
    for most in (10, 1000):
        monkeypatch.setattr(plots, "SHAPES", most)
        with styled("test"):
            drawn[most] = to_svg(plots.parameters(study, {}))
    assert "data:image/png" in drawn[10] and "data:image/png" not in drawn[1000]


@pytest.mark.parametrize("low_ms", [0.0123, 7.5, 20000.0])
@pytest.mark.parametrize("span", [1.0, 1.3, 40.0, 5000.0])
def test_a_time_axis_holds_the_times_and_has_ticks_in_plain_numbers(low_ms, span):
    with styled("test"):
        axes = Figure().subplots()
        log_milliseconds(axes, low_ms, low_ms * span)
        axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    texts = [text.get_text() for at, text in ticks if low <= at <= high]
    assert low <= low_ms <= low_ms * span <= high and len(texts) >= 2
    assert all(re.fullmatch(r"[0-9.]+", text) for text in texts) and len(set(texts)) == len(texts)


def test_a_first_schema_without_the_newer_columns_is_read(db_path, tmp_path):
    stored(db_path, made_trials(size=8, device="interpreter", protocol="wall-1"))
    with sqlite3.connect(db_path) as connection:
        connection.execute("drop view best")
        for name in ("score_ms", "low_ms", "high_ms", "rank_ms", "rung", "seconds", "same_as", "registers"):
            connection.execute(f"alter table trials drop column {name}")
        for name in ("shared_bytes", "spill_bytes"):
            connection.execute(f"alter table trials drop column {name}")
        connection.execute("delete from _sqlite_migrations where name = '0003_ladder'")
    connection.close()
    write.write(db_path, tmp_path / "old.html", tmp_path / "png")
    html = (tmp_path / "old.html").read_text(encoding="utf-8")
    Page(html)
    assert "Measuring time</dt><dd>not recorded" in html and "not retimed" in html
    assert "Wall times of Triton's interpreter" in html
    assert not list((tmp_path / "png").glob("*ladder*")) and list((tmp_path / "png").glob("*history*"))


def test_a_problem_without_a_time_says_so(db_path, tmp_path):
    failed = [trial for trial in made_trials() if isinstance(trial.outcome, Failure)]
    stored(db_path, failed)
    write.write(db_path, tmp_path / "none.html")
    assert Page((tmp_path / "none.html").read_text(encoding="utf-8")).row(BIG)[2] == "no candidate ran"


def test_of_many_problems_the_slowest_of_present_code_are_drawn():
    size = write.DRAWN + 5
    names = {m: f"M={m},N=8,K=8,dtype=float16" for m in range(1, size)}
    fresh = [trial for m, name in names.items() for trial in made_trials(name, size=4, scale=m)]
    older = made_trials("M=900,N=8,K=8,dtype=float16", size=4, scale=900, source="f" * 64)
    sizes = [study.problem["M"] for study in write.drawn(sections_of([*older, *fresh]))]
    assert sizes == list(range(size - 1, size - 1 - write.DRAWN, -1))


def test_a_row_that_is_no_trial_is_named(db_path):
    stored(db_path, made_trials(size=3))
    with sqlite3.connect(db_path) as connection:
        connection.execute("update trials set rung = 'summit'")
    connection.close()
    with pytest.raises(AutotuneError, match="'summit' is not a valid Rung; remove it"):
        rows.read(db_path)


def test_a_kernel_nobody_knows_is_bad_usage(db_path, tmp_path):
    with pytest.raises(UsageError, match="unknown kernel 'gem'"):
        write.write(db_path, tmp_path / "report.html", kernel="gem")


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def run(text):
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(text), prog_name="autotune")
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_the_command_writes_the_page_and_names_it(cli, tmp_path):
    stored(tmp_path / "tuning.db", made_trials(size=6))
    assert cli("report gemm --output mine.html") == (0, "mine.html, and its plots in mine_plots\n", "")
    assert (tmp_path / "mine.html").is_file() and list((tmp_path / "mine_plots").glob("*.png"))


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("report --db nowhere.db", 1, "autotune: no database nowhere.db; make one with"),
        ("report --db empty.db", 1, "autotune: database empty.db has no trials; make some with `autotune tune`"),
        ("report attention --db some.db", 1, "autotune: database some.db has no trials of attention; make some"),
        ("report gem --db some.db", 2, "autotune: unknown kernel 'gem'; known are"),
        ("report --db some.db --output no/folder/report.html", 2, "autotune: no folder no/folder for report.html"),
        ("report --db some.db --output taken", 1, "autotune: taken: Is a directory"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(cli, tmp_path, text, code, said):
    Store(tmp_path / "empty.db").close()
    stored(tmp_path / "some.db", made_trials(size=3))
    (tmp_path / "taken").mkdir()
    got, _, err = cli(text)
    assert (got, err.count("\n")) == (code, 1) and err.startswith(said)
