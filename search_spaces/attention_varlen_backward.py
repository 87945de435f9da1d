"""Which tiles ``attention_varlen_backward`` may use: those of ``attention_backward``, whose kernels it runs."""

from __future__ import annotations

from autotune.search_spaces._attention_backward_resources import shared_bytes
from autotune.search_spaces.attention_backward import SPACE, steps

__all__ = ["SPACE", "shared_bytes", "steps"]
