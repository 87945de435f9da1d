import pytest

from autotune import registry, source
from autotune.data import UsageError
from autotune.source import source_hash

PINNED = "f96c6779d6fda1921060a4f1a10eeda6bab5cd37706e716c702bf44cf407fede"

KERNEL = '''
"""Docstring."""
from autotune.kernels.gemm import KERNEL  # a comment


def helper(x):
    """Says something."""
    return x + 1
'''


def test_the_three_kernels_are_found_without_a_list():
    assert {"gemm", "attention", "bsr_matmul"} <= set(registry.entries())


def test_hash_is_blind_to_comments_docstrings_and_lines(tmp_path):
    path = tmp_path / "k.py"
    path.write_text(KERNEL)
    first = source_hash(path)
    path.write_text("\n\n\n" + KERNEL.replace("a comment", "another").replace("Says something.", "Says more."))
    assert source_hash(path) == first
    path.write_text(KERNEL.replace("x + 1", "x + 2"))
    assert source_hash(path) != first


def test_hash_is_the_same_under_every_python(tmp_path):
    """Pinned: on another Python the rows of a shared database must not turn stale."""
    path = tmp_path / "k.py"
    path.write_text(KERNEL + 'TEXT = f"{helper(1)!r:>{3}} of {2}" "and" if (1, None) else {**{}}\n')
    assert source_hash(path) == PINNED


def test_hash_covers_helpers(tmp_path, monkeypatch):
    (tmp_path / "kernels").mkdir()
    helper = tmp_path / "kernels" / "_helper.py"
    helper.write_text("A = 1\n")
    kernel = tmp_path / "kernels" / "k.py"
    kernel.write_text("from autotune.kernels._helper import A\n")
    monkeypatch.setattr(source, "HELPERS", tmp_path / "kernels")
    first = source_hash(kernel)
    helper.write_text("A = 2\n")
    assert source_hash(kernel) != first


def test_a_users_kernel_takes_the_same_road(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    path = tmp_path / "mine.py"
    path.write_text(KERNEL)
    registry.register("mine", str(path), "autotune.search_spaces.gemm")
    registry.register("mine", str(path), "autotune.search_spaces.gemm")  # again: the same, no complaint
    assert registry.load("mine").kernel.problems
    with pytest.raises(UsageError, match="exists already"):
        registry.register("gemm", str(path), "autotune.search_spaces.gemm")


@pytest.mark.parametrize(("text", "message"), [("", "defines no KERNEL"), ("KERNEL = 3", "defines no KERNEL")])
def test_a_file_without_kernel_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        registry.Entry("mine", str(path), "autotune.search_spaces.gemm").load()


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown kernel 'gem'; known are attention"):
        registry.load("gem")
    with pytest.raises(UsageError, match="no kernel file"):
        registry.Entry("mine", str(tmp_path / "absent.py"), "autotune.search_spaces.gemm").load()
