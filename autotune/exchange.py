"""Trials between files: merge databases, export to JSON lines, import them back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from autotune.store import Store, StoreError


def merge(sources: Sequence[str | Path], into: str | Path) -> int:
    """Copy the trials of ``sources`` into ``into``. Idempotent, and the order of the sources does not matter.

    Returns how many rows were new or later than those of ``into``.

    :raises StoreError: if a file can't be read or written. Each source is taken whole or not at all.
    """
    changed = 0
    opened = []
    try:
        for source in sources:
            opened.append(Store(source, readonly=True))
        with Store(into) as target:
            for store in opened:
                changed += target.add(store.rows())
    finally:
        for store in opened:
            store.close()
    return changed


def export(path: str | Path, stream: IO[str]) -> int:
    """Write every trial of the database as one JSON object a line. Returns how many."""
    with Store(path, readonly=True) as store:
        return _write(store, stream)


def export_to(path: str | Path, output: str | Path) -> int:
    """Like :func:`export`, into a file, which is replaced only when all is written.

    :raises StoreError: if the database can't be read or the file not written.
    """
    output = Path(output)
    beside = output.with_name(f".{output.name}.{os.getpid()}.part")
    with Store(path, readonly=True) as store:
        try:
            if output.exists() and not output.is_file():
                with output.open("w", encoding="utf-8") as stream:  # a device or a pipe
                    return _write(store, stream)
            with beside.open("w", encoding="utf-8") as stream:
                count = _write(store, stream)
            beside.replace(output)
            return count
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise StoreError(f"can't write {output}: {error.strerror}; name another file") from error


def _write(store: Store, stream: IO[str]) -> int:
    count = 0
    for row in store.rows():
        stream.write(json.dumps(row, sort_keys=True) + "\n")
        count += 1
    return count


def import_(path: str | Path, stream: IO[str]) -> int:
    """Take in what :func:`export` wrote, all or nothing. Returns how many rows were new or later.

    :raises StoreError: naming the line that is not a trial.
    """
    rows = list(_lines(stream))
    with Store(path) as store:
        return store.add(rows)


def _lines(stream: IO[str]) -> Iterator[dict[str, Any]]:
    try:
        lines = stream.read().splitlines()
    except UnicodeDecodeError as error:
        raise StoreError(f"the input is not text in UTF-8: {error}; nothing was written") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"line {number} is not JSON: {error}; nothing was written") from error
        if not isinstance(row, dict):
            raise StoreError(f"line {number} is not a JSON object; nothing was written")
        yield row
