"""Integer arithmetic that spaces and kernels share."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T", int, float)


def clamp(value: T, low: T, high: T) -> T:
    return max(low, min(value, high))


def cdiv(a: int, b: int) -> int:
    """Ceiling division: how many tiles of ``b`` cover ``a``."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``; 1 for ``n`` <= 1."""
    return 1 << max(0, n - 1).bit_length()
