"""From milliseconds to what the surrogate learns: how near a config is to the best one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autotune.search.axes import Floats


def merit(values: Sequence[float | None]) -> Floats:
    """1 for the best, 0 for a failure (None): the share of the best speed, best / value.

    A slow config is slow whether by 20 or by 200 times. Values that are not all above zero are no times; they
    are placed between the median (0) and the best (1).
    """
    known = np.array([np.nan if value is None else value for value in values], dtype=float)
    if np.isnan(known).all():
        return np.zeros(len(known))
    best = np.nanmin(known)
    if best > 0:
        share = best / known
    else:
        span = np.nanmedian(known) - best
        share = 1.0 - (known - best) / (span if span > 0 else 1.0)
    merits: Floats = np.nan_to_num(np.clip(share, 0.0, 1.0), nan=0.0)
    return merits
