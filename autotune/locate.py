"""Which database: ``--db`` or :func:`autotune.use`, ``AUTOTUNE_DB``, ``./tuning.db``, the copy in the package."""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = Path(__file__).parent / "tuning.db"


def for_reading(path: str | Path | None = None) -> Path:
    """The file to read winners from; it need not exist if it was named."""
    named = path or os.environ.get("AUTOTUNE_DB")
    if named:
        return Path(named)
    here = Path("tuning.db")
    return here if here.exists() else SHIPPED


def for_writing(path: str | Path | None = None) -> Path:
    """The file to record trials in. Never the package's copy: an upgrade would take them away."""
    return Path(path or os.environ.get("AUTOTUNE_DB") or "tuning.db")
