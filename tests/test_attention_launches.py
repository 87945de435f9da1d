"""Ragged attention as it is served: what is compiled for one batch is found by the next, whatever its lengths."""

import itertools
import sys

import pytest
import torch
import torch.nn.attention.varlen

from autotune import device, registry
from autotune.compile import compile_config
from autotune.data import Config
from autotune.kernels._attention_backward import row_deltas
from autotune.kernels._attention_varlen_reference import torchs_varlen_attn
from autotune.kernels._launch import split
from tests.test_compile import binaries, worker_with_cache

#: Lengths of queries and of keys: totals and longest ones that are multiples of 16, 1, and neither.
BATCHES = (([16, 16], [32, 32]), ([7, 10], [9, 30]), ([1], [17]), ([1, 0], [1, 0]))
TEXT = "B=2,H=2,HKV=1,SQ=16,SK=32,D=16,dtype=float16,causal=true"


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with worker_with_cache(tmp_path_factory.mktemp("cache")) as worker:
        yield worker


def call(rows, columns):
    """Arguments of attention_varlen, and those that its gradients take before them."""
    q, k, v = (torch.zeros(sum(n), h, 16, dtype=torch.float16) for n, h in ((rows, 2), (columns, 1), (columns, 1)))
    ends = (torch.tensor([0, *itertools.accumulate(n)], dtype=torch.int32) for n in (rows, columns))
    return (q, k, v), (torch.zeros_like(q), torch.zeros(2, len(q))), (*ends, max(rows), max(columns), True)


def compiled_again(entry, problem, config, where):
    """How many kernels the batches compile after the config has been compiled ahead. In a worker."""
    compile_config(entry, problem, config, where)
    kernel, before = entry.load().kernel, binaries()

    def launch(function, programs, *args, config, descriptors=False, **constexprs):
        parameters, options = split(function, config)
        # What kernels/_launch.py does, short of the device; the target is still the one compiled for.
        function.warmup(*args, grid=(programs,), **constexprs, **parameters, **options, enable_fp_fusion=True)

    sys.modules[kernel.run.__module__].launch = launch
    for batch in BATCHES:
        inputs, results, others = call(*batch)
        before_them = () if "backward" not in kernel.run.__module__ else (results[0], None)
        after_them = results if before_them else ()
        kernel.run(config, *before_them, *inputs, *after_them, *others)
    return binaries() - before


@pytest.mark.parametrize("profile", ["a100", "mi300x"])
@pytest.mark.parametrize("name", ["attention_varlen", "attention_varlen_backward"])
def test_no_batch_compiles_anew(worker, name, profile):
    loaded, where = registry.load(name), device.profile(profile)
    problem = loaded.kernel.parse(TEXT)
    changes = {"PACK_GQA": False} if name == "attention_varlen" else {}
    config = Config({**loaded.space.default(problem, where), **changes})
    assert worker.call(compiled_again, loaded.entry, problem, config, where, timeout_s=120) == 0


@pytest.mark.parametrize("name", ["attention_backward", "attention_varlen_backward"])
def test_the_config_of_the_products_is_not_that_of_the_deltas(name):
    kernel = registry.load(name).kernel
    tiles = {"BLOCK_M1": 16, "BLOCK_N1": 16, "BLOCK_M2": 16, "BLOCK_N2": 16, "num_stages": 2}
    few, many = (
        kernel.signature(kernel.parse(TEXT), Config({**tiles, "num_warps": warps, "maxnreg": limit}))
        for warps, limit in ((4, 0), (2, 128))
    )
    assert few[0].function.__name__ == row_deltas.__name__
    assert few[0].options == many[0].options and "maxnreg" not in many[0].options
    assert many[1].options["maxnreg"] == many[2].options["maxnreg"] == 128


@pytest.mark.parametrize("lacks", [None, "scale", "window_size", "enable_gqa"])
def test_torchs_own_is_the_baseline_only_where_it_has_what_is_needed(monkeypatch, lacks):
    has = [name for name in ("scale", "window_size", "enable_gqa") if name != lacks]
    scope: dict = {}
    exec(f"def varlen_attn(query, key, value, *, {', '.join(has)}): ...", scope)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", scope["varlen_attn"])
    assert torchs_varlen_attn.__wrapped__() is (None if lacks else scope["varlen_attn"])
