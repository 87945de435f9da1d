import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import click
import pytest

from autotune import registry
from autotune.cli import main
from autotune.rung import Rung

SMALL = "M=32,N=32,K=32,dtype=float32"


def command(root, *args, **options):
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment.pop("AUTOTUNE_DB", None)
    return subprocess.Popen(
        [sys.executable, "-m", "autotune.cli", *args],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, **options},
        # A suite started in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run a command in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def run(text):
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(text), prog_name="autotune")
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def three_trials(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    process = command(root, "tune", "gemm", SMALL, "--target", "interpreter", "--trials", "3", cwd=folder)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return folder / "tuning.db"


@pytest.fixture
def tuned(three_trials, tmp_path):
    """A database of its own with three trials of SMALL."""
    return Path(shutil.copy(three_trials, tmp_path))


def counted(path, column):
    """How many rows have each value of a column."""
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute(f"select {column}, count(*) from trials group by 1").fetchall())


def ladder_of(out):
    """The candidates that ended on each rung, as printed."""
    lines = [line.split() for line in out.splitlines()]
    return {words[0]: int(words[1]) for words in lines if words and words[0] in set(Rung)}


def test_tune_prints_the_table_and_fills_the_database(cli, tuned):
    code, out, err = cli(f"tune gemm {SMALL} --target interpreter --trials 4")
    assert code == 0
    assert err.startswith(f"problem 1/1 gemm {SMALL}: trial 4/4, best ")
    header, row = (line.split() for line in out.splitlines() if line.startswith((" kernel", " gemm")))
    assert header == [
        *("kernel", "problem", "default", "time", "best", "time", "gain", "ties", "trials", "new", "failures"),
        *("target", "ended"),
    ]
    # Three of the four trials were known.
    assert row[1] == SMALL and row[-8:] == ["4", "1", "none", "interpreter", "4", "trials", "are", "done"]
    ladder = ladder_of(out)
    assert sum(ladder.values()) == 1 and "ended there" in out
    assert counted(tuned, "protocol") == {"wall-throughput-2": 4}


def test_the_default_is_recorded_as_such_and_stays_so_in_the_finals(three_trials):
    assert "default" in {json.loads(text)["origin"] for text in counted(three_trials, "provenance")}


def test_the_ladder_says_where_candidates_ended(cli, tmp_path):
    code, out, _ = cli(f"tune gemm {SMALL} --target interpreter --trials 3")
    assert code == 0
    ended = counted(tmp_path / "tuning.db", "rung")
    assert sum(ended.values()) == 3
    assert {rung: count for rung, count in ladder_of(out).items() if count} == ended


def test_another_objective_is_tuned_beside_the_first(cli, tuned):
    assert cli(f"tune gemm {SMALL} --target interpreter --trials 2 --objective latency")[0] == 0
    assert counted(tuned, "protocol") == {"wall-throughput-2": 3, "wall-latency-2": 2}
    for objective in ("throughput", "latency"):
        _, out, _ = cli(f"explain gemm {SMALL} --target interpreter --objective {objective}")
        assert out.startswith("tuned: ") and f"(wall-{objective}-2)" in out
    assert cli("best")[1].count(SMALL) == 2


def test_what_was_tuned_for_throughput_is_not_served_for_latency(cli, tuned):
    _, out, _ = cli(f"explain gemm {SMALL} --target interpreter --objective latency")
    assert out.startswith("default: ") and "nothing is tuned on interpreter" in out


def test_of_trials_and_a_budget_the_first_to_be_reached_ends_it(cli, tmp_path):
    other = SMALL.replace("M=32", "M=16")
    code, out, err = cli(f"tune gemm {SMALL} {other} --target interpreter --trials 2 --budget 10m")
    assert code == 0 and out.count("2 trials are done") == 2 and "not reached" not in err
    assert counted(tmp_path / "tuning.db", "problem") == {SMALL: 2, other: 2}
    code, out, err = cli(f"tune gemm {SMALL} {other} --target interpreter --trials 50 --budget 0.1s --db b.db")
    assert code == 0 and out.count("the time is up") == 1
    assert err.endswith("1 of 2 problems were not reached; raise --budget\n")
    assert counted(tmp_path / "b.db", "problem") == {SMALL: 1}


def test_best(cli, tuned):
    code, out, _ = cli("best --format json")
    (row,) = json.loads(out)
    key, outcome = "kernel source problem device config protocol", "median_ms p20_ms p80_ms n reason detail"
    wanted = f"{key} {outcome} target triton torch created_at"
    assert code == 0 and set(wanted.split()) <= set(row)
    assert (row["kernel"], row["problem"], row["target"]) == ("gemm", SMALL, "interpreter")
    _, out, _ = cli("best gemm --format csv")
    assert len(out.splitlines()) == 2 and out.startswith("kernel,source,problem")
    _, out, _ = cli("best attention --format json")
    assert json.loads(out) == []
    _, out, _ = cli("best")
    assert SMALL in out


def test_explain(cli, tuned):
    code, out, _ = cli(f"explain gemm {SMALL} --target interpreter --format json")
    assert code == 0 and json.loads(out)["source"] == "tuned"
    _, out, _ = cli("explain gemm M=40,N=32,K=32,dtype=float32 --target interpreter")
    assert out.startswith('nearest: {"BLOCK_K"') and SMALL in out
    _, out, _ = cli("explain gemm M=32,N=32,K=32,dtype=float16 --target interpreter")
    assert out.startswith("default: ") and "dtype=float32" in out


def test_export_import_and_merge(cli, tuned, tmp_path):
    code, out, _ = cli("export")
    assert (
        code == 0
        and len(out.splitlines()) == 3
        and all(json.loads(line)["kernel"] == "gemm" for line in out.splitlines())
    )
    assert cli("export rows.jsonl")[0] == 0 and (tmp_path / "rows.jsonl").read_text() == out
    assert cli("import rows.jsonl --db copy.db")[1] == "3 rows new or later in copy.db\n"
    assert cli("merge copy.db tuning.db --into all.db")[1] == "3 rows new or later in all.db\n"
    assert cli("merge copy.db tuning.db --into all.db")[1] == "0 rows new or later in all.db\n"
    assert cli("export --db all.db")[1] == out


def test_a_failed_export_leaves_the_old_file(cli, tmp_path):
    (tmp_path / "rows.jsonl").write_text("precious")
    (tmp_path / "bad.db").write_text("no database" * 100)
    assert cli("export rows.jsonl --db bad.db")[0] == 1
    assert (tmp_path / "rows.jsonl").read_text() == "precious"


def test_list_names_every_kernel_and_parameter(cli):
    code, out, _ = cli("list")
    assert code == 0
    for word in ("gemm", "attention", "bsr_matmul", "BLOCK_M", "num_stages", "[layout]", "sm_90", "interpreter"):
        assert word in out


def test_check_and_bench(cli, tuned):
    code, out, _ = cli("check bsr_matmul --target interpreter --samples 1")
    assert code == 0 and out.count(" right") == len(registry.load("bsr_matmul").kernel.problems)
    code, out, _ = cli(f"bench gemm {SMALL} --target interpreter")
    assert code == 0 and "tuned" in out and out.count(" ms") == 3


def test_device(cli):
    code, out, _ = cli("device --target interpreter --format json")
    assert code == 0 and json.loads(out)["key"] == "interpreter"


BAD = [
    ("tune gem M=1", 2, "unknown kernel 'gem'; known are attention, attention_backward"),
    ("tune", 2, "nothing to tune"),
    ("tune gemm", 2, "no problem given for gemm; for example"),
    ("tune gemm M=1", 2, "lacks N; it needs M, N, K, dtype"),
    ("tune gemm M=1,N=2,K=-3,dtype=float16", 2, "K=-3 must be an integer from 0"),
    ("tune gemm M=1,N=2,K=3.5,dtype=float16", 2, "K=3.5"),
    ("tune gemm M=1,N=2,K=99999999999,dtype=float16", 2, "K=99999999999 must be"),
    ("tune gemm M=1,N=2,K=3,dtype=float99", 2, "dtype=float99 must be one of float16, bfloat16, float32"),
    ("tune gemm M=1,N=2,K=3,Q=4,dtype=float16", 2, "has no field 'Q'; the fields are M, N, K"),
    ("tune attention B=1,H=8,HKV=3,SQ=4,SK=4,D=8,dtype=float16", 2, "HKV=3 must divide H=8"),
    ("tune attention B=1,H=8,HKV=8,SQ=4,SK=4,D=512,dtype=float16", 2, "D=512 must be an integer from 1 to 256"),
    (f"tune gemm {SMALL} --target tpu", 2, "unknown target 'tpu'; use auto, cuda:N, interpreter or replay:FILE"),
    (f"tune gemm {SMALL} --target cuda:0", 2, "no device cuda:0"),
    (f"tune gemm {SMALL} --trials 0", 2, "--trials is 0; it must be at least 1"),
    (f"tune gemm {SMALL} --trials many", 2, "'many' is not a valid integer"),
    (f"tune gemm {SMALL} --budget 0", 2, "--budget is '0'; write a time above zero"),
    (f"tune gemm {SMALL} --budget soon", 2, "--budget is 'soon'"),
    (f"tune gemm {SMALL} --objective speed", 2, "'speed' is not one of"),
    (f"tune gemm {SMALL} --seed -1", 2, "-1 is not in the range"),
    (f"tune gemm {SMALL} --db no/such/folder.db --target interpreter", 1, "no folder no/such"),
    (f"tune gemm {SMALL} --db . --target interpreter", 1, "unable to open database file"),
    ("tune --workload absent.jsonl", 2, "workload absent.jsonl can't be read"),
    ("tune --workload bad.jsonl", 2, "line 1 is not"),
    ("tune attention --workload good.jsonl", 2, "has no problem of attention"),
    ("best --db absent.db", 1, "no database absent.db; make one with `autotune tune`"),
    ("best --db bad.jsonl", 1, "file is not a database"),
    ("best gem", 2, "unknown kernel"),
    ("best --format xml", 2, "'xml' is not one of"),
    ("explain gemm M", 2, "is not name=value"),
    (f"explain gemm {SMALL} --db absent.db", 1, "no database absent.db"),
    ("check gem", 2, "unknown kernel"),
    ("check --samples -1", 2, "--samples is -1"),
    ("merge absent.db --into all.db", 1, "no database absent.db"),
    ("import absent.jsonl", 1, "absent.jsonl: No such file"),
    ("import bad.jsonl", 1, "line 1 is not JSON"),
    ("export no/folder.jsonl --db bad.jsonl", 1, "not a database"),
    ("device --target cuda:7", 2, "no device cuda:7"),
    ("frobnicate", 2, "No such command 'frobnicate'"),
]


@pytest.mark.parametrize(("text", "code", "message"), BAD, ids=[text for text, _, _ in BAD])
def test_bad_input_is_one_line_and_an_exit_code(cli, tmp_path, text, code, message):
    (tmp_path / "bad.jsonl").write_text("nonsense\n" * 50)
    (tmp_path / "good.jsonl").write_text(json.dumps({"kernel": "gemm", "problem": SMALL, "calls": 1}))
    before = set(tmp_path.iterdir())
    assert cli(text)[0] == code
    ended, out, err = cli(text)
    assert (ended, out) == (code, "")
    assert err.startswith("autotune: ") and message in err and err.count("\n") == 1
    assert set(tmp_path.iterdir()) == before  # no half-made database either


def test_a_readonly_database_is_told(root, tmp_path):
    """On a file system that refuses writes even to root: a folder in /proc."""
    process = command(root, "tune", "gemm", SMALL, "--target", "interpreter", "--db", "/proc/tuning.db")
    _, err = process.communicate()
    assert process.returncode == 1 and err.count("\n") == 1 and "/proc/tuning.db" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_keeps_what_it_has_and_goes_on_from_there(root, tmp_path, number):
    arguments = ("tune", "gemm", SMALL, "--target", "interpreter", "--trials", "5")
    process = command(root, *arguments, cwd=tmp_path)
    assert "trial 1/5" in process.stderr.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "stopped; every finished trial is recorded" in err
    kept = counted(tmp_path / "tuning.db", "kernel")["gemm"]
    process = command(root, *arguments, cwd=tmp_path)
    out, _ = process.communicate(timeout=300)
    (row,) = (line.split() for line in out.splitlines() if line.startswith(" gemm"))
    assert process.returncode == 0 and 1 <= kept < 5
    assert row[-8:] == ["5", str(5 - kept), "none", "interpreter", "5", "trials", "are", "done"]


def test_a_killed_sweep_leaves_no_worker_behind(root, tmp_path):
    process = command(
        root, "tune", "gemm", "M=64,N=512,K=512,dtype=float32", "--target", "interpreter", cwd=tmp_path
    )
    assert "trial 1/" in process.stderr.readline()
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    (worker,) = map(int, children.stdout.split())
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not os.path.exists(f"/proc/{worker}")


README_COMMAND = re.compile(r"^\$ (autotune .*)$", re.MULTILINE)


def readme_commands(root):
    return README_COMMAND.findall((root / "README.md").read_text())


def options_of(name):
    return {option for param in main.commands[name].params for option in param.opts}


def test_readme_uses_only_commands_and_options_that_exist(root):
    commands = [shlex.split(line) for line in readme_commands(root)]
    assert {words[1] for words in commands} >= {"tune", "best", "explain"}
    for words in commands:
        used = {word for word in words[2:] if word.startswith("--")}
        assert used <= options_of(words[1]), words


def test_readme_and_help_name_every_command(root):
    text = (root / "README.md").read_text()
    for name, one in main.commands.items():
        assert f"`autotune {name}`" in text, name
        assert one.help and one.get_short_help_str()
        for param in one.params:
            described = isinstance(param, click.Argument) or param.help or param.name in ("form", "seed")
            assert described, f"{name} {param.name}"


def test_readme_transcript_is_what_the_commands_print(cli, root):
    """The commands of the README run here as they stand; times differ, everything else must not."""
    blocks = re.findall(r"```console\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    checked = 0
    for block in blocks:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, shown = part.partition("\n")
            if not line.startswith("autotune"):
                continue
            code, out, _ = cli(line.removeprefix("autotune "))
            assert code == 0, line
            assert skeleton(out) == skeleton(shown), line
            checked += 1
    assert checked >= 3


def skeleton(text):
    """Words of printed lines, without what a measurement decides: times, gains, ties, rungs, chosen configs."""
    lines = []
    for line in text.strip().splitlines():
        if line.split()[:1] and line.split()[0] in set(Rung):
            continue  # on which rungs candidates ended
        line = re.sub(r"(\d+\.\d+x) +\d+", r"\1 TIES", line)
        config = r"(?:tiled|persistent|descriptor|skinny)(?: [mnkgws]\d+)+(?: [A-Z_]+(?:=\d+)?)*|\{.*?\}"
        line = re.sub(config, "CONFIG", line)
        line = re.sub(r"\d[\d.e+-]* ms|\d+\.\d+x", "TIME", line)
        line = re.sub(r"3\.\d+\.\d+", "VERSION", line)
        words = re.sub(r"[─ ]+", " ", line).strip()
        if words:
            lines.append(words)
    return lines
