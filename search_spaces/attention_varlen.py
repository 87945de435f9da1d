"""Which tiles ``attention_varlen`` may use: those of ``attention``, whose loop it shares."""

from __future__ import annotations

from autotune.search_spaces._attention_resources import shared_bytes
from autotune.search_spaces.attention import SPACE, steps

__all__ = ["SPACE", "shared_bytes", "steps"]
