import itertools
import json
import math

import numpy as np
import pytest

from autotune.search import Experience
from autotune.table import Table, read_table
from benchmarks import search, searchers
from benchmarks.searchers import SEARCHERS, Ours, sources_of
from tests.test_table import META, rows_of, write_table

RANGES = {
    "BLOCK_M": (16, 32, 64, 128, 256),
    "BLOCK_N": (16, 32, 64, 96, 128, 192, 256),
    "BLOCK_K": (16, 32, 64, 128),
    "WARPS": (1, 2, 4, 8),
    "STAGES": (1, 2, 3, 4, 5),
    "GROUP": (1, 4, 8),
}


def gpu_like(m, n, k, warps, stages, group):
    """Milliseconds of a made-up matmul: effects multiply and interact, spills are a cliff, None is a failure."""
    shared_bytes = 2 * stages * k * (m + n)
    accumulators = m * n / (32 * warps)
    if accumulators > 512:
        return None
    traffic = (1 / m + 1 / n) * 64 * (1 + 0.15 * abs(math.log2(group / 8)))
    blocks_in_flight = min(100_000 // shared_bytes, 8, 64 // warps)
    hiding = 1 + 0.6 / (blocks_in_flight * min(stages, 4) * (1 + 0.2 * math.log2(warps)))
    spill = 1 if accumulators <= 128 else 1.9
    waves = math.ceil(4096 / m) * math.ceil(4000 / n) / (132 * blocks_in_flight)
    tail = math.ceil(waves) / waves
    banks = 1 if k == 64 else 1.12
    return (0.4 + traffic) * hiding * spill * tail**0.5 * banks * (1 + 8 / k * 0.5) * (1 + 0.02 * (n % 64 > 0))


@pytest.fixture(scope="module")
def matmul():
    """5,712 configs within the memory of a block, 252 of them failures."""
    codes, times_ms = [], []
    for code in itertools.product(*(range(len(values)) for values in RANGES.values())):
        m, n, k, *rest = (values[place] for values, place in zip(RANGES.values(), code, strict=True))
        if 2 * rest[1] * k * (m + n) <= 100_000 and m * n >= 32 * 32:
            codes.append(code)
            times_ms.append(gpu_like(m, n, k, *rest) or math.nan)
    facts = dict.fromkeys(("kernel", "device", "device_name", "arch", "arch_group"), "made-up")
    nothing = np.full(len(codes), math.nan)
    return Table(
        name="matmul@made-up",
        params=RANGES,
        constraints=(),
        problem_size=(4096,),
        codes=np.array(codes),
        time_ms=np.array(times_ms),
        cost_ms=nothing,
        **facts,
    )


def test_ours_needs_clearly_fewer_evaluations_than_tpe_and_chance(matmul):
    """Evaluations to within 5 %: 20 here, 111 by Optuna's TPE (a third of its runs never), 1416 by chance."""
    ours, tpe = (search.replayed(SEARCHERS[name], matmul, [matmul], 3, 100) for name in ("ours", "optuna-tpe"))
    chance = search.by_chance(matmul, 100)
    assert (len(matmul), np.isnan(matmul.time_ms).sum()) == (5712, 252)
    assert ours["ert5"] < 0.7 * tpe["ert5"] and ours["ert5"] < 0.3 * chance["ert5"]
    assert ours["x@50"] < tpe["x@50"] < chance["x@50"]


class Order:
    """Proposes the rows of a table in an order of its own."""

    def __init__(self, rows):
        self._rows, self.told = iter(rows), []

    def ask(self):
        return next(self._rows)

    def tell(self, time_ms):
        self.told.append(time_ms)


@pytest.fixture
def scan(tmp_path):
    """21 configs, three of them failures; 1 ms is the best, the next 1.5 ms, the worst 5.5 ms."""
    return read_table(write_table(tmp_path))


def test_a_failure_costs_an_evaluation_and_is_told_as_none(scan):
    failure, best = int(np.isnan(scan.time_ms).argmax()), int(np.nanargmin(scan.time_ms))
    slow = int(np.nanargmax(scan.time_ms))
    searcher = Order([failure, slow, best, failure])
    curve, ask_ms = search.replay(searcher, scan, 4)
    worst_ms = np.nanmax(scan.time_ms)
    assert curve.tolist() == [worst_ms, worst_ms, 1.0, 1.0] and len(ask_ms) == 4
    assert searcher.told == [None, worst_ms, 1.0, None]


def test_figures_are_those_of_their_definitions(scan):
    best, order = int(np.nanargmin(scan.time_ms)), list(range(21))
    order.remove(best)

    def make(table, tables, seed):
        # Found at the third evaluation, at the fifth, and not within 20.
        place = (2, 4, 20)[seed]
        return Order([*order[:place], best, *order[place:]])

    figures = search.replayed(make, scan, [scan], 3, 20)
    assert figures["hit5"] == figures["hit1"] == pytest.approx(2 / 3)
    assert figures["ert5"] == figures["ert1"] == (3 + 5 + 20) / 2
    assert figures["x@20"] == pytest.approx((np.nanmin(np.delete(scan.time_ms, best)) / 1.0) ** (1 / 3))
    assert "x@50" not in figures


def test_without_a_success_ert_is_all_that_was_spent(scan):
    slow = np.argsort(-np.nan_to_num(scan.time_ms, nan=9.0))[:5].tolist()
    figures = search.replayed(lambda table, tables, seed: Order(slow), scan, [scan], 3, 5)
    assert (figures["ert5"], figures["hit5"]) == (15, 0)


@pytest.mark.parametrize("budget", [1, 7, 20, 50])
def test_chance_is_what_many_shuffled_orders_come_to(scan, budget):
    def make(table, tables, seed):
        return Order(np.random.default_rng(seed).permutation(len(table)).tolist())

    sampled, exact = search.replayed(make, scan, [scan], 4000, budget), search.by_chance(scan, budget)
    assert exact.keys() == sampled.keys() - {"mean_ask_ms", "worst_ask_ms"}
    for key, value in exact.items():
        assert sampled[key] == pytest.approx(value, rel=0.15 if budget == 1 else 0.04), key


def test_over_tables_costs_and_factors_have_a_geometric_mean():
    rows = [{"ert5": 4.0, "hit5": 1.0, "x@20": 1.0, "mean_ask_ms": 2.0, "worst_ask_ms": 9.0}]
    rows.append({"ert5": 16.0, "hit5": 0.5, "x@20": 1.21, "mean_ask_ms": 4.0, "worst_ask_ms": 5.0})
    expected = {"ert5": 8.0, "hit5": 0.75, "x@20": 1.1, "mean_ask_ms": 3.0, "worst_ask_ms": 9.0}
    assert search.summary(rows) == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name != "random"])
def test_every_searcher_takes_every_config_once(name, scan):
    searcher = SEARCHERS[name](scan, [scan], 0)
    rows = []
    for _ in range(len(scan)):
        rows.append(searcher.ask())
        searcher.tell(searchers.told(scan.time_ms[rows[-1]]))
    assert sorted(rows) == list(range(21))


def device(folder, name, kernel="scan", group="xx", invert=False):
    """A table of another device; with ``invert`` the slowest config is the fastest there."""
    rows = [[*row[:3], 1 / row[3] if invert and row[3] else row[3], *row[4:]] for row in rows_of()]
    facts = {"name": f"{kernel}@{name}", "kernel": kernel, "device": name, "arch_group": group}
    write_table(folder, {**META, **facts}, rows, name=f"{kernel}@{name}")
    return read_table(folder / f"{kernel}@{name}")


@pytest.fixture
def folder(tmp_path):
    """scan on two devices, of which each is told to be bad by the other, and another kernel."""
    return (
        device(tmp_path, "Card"),
        device(tmp_path, "Other", group="yy", invert=True),
        device(tmp_path, "Card", "sort"),
    )


def test_sources_are_of_the_same_kernel_on_other_devices(folder, tmp_path):
    card, other, sort = folder
    near = device(tmp_path, "Near")
    tables = [card, other, sort, near]
    assert sources_of(card, tables) == [other, near] and sources_of(card, tables, far=True) == [other]
    assert sources_of(other, tables) == sources_of(other, tables, far=True) == [card, near]
    assert sources_of(sort, tables) == []


@pytest.mark.parametrize("name", ["ours-transfer", "ours-transfer-far", "ours-transfer-logged"])
def test_transfer_never_uses_the_table_under_test(name, folder):
    """Had it seen that table it would propose the best config first; what it has seen is a poisoned copy."""
    card = folder[0]
    first = SEARCHERS[name](card, folder, 0).ask()
    assert card.time_ms[first] == np.nanmax(card.time_ms)
    seen = Ours(card, 0, [searchers.whole(card)]).ask()
    assert card.time_ms[seen] == np.nanmin(card.time_ms)


def test_a_source_known_by_its_log_or_shuffled_has_the_times_of_the_table(folder, matmul):
    card = folder[0]
    truth = {card.config(row): searchers.told(card.time_ms[row]) for row in range(21)}
    assert searchers.whole(card) == searchers.logged(card, 0) == Experience(truth)
    log = searchers.logged(matmul, 1).trials
    assert len(log) == 300 and log != searchers.logged(matmul, 2).trials
    shuffled = searchers.shuffled(card, 1).trials
    assert shuffled != truth and shuffled.keys() == truth.keys()
    assert sorted(map(str, shuffled.values())) == sorted(map(str, truth.values()))


def test_it_prints_a_row_for_each_searcher_and_writes_json(folder, tmp_path, capsys):
    names = ["ours", "ours-transfer", "random", "optuna-tpe"]
    arguments = ["--tables", str(tmp_path), "--seeds", "2", "--budget", "20", "--jobs", "1", "--per-table"]
    search.main([*arguments, "--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    blocks = [block.splitlines() for block in printed.strip().split("\n\n")]
    titles = ["scan@Card", "scan@Other", "sort@Card", "3 tables, 2 seeds"]
    assert [block[0].split("  ")[0] for block in blocks] == titles
    assert all([line.split()[0] for line in block[1:5]] == names for block in blocks)
    assert blocks[-1][5:] == ["ours-transfer had no source and was as ours on sort@Card"]
    figures = json.loads((tmp_path / "figures.json").read_text())
    keys = {"ert5", "hit5", "ert1", "hit1", "x@20"}
    assert list(figures) == names
    for name, row in figures.items():
        mine = keys if name == "random" else keys | {"mean_ask_ms", "worst_ask_ms"}
        assert row.keys() == mine | {"tables"} and row["tables"].keys() == set(titles[:3])
        assert all(one.keys() == mine for one in row["tables"].values())
    ours, transfer = (figures[name]["tables"]["sort@Card"] for name in names[:2])
    assert {key: ours[key] for key in keys} == {key: transfer[key] for key in keys}


def test_processes_come_to_the_same_figures(folder, tmp_path):
    paths = sorted(tmp_path.glob("scan@*.csv.gz"))
    one, two = (search.run(["ours", "random"], paths, 1, 10, jobs) for jobs in (1, 2))
    for name in one:
        for table in one[name]:
            same = [key for key in one[name][table] if not key.endswith("_ms")]
            assert [one[name][table][key] for key in same] == [two[name][table][key] for key in same]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "--tables"),
        (["--tables", "{}/none"], "none': it holds no .csv.gz"),
        (["--tables", "{}/empty"], "empty': it holds no .csv.gz"),
        (["--tables", "{}/broken"], "no file"),
        (["--tables", "{}/failed"], "no config has a time"),
        (["--tables", "{}", "--searchers", "ours,best"], "no searcher 'best'; use some of ours,"),
        (["--tables", "{}", "--seeds", "0"], "--seeds: '0' is not a whole number above 0"),
        (["--tables", "{}", "--budget", "-1"], "--budget: '-1' is not a whole number above 0"),
        (["--tables", "{}", "--jobs", "two"], "--jobs: 'two' is not a whole number above 0"),
        (["--tables", "{}", "--json", "{}/none/figures.json"], "no folder"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, complaint, folder, tmp_path, capsys):
    for name in ("empty", "broken", "failed"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "scan@Card.csv.gz").touch()
    write_table(tmp_path / "failed", rows=[[16, 1, 0, "", "", ""]])
    with pytest.raises(SystemExit) as exit_:
        search.main([argument.format(tmp_path) for argument in arguments])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1 and complaint in error
