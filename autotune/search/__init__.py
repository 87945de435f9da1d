"""Search: which config to measure next, learnt from those measured. Knows no GPU and no database."""

from autotune.search.experience import Experience
from autotune.search.loop import Origin, Step, search
from autotune.search.sampler import SurrogateSampler

__all__ = ["Experience", "Origin", "Step", "SurrogateSampler", "search"]
