"""What a look-up costs when the shapes are known: ours beside the look-up part of triton.autotune, in one run.

    python -m benchmarks.lookup

Needs no GPU: neither launches anything. ``Autotuner.run`` is given a stub in place of the compiled kernel and a
cache that holds the key, so that what remains is what it does on every call before the launch.
"""

from __future__ import annotations

import argparse
import json
import os
import timeit
import warnings
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # triton.autotune has no driver to ask there, and we launch nothing

import torch
import triton

import autotune


class _Stub:
    """Stands where the compiled kernel would: takes the launch and does nothing."""

    #: As the matmul of Triton's tutorial 03.
    arg_names = ("a", "b", "c", "M", "N", "K", "am", "ak", "bk", "bn", "cm", "cn")

    @staticmethod
    def fn() -> None:
        """What Autotuner unwraps to a Python function."""

    def run(self, *args: Any, **kwargs: Any) -> None:
        return None


def triton_lookup(a: torch.Tensor, b: torch.Tensor) -> Callable[[], object]:
    """``Autotuner.run`` of a kernel keyed by M, N, K whose winner is cached."""
    stub = _Stub()
    tile = {"BLOCK_N": 128, "BLOCK_K": 64, "GROUP_M": 8}
    configs = [triton.Config({"BLOCK_M": m, **tile}, num_warps=4, num_stages=3) for m in (64, 128)]
    tuner = triton.runtime.Autotuner(
        stub,
        list(stub.arg_names),
        configs,
        key=["M", "N", "K"],
        reset_to_zero=None,
        restore_value=None,
        do_bench=lambda *_args, **_kwargs: [1.0, 1.0, 1.0],
    )
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty(M, N)
    dtypes = tuple(str(tensor.dtype) for tensor in (a, b, c))
    tuner.cache[M, N, K, dtypes[0], dtypes[1], dtypes[2]] = configs[0]
    return lambda: tuner.run(a, b, c, M, N, K, *a.stride(), *b.stride(), *c.stride(), grid=(1,))


def microseconds(function: Callable[[], object], repeats: int, number: int) -> float:
    """Least of ``repeats`` means: what the code costs when nothing else runs."""
    function()
    return min(timeit.repeat(function, repeat=repeats, number=number)) / number * 1e6


def measure(repeats: int = 7, number: int = 20_000) -> dict[str, float]:
    """Look-up name -> microseconds a call. Interleaved per name, on linear-layer operands of MiniLM."""
    a, b = torch.randn(64, 384), torch.randn(384, 384).t()
    q = torch.randn(1, 12, 64, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that sparse tensors are in beta
        x, weight = torch.randn(64, 384), torch.randn(384, 384).to_sparse_bsr((32, 32))
    candidates: dict[str, Callable[[], object]] = {
        "autotune.choose gemm": lambda: autotune.choose("gemm", a, b),
        "autotune.choose attention": lambda: autotune.choose("attention", q, q, q, causal=True),
        "autotune.choose bsr_matmul": lambda: autotune.choose("bsr_matmul", x, weight),
        "triton Autotuner.run over a stub": triton_lookup(a, b),
        "an empty function": lambda: None,
    }
    return {name: microseconds(function, repeats, number) for name, function in candidates.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = arguments.parse_args()
    figures = measure()
    if options.json:
        print(json.dumps(figures))
        return
    print(f"triton {triton.__version__}, torch {torch.__version__}, microseconds a call")
    for name, cost in figures.items():
        print(f"{cost:8.2f}  {name}")


if __name__ == "__main__":
    main()
