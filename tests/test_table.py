import csv
import gzip
import json

import numpy as np
import pytest

from autotune.data import Config, UsageError
from autotune.table import read_table, stem_of

PARAMS = {"BLOCK": [16, 32, 64, 128], "UNROLL": [1, 2, 4], "PAD": [0, 1]}
META = {
    **{"name": "scan@Card", "kernel": "scan", "device": "Card"},
    **{"device_name": "MAKER CARD 7", "arch": "XX1", "arch_group": "xx"},
    "problem_size": [4096, 128],
    "params": PARAMS,
    "constants": {"W": 15},
    "constraints": ["PAD == 0 or BLOCK % 32 == 0"],
    "stats": {},
}
HEADER = [*PARAMS, "time_ms", "std_ms", "cost_ms"]


def rows_of():
    """21 allowed configs; UNROLL=4 fails with PAD=1; the best is BLOCK=64, UNROLL=2, PAD=1."""
    rows = []
    for block in PARAMS["BLOCK"]:
        for unroll in PARAMS["UNROLL"]:
            for pad in PARAMS["PAD"]:
                if pad == 0 or block % 32 == 0:
                    time_ms = 1 + abs(block - 64) / 16 + abs(unroll - 2) + 0.5 * (1 - pad)
                    failed = unroll == 4 and pad == 1
                    rows.append([block, unroll, pad, "" if failed else time_ms, "" if failed else 0.1, 1000.0])
    return rows


def write_table(folder, meta=META, rows=None, header=HEADER, name="scan@Card"):
    stem = folder / name
    (folder / f"{name}.json").write_text(json.dumps(meta))
    with gzip.open(folder / f"{name}.csv.gz", "wt", newline="") as stream:
        csv.writer(stream).writerows([header, *(rows_of() if rows is None else rows)])
    return stem


def test_a_table_is_what_its_files_say(tmp_path):
    table = read_table(write_table(tmp_path))
    rows = rows_of()
    assert (table.name, table.kernel, table.device) == ("scan@Card", "scan", "Card")
    assert (table.device_name, table.arch, table.arch_group) == ("MAKER CARD 7", "XX1", "xx")
    assert table.problem_size == (4096, 128) and table.constraints == ("PAD == 0 or BLOCK % 32 == 0",)
    assert dict(table.params) == {name: tuple(values) for name, values in PARAMS.items()}
    assert list(table.params) == list(PARAMS)
    assert len(table) == len(rows) == 21 and table.codes.shape == (21, 3)
    for row, (block, unroll, pad, time_ms, _, cost_ms) in enumerate(rows):
        assert table.config(row) == Config(BLOCK=block, UNROLL=unroll, PAD=pad)
        assert np.isnan(table.time_ms[row]) if time_ms == "" else table.time_ms[row] == time_ms
        assert table.cost_ms[row] == cost_ms
    assert np.isnan(table.time_ms).sum() == 3


def test_any_of_the_three_paths_names_the_table(tmp_path):
    stem = write_table(tmp_path)
    for suffix in ("", ".json", ".csv.gz"):
        assert read_table(f"{stem}{suffix}").time_ms.tobytes() == read_table(stem).time_ms.tobytes()
        assert stem_of(f"{stem}{suffix}") == str(stem)
    assert stem_of(tmp_path / "tuning.db") is None


def test_columns_may_come_in_any_order(tmp_path):
    rows = [row[::-1] for row in rows_of()]
    table = read_table(write_table(tmp_path, rows=rows, header=HEADER[::-1]))
    assert table.config(0) == Config(BLOCK=16, UNROLL=1, PAD=0) and table.cost_ms[0] == 1000.0


def test_flags_and_words_keep_their_type(tmp_path):
    meta = {**META, "params": {"FLAG": [False, True], "MODE": ["row", "column"]}}
    header, row = ["FLAG", "MODE", "time_ms", "std_ms", "cost_ms"], [True, "row", 2.5, "", ""]
    table = read_table(write_table(tmp_path, meta=meta, header=header, rows=[row]))
    assert table.config(0) == Config(FLAG=True, MODE="row")
    assert table.time_ms[0] == 2.5 and np.isnan(table.cost_ms[0])


def test_the_middle_is_the_allowed_row_nearest_to_every_ranges_middle(tmp_path):
    table = read_table(write_table(tmp_path))
    assert table.config(table.middle) == Config(BLOCK=32, UNROLL=2, PAD=0)
    rows = [row for row in rows_of() if row[:2] != [32, 2]]
    assert read_table(write_table(tmp_path, rows=rows)).config(table.middle) != Config(BLOCK=32, UNROLL=2, PAD=0)
    moved = read_table(tmp_path / "scan@Card")
    assert moved.config(moved.middle) == Config(BLOCK=16, UNROLL=2, PAD=0)  # a quarter of a range away, and first


def test_constraints_are_never_evaluated(tmp_path):
    meta = {**META, "constraints": ["__import__('os').abort()", "not python ("]}
    assert len(read_table(write_table(tmp_path, meta=meta))) == 21


@pytest.mark.parametrize("missing", [".json", ".csv.gz"])
def test_a_missing_file_is_named(tmp_path, missing):
    stem = write_table(tmp_path)
    (tmp_path / f"scan@Card{missing}").unlink()
    with pytest.raises(UsageError, match=rf"no file .*scan@Card{missing}"):
        read_table(stem)


def changed(row, column, value):
    rows = rows_of()
    rows[row][HEADER.index(column)] = value
    return {"rows": rows}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"header": [*PARAMS, "time_ms", "std_ms", "price"]}, "cost_ms, price"),
        ({"header": ["BLOCK", "BLOCK", "PAD", "time_ms", "std_ms", "cost_ms"]}, "BLOCK, UNROLL|UNROLL"),
        ({"rows": []}, "line 2"),
        ({"rows": [*rows_of(), [16, 1]]}, "line 23 does not have the 6 cells"),
        ({"rows": [*rows_of(), rows_of()[4]]}, "line 23 gives a config a second time"),
        (changed(2, "BLOCK", 48), "line 4 has BLOCK='48'; use one of 16, 32, 64, 128"),
        (changed(3, "time_ms", "fast"), "line 5 has time_ms='fast'"),
        (changed(3, "time_ms", -1.0), "line 5 has time_ms='-1.0'"),
        (changed(3, "time_ms", "nan"), "line 5 has time_ms='nan'"),
        (changed(0, "cost_ms", "inf"), "line 2 has cost_ms='inf'"),
        ({"meta": {**META, "kernel": 3}}, "kernel is 3; it must be text"),
        ({"meta": {**META, "device_name": "two\nlines"}}, "device_name is"),
        ({"meta": {**META, "problem_size": [4096.5]}}, "problem_size is"),
        ({"meta": {**META, "problem_size": []}}, "problem_size is"),
        ({"meta": {**META, "params": {}}}, "params is"),
        ({"meta": {**META, "params": {"BLOCK": [16, 16]}}}, "params.BLOCK is"),
        ({"meta": {**META, "params": {"BLOCK": [1.5]}}}, "BLOCK=1.5 is a float"),
        ({"meta": {**META, "params": {"not a name": [1]}}}, "a name is a Python identifier"),
        ({"meta": {**META, "params": {"time_ms": [1]}}}, "none of them called time_ms"),
        ({"meta": [META]}, "not a JSON object"),
    ],
)
def test_what_is_not_in_order_is_told_in_one_line(tmp_path, change, match):
    stem = write_table(tmp_path, **change)
    with pytest.raises(UsageError, match=match) as caught:
        read_table(stem)
    assert "\n" not in str(caught.value) and "scan@Card" in str(caught.value)


def test_files_that_are_something_else_are_refused(tmp_path):
    stem = write_table(tmp_path)
    (tmp_path / "scan@Card.csv.gz").write_text("BLOCK,time_ms\n1,2\n")
    with pytest.raises(UsageError, match="packed by gzip"):
        read_table(stem)
    write_table(tmp_path)
    packed = (tmp_path / "scan@Card.csv.gz").read_bytes()
    (tmp_path / "scan@Card.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UsageError, match="can't be read"):
        read_table(stem)
    write_table(tmp_path)
    (tmp_path / "scan@Card.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        read_table(stem)
