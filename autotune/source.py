"""What a kernel's code is, as one hash: measurements of other code are stale."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

#: What stands before the hash of a recorded table, which has no code.
TABLE = "table:"

HELPERS = Path(__file__).parent / "kernels"

#: Fields of syntax nodes that say nothing, or that not every Python has.
_SILENT = ("ctx", "kind", "type_comment", "type_params")


def source_hash(path: Path) -> str:
    """sha256 of a kernel file's code and of the ``kernels/_*.py`` helpers it imports.

    Blind to comments, docstrings and where lines stand, and the same under every Python: only a change of code
    makes a measurement stale. Blind, too, to ``_*_operator.py``, which run no part of a kernel.
    """
    digest = hashlib.sha256()
    for file in sorted(_with_helpers(path), key=lambda file: file.name):
        digest.update(f"{file.name}\n{_text(_code(file))}\n".encode())
    return digest.hexdigest()


def is_stale(source: str, present: str | None) -> bool:
    """Whether rows of ``source`` are of other code than the kernel has now.

    :param present: the hash of its code, None if no such kernel is installed
    """
    return source != present and not source.startswith(TABLE)


def _code(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def _text(node: object) -> str:
    """A spelling of a syntax tree; ast.unparse and ast.dump change theirs from one Python to the next."""
    if isinstance(node, ast.AST):
        fields = (f"{name}={_text(value)}" for name, value in ast.iter_fields(node) if name not in _SILENT)
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_text, node))}]"
    return repr(node)


def _with_helpers(path: Path) -> set[Path]:
    found, todo = set(), [path]
    while todo:
        file = todo.pop()
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autotune.kernels._"):
                helper = HELPERS / f"{str(node.module).rpartition('.')[2]}.py"
                if helper not in found and not helper.stem.endswith("_operator"):
                    todo.append(helper)
    return found
