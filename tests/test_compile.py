"""Compile without a GPU for every architecture, and hold the spaces' shared-memory arithmetic to the compiler."""

import importlib
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pytest

from autotune import compile_pool, device, registry
from autotune.binary import amd_registers
from autotune.compile import MAX_SPILL_BYTES, Compiled, assembly, compile_config, refused
from autotune.compile_pool import CompilePool
from autotune.data import Config, Reason
from autotune.kernels._launch import split
from autotune.registry import Entry
from autotune.rung import Resources
from autotune.worker import Worker
from tests.drawing import drawn
from tests.problems import every, of

DEVICES = {"sm_80": "a100", "sm_90": "h100", "sm_100": "b200", "gfx942": "mi300x"}
COPY = Path(__file__).parent / "copy_kernel.py"
SQUARE = "M=4096,N=4096,K=4096,dtype=float16"


@pytest.fixture(scope="module")
def pool():
    with pytest.MonkeyPatch.context() as patch, CompilePool("test") as pool:
        # Attention's float32 configs take 20 times the median, and more on a busy machine.
        patch.setattr(compile_pool, "LEAST_SECONDS", compile_pool.MOST_SECONDS)
        yield pool


@pytest.fixture(scope="module")
def worker():
    # With Triton's usual cache, as the pool: what one has compiled the other need not.
    with Worker({"TRITON_INTERPRET": None}) as worker:
        yield worker


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A worker in whose cache there is what it has compiled itself."""
    with worker_with_cache(tmp_path_factory.mktemp("cache")) as worker:
        yield worker


def worker_with_cache(path):
    return Worker({"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": str(path)})


def test_every_kernel_has_problems_to_compile():
    assert {name for name, _ in every("COMPILED")} == set(registry.entries())


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize(("name", "text"), every("COMPILED"))
def test_default_and_sampled_configs_compile_and_fit(pool, name, text, arch):
    loaded, where = registry.load(name), device.profile(DEVICES[arch])
    shared_bytes = importlib.import_module(loaded.entry.space).shared_bytes
    problem = loaded.kernel.parse(text)
    default = loaded.space.default(problem, where)

    def quick(config):
        # Tiles that keep over 128 values a thread in float32 take ptxas ten seconds each; the spaces allow them.
        return problem["dtype"] != "float32" or config.get("BLOCK_M", 32) * config.get("BLOCK_N", 32) <= 2048

    chance, count = random.Random(f"{text} {arch}"), of(name, "COMPILED_SAMPLES", 1)
    configs = list({default: None} | dict.fromkeys(drawn(loaded.space, problem, where, chance, count, quick)))
    for config in configs:
        pool.submit(loaded.entry, problem, config, where)
    for config in configs:
        outcome, _ = pool.result(loaded.entry, problem, config, where)
        assert isinstance(outcome, Compiled), (config, outcome)
        resources = outcome.resources
        assert resources.shared_bytes <= shared_bytes(config, problem, where), config
        assert resources.shared_bytes <= where.shared_bytes_per_block, config
        if config == default:
            assert refused(outcome, where, "test") is None, config


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_attentions_default_spills_little_where_the_head_size_is_padded(worker, dtype):
    for profile in ("a100", "h100"):
        task = job("attention", f"B=1,H=4,HKV=4,SQ=512,SK=500,D=200,dtype={dtype},causal=true", profile)
        assert refused(worker.call(compile_config, *task, timeout_s=120), task[-1], "test") is None, profile


def test_attentions_space_leaves_out_what_float32_unrolls_too_far():
    """Inductor's tile for h100, which spills 480 B a thread for head size 64 and 7 KiB for 128."""
    for head_size, rule in ((64, None), (128, "unrolls 2048 float32 multiply-adds")):
        text = f"B=1,H=4,HKV=4,SQ=512,SK=500,D={head_size},dtype=float32"
        _, problem, config, where = job("attention", text, "h100", BLOCK_M=32, BLOCK_N=64, num_warps=4)
        why = registry.load("attention").space.why_not(config, problem, where)
        assert why is None if rule is None else why.startswith(rule)


def job(name, text, profile, **changes):
    loaded, where = registry.load(name), device.profile(profile)
    problem = loaded.kernel.parse(text)
    return loaded.entry, problem, Config({**loaded.space.default(problem, where), **changes}), where


def compiled(worker, *args, **changes):
    return worker.call(compile_config, *job(*args, **changes), timeout_s=120)


@pytest.mark.parametrize("name", [name for name in registry.entries() if of(name, "OPCODES", True)])
def test_half_precision_products_run_on_the_tensor_cores(worker, name):
    few = of(name, "OPCODES", True) == "few"
    for profile, instruction in (
        ("a100", "mma.sync"),
        ("h100", "mma.sync" if few else "wgmma"),
        ("b200", "mma.sync" if few else "tcgen05"),
        ("mi300x", "v_mfma"),
    ):
        text = worker.call(assembly, *job(name, of(name, "COMPILED", ())[0], profile), timeout_s=120)
        assert instruction in text, profile


def test_float32_is_full_precision(worker):
    """No tf32 anywhere: it would halve the digits unasked."""
    for name, text in ((name, text) for name, text in every("COMPILED") if "float32" in text):
        assert not re.search(r"\btf32\b", worker.call(assembly, *job(name, text, "h100"), timeout_s=120))


@pytest.mark.parametrize("profile", ["h100", "mi300x"])
def test_registers_are_read(worker, profile):
    needs = compiled(worker, "gemm", SQUARE, profile, BLOCK_M=64, BLOCK_N=64, num_warps=4).resources
    assert 16 < needs.registers < 255 and needs.spill_bytes == 0


def test_spills_are_read(worker):
    text = SQUARE.replace("float16", "float32")
    tile = {"BLOCK_M": 16, "BLOCK_N": 256, "BLOCK_K": 16, "num_warps": 1, "num_stages": 6}
    needs = compiled(worker, "gemm", text, "a100", **tile).resources
    assert needs.registers == 255 and needs.spill_bytes > 64
    # As LLVM 22 writes it for a tile of 128 x 256 on one wavefront.
    assert amd_registers("    .private_segment_fixed_size: 2256\n    .vgpr_count:     512\n") == (512, 2256)


def test_code_that_needs_too_much_is_refused_with_the_rule():
    where = device.profile("a100")
    full = Resources(shared_bytes=where.shared_bytes_per_block, registers=255, spill_bytes=MAX_SPILL_BYTES)
    assert refused(Compiled(full, ""), where, "test") is None
    # Where no tool reads spills, nothing is refused for them.
    assert refused(Compiled(Resources(shared_bytes=0), ""), where, "test") is None
    big = Resources(shared_bytes=where.shared_bytes_per_block + 1, registers=255, spill_bytes=0)
    spilling = Resources(shared_bytes=0, registers=255, spill_bytes=MAX_SPILL_BYTES + 1)
    for needs, rule in (
        (big, r"shared memory, sm_80 has \d+ B"),
        (spilling, r"spills \d+ B a thread, over the \d+ B"),
    ):
        failure = refused(Compiled(needs, ""), where, "test")
        assert failure.reason is Reason.RESOURCES and failure.protocol == "test"
        assert re.search(rule, failure.detail), failure.detail


def copy_code(worker, file=COPY, profile="h100", **config):
    return copy_compiled(worker, file, profile, **config).code


def copy_compiled(worker, file=COPY, profile="h100", **config):
    entry = Entry("copy", str(file), str(file))
    problem = entry.load().kernel.parse(f"N={config.pop('N', 1000)}")
    return worker.call(compile_config, entry, problem, Config(config), device.profile(profile), timeout_s=120)


@pytest.mark.parametrize("profile", ["h100", "mi300x"])
def test_configs_have_equal_code_exactly_if_the_device_runs_the_same(worker, profile):
    code = copy_code(worker, BLOCK=256, num_stages=2, profile=profile)
    assert copy_code(worker, BLOCK=256, num_stages=3, profile=profile) == code
    assert copy_code(worker, BLOCK=128, num_stages=2, profile=profile) != code
    # 4 programs and 5 of the same machine code.
    assert copy_code(worker, BLOCK=256, num_stages=2, N=1030, profile=profile) != code


def test_all_launches_of_a_config_are_compiled(worker):
    """A second launch is part of the code, and the one that needs most decides."""
    once, twice = (copy_compiled(worker, BLOCK=128, does=does) for does in ("copy", "copy again"))
    alone = copy_compiled(worker, BLOCK=512, does="copy")
    assert once.code != twice.code
    assert once.resources.registers < alone.resources.registers == twice.resources.registers


def test_equal_code_is_known_in_another_process_cache_and_folder(worker, tmp_path):
    moved = shutil.copy(COPY, tmp_path / "moved_kernel.py")
    gemm = job("gemm", SQUARE, "h100", BLOCK_M=64, BLOCK_N=64)
    with worker_with_cache(tmp_path / "cache") as other:
        assert copy_code(other, moved, BLOCK=256) == copy_code(worker, BLOCK=256)
        code = other.call(compile_config, *gemm, timeout_s=120).code
    assert code == worker.call(compile_config, *gemm, timeout_s=120).code
    # Compiled there just now, and read from the cache here.
    assert code == worker.call(compile_config, *gemm, timeout_s=120).code


def test_each_parameter_of_gemm_changes_its_code(worker):
    base = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 4, "num_warps": 4, "num_stages": 3}
    changes = [{}, {"BLOCK_M": 128}, {"BLOCK_K": 32}, {"GROUP_M": 8}, {"num_warps": 8}, {"num_stages": 4}]
    codes = {compiled(worker, "gemm", SQUARE, "h100", **{**base, **change}).code for change in changes}
    assert len(codes) == len(changes)


@pytest.mark.parametrize(
    ("name", "text", "profile"),
    [
        ("gemm", "M=64,N=96,K=128,dtype=bfloat16,layout=nt", "h100"),
        ("gemm", "M=64,N=96,K=128,dtype=float16", "mi300x"),
        ("gemm", "M=1,N=160,K=200,dtype=float16,layout=nt", "h100"),
        ("gemm", "M=40,N=24,K=72,dtype=float16,B=2,layout=ts", "h100"),
        ("gemm", "M=33,N=17,K=70,dtype=float16,layout=ss,aligned=false", "h100"),
        ("attention", "B=2,H=2,HKV=1,SQ=20,SK=40,D=24,dtype=float16,causal=true,layout=bshd", "h100"),
        ("attention", "B=1,H=2,HKV=2,SQ=20,SK=12,D=40,dtype=float16,layout=s,aligned=false", "h100"),
        ("attention", "B=1,H=4,HKV=2,SQ=16,SK=32,D=32,dtype=bfloat16", "mi300x"),
        ("bsr_matmul", "M=33,N=96,K=160,BLOCK_ROWS=16,BLOCK_COLUMNS=32,density=35,dtype=float16,layout=t", "h100"),
        (
            "bsr_matmul",
            "M=64,N=64,K=96,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=50,dtype=float16,aligned=false",
            "a100",
        ),
        ("bsr_matmul", "M=64,N=64,K=96,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=50,dtype=float16", "mi300x"),
    ],
)
def test_a_launch_finds_what_was_compiled_ahead(counted, name, text, profile):
    ahead, launches, compiled_again = counted.call(compile_and_launch, *job(name, text, profile), timeout_s=120)
    assert launches == ahead
    assert compiled_again == 0


def compile_and_launch(entry, problem, config, device):
    """The grid sizes told ahead, those of the launches, and how often these had to compile. In a worker."""
    compile_config(entry, problem, config, device)
    kernel, before, launches = entry.load().kernel, binaries(), []

    def launch(function, programs, *args, config, descriptors=False, **constexprs):
        launches.append(programs)
        parameters, options = split(function, config)
        # What kernels/_launch.py does, short of the device; the target is still the one compiled for.
        function.warmup(*args, grid=(programs,), **constexprs, **parameters, **options, enable_fp_fusion=True)

    sys.modules[kernel.run.__module__].launch = launch
    kernel.run(config, *kernel.inputs(problem, 0, "cpu"))
    signatures = kernel.signature(problem, config)
    signatures = signatures if isinstance(signatures, tuple) else (signatures,)
    return [signature.programs for signature in signatures], launches, binaries() - before


def binaries():
    return sum(file.suffix in (".cubin", ".hsaco") for file in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*"))
