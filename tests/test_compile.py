"""Compile without a GPU for every architecture, and hold the spaces' shared-memory arithmetic to the compiler."""

import importlib
import random
import re

import pytest

from autotune import device, registry
from autotune.compile import Compiler, Resources
from autotune.data import Config, Failure, Reason

DEVICES = {"sm_80": "a100", "sm_90": "h100", "sm_100": "b200", "gfx942": "mi300x"}
PROBLEMS = {
    "gemm": [
        "M=4096,N=4096,K=4096,dtype=float16",
        "M=16,N=4096,K=4096,dtype=bfloat16,layout=nt",
        "M=500,N=300,K=700,dtype=float32,layout=tn,B=2",
    ],
    "attention": [
        "B=4,H=32,HKV=8,SQ=2048,SK=2048,D=128,dtype=bfloat16,causal=true,layout=bshd",
        "B=4,H=32,HKV=32,SQ=2048,SK=2048,D=64,dtype=float16",
        "B=1,H=4,HKV=4,SQ=512,SK=500,D=80,dtype=float32,causal=true",
    ],
    "bsr_matmul": [
        "M=4096,N=4096,K=4096,BLOCK_ROWS=64,BLOCK_COLUMNS=64,density=20,dtype=float16",
        "M=500,N=4096,K=4096,BLOCK_ROWS=16,BLOCK_COLUMNS=128,density=10,dtype=bfloat16",
        "M=4096,N=4096,K=4096,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=50,dtype=float32,layout=t",
    ],
}
SAMPLES = 2


@pytest.fixture(scope="module")
def compiler():
    with Compiler() as compiler:
        yield compiler


def test_every_kernel_has_problems_to_compile():
    assert set(PROBLEMS) == set(registry.entries())


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in PROBLEMS.items() for text in texts])
def test_default_and_sampled_configs_compile_and_fit(compiler, name, text, arch):
    loaded, where = registry.load(name), device.profile(DEVICES[arch])
    shared_bytes = importlib.import_module(loaded.entry.space).shared_bytes
    problem = loaded.kernel.parse(text)
    default = loaded.space.default(problem, where)
    # Tiles that keep over 128 values a thread in float32 take ptxas ten seconds each; the spaces allow them.
    pool = [
        config
        for config in loaded.space.allowed(problem, where)
        if problem["dtype"] != "float32" or config["BLOCK_M"] * config.get("BLOCK_N", 32) <= 2048
    ]
    drawn = random.Random(f"{text} {arch}").sample(pool, min(SAMPLES, len(pool)))
    for config in [default, *drawn]:
        resources = compiler.compile(loaded.entry, problem, config, where)
        assert isinstance(resources, Resources), (config, resources)
        assert resources.shared_bytes <= shared_bytes(config, problem, where), config
        assert resources.shared_bytes <= where.shared_bytes_per_block, config
        if config == default and resources.spill_bytes is not None and problem["dtype"] != "float32":
            assert resources.spill_bytes <= 256, (config, resources.spill_bytes)


def compiled(compiler, name, text, profile, **changes):
    loaded, where = registry.load(name), device.profile(profile)
    problem = loaded.kernel.parse(text)
    config = Config({**loaded.space.default(problem, where), **changes})
    return compiler.compile(loaded.entry, problem, config, where)


@pytest.mark.parametrize("name", PROBLEMS)
def test_half_precision_products_run_on_the_tensor_cores(compiler, name):
    text = PROBLEMS[name][0]
    for profile, instruction in (
        ("a100", "mma.sync"),
        ("h100", "wgmma"),
        ("b200", "tcgen05"),
        ("mi300x", "v_mfma"),
    ):
        assert instruction in compiled(compiler, name, text, profile).assembly, profile


def test_float32_is_full_precision(compiler):
    """No tf32 anywhere: it would halve the digits unasked."""
    for name in PROBLEMS:
        text = next(text for text in PROBLEMS[name] if "float32" in text)
        assert not re.search(r"\btf32\b", compiled(compiler, name, text, "h100").assembly)


def test_registers_and_spills_are_read(compiler):
    text = "M=4096,N=4096,K=4096,dtype=float16"
    easy = compiled(compiler, "gemm", text, "h100", BLOCK_M=64, BLOCK_N=64, num_warps=4)
    hard = compiled(compiler, "gemm", text, "h100", BLOCK_M=256, BLOCK_N=256, BLOCK_K=32, num_warps=4, num_stages=2)
    assert 0 < easy.registers < 255 and easy.spill_bytes == 0
    assert hard.spill_bytes > 0


def test_a_config_the_compiler_refuses_is_a_failure_with_its_message(compiler):
    outcome = compiled(compiler, "gemm", "M=64,N=64,K=64,dtype=float16", "h100", num_warps=3)
    assert isinstance(outcome, Failure) and outcome.reason is Reason.COMPILE
    assert "num_warps must be a power of 2" in outcome.detail
