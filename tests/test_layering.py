"""Imports point down; light imports stay light. See docs/architecture.md."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "autotune"

#: Each module may import those of earlier lines.
LAYERS = [
    {"arithmetic", "rung", "locate", "source", "schedule", "guard", "binary", "worker"},
    {"data"},
    {"space", "kernel", "device", "candidate", "protocol", "row", "spelling", "table", "exits"},
    {"kernels", "search_spaces"},
    {"registry", "search", "store", "timing", "verify", "summary"},
    {"calls", "compile", "stopwatch", "exchange", "sources", "winners"},
    {"compile_pool", "measure", "decide"},
    {"break_even"},
    {"dispatch", "targets"},
    {"ops", "checking", "tuner"},
    {"route", "tuning"},
    {"workload"},
    {"_recorder", "progress", "tables", "report"},
    {"cli"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
#: Taken inside a function when it is called: record() starts its modes.
LATE = {("workload", "_recorder")}


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autotune"):
            inner = node.module.split(".")[1:]
            yield from [inner[0]] if inner else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("autotune."))


# Not rglob, which follows no links before Python 3.13: kernels and search_spaces are links.
FOLDERS = [PACKAGE, *(folder for folder in sorted(PACKAGE.iterdir()) if any(folder.glob("*.py")))]
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    mine = module_of(path)
    for other in imports(path):
        inside_folder = other == mine and path.parent != PACKAGE
        assert inside_folder or LEVEL[other] < LEVEL[mine] or (mine, other) in LATE, f"{mine} imports {other}"


def third_parties(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize(
    ("package", "only"),
    [
        ("optuna", {"search", "report"}),
        ("sqlite_utils", {"store"}),
        ("click", {"cli", "exits"}),
        ("rich", {"progress", "tables"}),
        ("matplotlib", {"report"}),
        ("jinja2", {"report"}),
    ],
)
def test_one_module_imports_it(package, only):
    assert {module_of(path) for path in FILES if package in third_parties(path)} == only


def test_spaces_are_leaves():
    for path in (PACKAGE / "search_spaces").glob("*.py"):
        assert not {"torch", "triton"} & set(third_parties(path)), path
        assert set(imports(path)) <= {"arithmetic", "data", "space", "search_spaces"}, path


def test_nothing_imports_the_top_level_folders():
    for folder in ("autotune", "kernels", "search_spaces", "benchmarks", "examples", "tests"):
        for path in (PACKAGE.parent / folder).rglob("*.py"):
            assert not {"kernels", "search_spaces"} & set(third_parties(path)), path


def test_the_layers_name_every_module_and_no_other():
    assert set(LEVEL) == {module_of(path) for path in FILES}
    assert sum(map(len, LAYERS)) == len(LEVEL)


def test_no_module_is_long():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 300, path


def modules_after(code, root):
    watched = "('torch', 'triton', 'optuna', 'sqlite_utils', 'rich', 'matplotlib', 'jinja2', 'numpy')"
    printed = f"{code}; import sys; print([name for name in {watched} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", printed], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_import_loads_nothing_heavy(root):
    assert modules_after("import autotune", root) == "[]"
    assert modules_after("import autotune.cli", root) == "[]"


def test_dispatch_needs_neither_optuna_nor_sqlite_utils(root):
    code = "import torch, autotune; a = torch.ones(3, 3); autotune.ops.matmul(a, a); autotune.choose('gemm', a, a)"
    assert modules_after(code, root) == "['torch', 'triton', 'numpy']"
