"""Every structure x dtype x architecture of gemm, compiled without a GPU and held to what the space says of it."""

import random
import re

import pytest

from autotune import device, registry
from autotune.compile import Compiled, assembly, refused
from autotune.compile_pool import CompilePool
from autotune.data import Config
from autotune.search_spaces.gemm import SPACE, shared_bytes
from autotune.worker import Worker
from tests.test_compile import DEVICES

GEMM = registry.load("gemm")
STRUCTURES = ("tiled", "persistent", "descriptor", "skinny")
DTYPES = ("float16", "bfloat16", "float32", "float32,tf32=true", "float8_e4m3fn", "float8_e5m2", "int8")

#: The instruction of each architecture's tensor cores.
TENSOR_CORES = {"sm_80": r"mma\.sync", "sm_90": r"wgmma\.mma", "sm_100": r"tcgen05\.mma", "gfx942": r"v_mfma"}
#: Rows that tcgen05 and wgmma take at least.
FULL_TILE = {"BLOCK_M": (64, 128), "BLOCK_N": (64, 128), "BLOCK_K": (32, 64)}


def problem_of(structure, dtype):
    return GEMM.kernel.parse(f"M={4 if structure == 'skinny' else 4096},N=4096,K=4096,layout=nt,dtype={dtype}")


def cells():
    for arch, profile in DEVICES.items():
        where = device.profile(profile)
        for dtype in DTYPES:
            for structure in STRUCTURES:
                problem = problem_of(structure, dtype)
                serves = structure in SPACE.params(problem, where)["STRUCTURE"]
                if serves and SPACE.unsupported(problem, where) is None and drawn(structure, problem, where):
                    yield pytest.param(arch, dtype, structure, id=f"{arch}-{dtype}-{structure}")


def drawn(structure, problem, where):
    """An allowed config of the structure, of a size that compiles in a second or so; None if draws find none."""
    ranges, dice = SPACE.params(problem, where), random.Random(f"{structure} {problem} {where.arch}")
    for _ in range(2000):
        config = {name: dice.choice(values) for name, values in ranges.items()}
        config["STRUCTURE"] = structure
        config |= {name: dice.choice(values) for name, values in FULL_TILE.items() if structure != "skinny"}
        if problem["dtype"] == "float32" and "tf32" not in problem:
            config |= {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32}
        settled = Config(SPACE.settle(config, problem, where))
        if SPACE.why_not(settled, problem, where) is None:
            return settled
    return None


CELLS = list(cells())

SQUARE = "M=4096,N=4096,K=4096,layout=nt,dtype=bfloat16"
#: What is served untuned where most registers are taken: by what follows the product, and by masks along K.
FULL = (
    f"{SQUARE},bias=true,activation=gelu,residual=true",
    f"{SQUARE},activation=swiglu",
    SQUARE.replace("K=4096", "K=4100"),
    "M=4096,N=4096,K=4100,layout=nt,dtype=float8_e5m2",
)
DEFAULTS = [(arch, text) for arch in DEVICES for text in FULL if "float8" not in text or arch != "sm_80"]


@pytest.fixture(scope="module")
def pool():
    with CompilePool("test") as pool:
        for cell in CELLS:
            pool.submit(*job(*cell.values))
        for arch, text in DEFAULTS:
            pool.submit(*default_job(arch, text))
        yield pool


@pytest.fixture(scope="module")
def worker():
    # With Triton's usual cache, as the pool: what one has compiled the other need not.
    with Worker({"TRITON_INTERPRET": None}) as worker:
        yield worker


def job(arch, dtype, structure):
    where = device.profile(DEVICES[arch])
    problem = problem_of(structure, dtype)
    return GEMM.entry, problem, drawn(structure, problem, where), where


def default_job(arch, text):
    where, problem = device.profile(DEVICES[arch]), GEMM.kernel.parse(text)
    return GEMM.entry, problem, SPACE.default(problem, where), where


def test_every_structure_has_its_cells():
    found = {(cell.values[0], cell.values[2]) for cell in CELLS}
    both = {(arch, structure) for arch in DEVICES for structure in STRUCTURES}
    # No TMA there: what descriptors lower to is the persistent structure.
    assert both - found == {("sm_80", "descriptor"), ("gfx942", "descriptor")}
    assert {cell.values[1] for cell in CELLS if cell.values[0] == "sm_90"} == set(DTYPES)
    assert "float8_e4m3fn" not in {cell.values[1] for cell in CELLS if cell.values[0] == "sm_80"}


@pytest.mark.parametrize(("arch", "dtype", "structure"), CELLS)
def test_it_compiles_and_needs_no_more_than_the_space_says(pool, arch, dtype, structure):
    entry, problem, config, where = job(arch, dtype, structure)
    outcome, _ = pool.result(entry, problem, config, where)
    assert isinstance(outcome, Compiled), (config, outcome)
    needs = outcome.resources
    assert needs.shared_bytes <= shared_bytes(config, problem, where) <= where.shared_bytes_per_block, config
    assert needs.registers > 0 and needs.spill_bytes is not None


@pytest.mark.parametrize(("arch", "text"), DEFAULTS)
def test_defaults_that_take_many_registers_are_worth_running(pool, arch, text):
    entry, problem, config, where = default_job(arch, text)
    outcome, _ = pool.result(entry, problem, config, where)
    assert isinstance(outcome, Compiled), (config, outcome)
    assert refused(outcome, where, "test") is None, config


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("structure", ["tiled", "persistent", "descriptor"])
def test_products_run_on_the_tensor_cores(worker, arch, structure):
    if (arch, structure) in (("sm_80", "descriptor"), ("gfx942", "descriptor")):
        return
    text = worker.call(assembly, *job(arch, "bfloat16", structure), timeout_s=120)
    assert re.search(TENSOR_CORES[arch], text)
    by_tma = bool(re.search(r"cp\.async\.bulk\.tensor", text))
    assert by_tma == (structure == "descriptor")


@pytest.mark.parametrize(("dtype", "takes"), [("float32", False), ("float32,tf32=true", True)])
def test_tf32_is_taken_only_on_request(worker, dtype, takes):
    text = worker.call(assembly, *job("sm_90", dtype, "tiled"), timeout_s=120)
    assert bool(re.search(r"\btf32\b", text)) == takes
