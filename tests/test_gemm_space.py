"""The space of gemm: what its structures may do, what they leave alone, and what is served untuned."""

import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autotune import device, registry
from autotune.compile import compile_config
from autotune.data import Config, Problem
from autotune.search_spaces.gemm import SPACE, shared_bytes
from autotune.worker import Worker

A100, H100, B200, MI300X = (device.profile(name) for name in ("a100", "h100", "b200", "mi300x"))
# An L40S and an RTX 5090: ranges of an older generation, and less shared memory.
FALLBACKS = (
    replace(A100, arch="sm_89", sm_count=142, shared_bytes_per_block=101376),
    replace(B200, arch="sm_120", sm_count=170, shared_bytes_per_block=101376),
)
DEVICES = {where.arch: where for where in (A100, H100, B200, MI300X, device.INTERPRETER, *FALLBACKS)}
DTYPES = ("float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2", "int8")
SQUARE = "M=4096,N=4096,K=4096,dtype=float16"

sizes = st.one_of(st.integers(0, 100_000), st.sampled_from([0, 1, 2, 15, 16, 17, 64, 4096, 16032]))


@st.composite
def problems(draw):
    dtype, gated = draw(st.sampled_from(DTYPES)), draw(st.booleans())
    values = {
        "M": draw(sizes),
        "N": draw(sizes) * (2 if gated else 1),
        "K": draw(sizes),
        "dtype": dtype,
        "B": draw(st.sampled_from([1, 1, 3])),
        "layout": draw(st.sampled_from("nts")) + draw(st.sampled_from("nts")),
        "aligned": draw(st.booleans()),
        "activation": "swiglu" if gated else "none",
        "scale": draw(st.sampled_from(["none", "tensor", "row"])),
        "tf32": dtype == "float32" and draw(st.booleans()),
        "batch_invariant": draw(st.booleans()),
    }
    return Problem(values)


#: Of a fixed tile whose descriptors do not fit at any number of stages.
FIXED = "M=41699,N=200,K=100,dtype=float32,activation=swiglu,residual=true,tf32=true,batch_invariant=true"


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(list(DEVICES.values())))
@example(Problem.parse(FIXED), DEVICES["sm_120"])
def test_the_default_and_the_seeds_are_allowed(problem, where):
    why = SPACE.why_not(SPACE.default(problem, where), problem, where)
    if problem["dtype"] == "float8_e4m3fn" and where.arch == "sm_80":
        assert why == "float8_e4m3fn needs sm_89 or later, and this is sm_80; float8_e5m2 runs there"
        assert SPACE.seeds(problem, where) == []
        return
    assert why is None
    assert all(SPACE.why_not(seed, problem, where) is None for seed in SPACE.seeds(problem, where))


TILE = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP_M": 8, "num_warps": 8, "num_stages": 3}


def config(where, structure, **changes):
    """A config of h100's or another's parameters, all at their first value but those of the tile."""
    ranges = SPACE.params(Problem.parse(SQUARE), where)
    first = {name: values[0] for name, values in ranges.items()}
    tile = {name: value for name, value in TILE.items() if value in ranges[name]}
    return Config({**first, **tile, "STRUCTURE": structure, **changes})


@pytest.mark.parametrize(
    ("text", "structure", "changes", "why"),
    [
        (SQUARE, "tiled", {}, None),
        (SQUARE, "descriptor", {"FLATTEN": True, "EPILOGUE_SUBTILE": 2}, None),
        (SQUARE, "descriptor", {"num_warps": 4, "WARP_SPECIALIZE": True}, None),
        # What changes nothing.
        (SQUARE, "persistent", {"SPLIT_K": 2}, "SPLIT_K=2 has no effect"),
        (SQUARE, "tiled", {"EPILOGUE_SUBTILE": 2}, "EPILOGUE_SUBTILE=2 has no effect"),
        (SQUARE, "tiled", {"FLATTEN": True}, "FLATTEN=True has no effect"),
        (SQUARE, "descriptor", {"WARP_SPECIALIZE": True}, "WARP_SPECIALIZE=True has no effect"),
        (SQUARE, "descriptor", {"num_warps": 4, "WARP_SPECIALIZE": True, "FLATTEN": True}, "WARP_SPECIALIZE=True"),
        # 512 x 4096 has 128 tiles: no second one for 132 SMs, and no next to go on with.
        (SQUARE.replace("M=4096", "M=512"), "descriptor", {"FLATTEN": True, "GROUP_M": 4}, "FLATTEN=True"),
        (SQUARE.replace("M=4096", "M=512"), "persistent", {"GROUP_M": 4}, "STRUCTURE=persistent is the tiled one"),
        # Sums of 64 registers a thread, then of 128.
        (SQUARE, "tiled", {"maxnreg": 128}, None),
        (SQUARE, "tiled", {"maxnreg": 168}, "maxnreg=168 is for tiles whose accumulators"),
        (SQUARE, "tiled", {"num_warps": 4, "maxnreg": 168}, None),
        # The order of tiles: one row of them has one, and 4 rows are held by a band of 4.
        (SQUARE.replace("M=4096", "M=128"), "tiled", {}, "GROUP_M=8 has no effect"),
        (SQUARE.replace("M=4096", "M=512"), "tiled", {}, "GROUP_M=8 is over the 4 rows of tiles; 4 does the same"),
        # Parts of K: 16 tiles leave 132 SMs idle, 1024 do not; 8 steps are 2 parts of 4.
        ("M=512,N=512,K=4096,dtype=float16", "tiled", {"SPLIT_K": 8, "GROUP_M": 4}, None),
        (SQUARE, "tiled", {"SPLIT_K": 2}, "SPLIT_K=2 gains nothing: 1024 tiles fill 132 SMs"),
        (
            "M=512,N=512,K=512,dtype=float16",
            "tiled",
            {"SPLIT_K": 4, "GROUP_M": 4},
            "SPLIT_K=4 leaves under 4 of the 8 steps",
        ),
        # Few rows.
        (SQUARE, "skinny", {"BLOCK_M": 16, "GROUP_M": 1, "BLOCK_N": 32}, "takes up to 16 rows, and M=4096"),
        (SQUARE.replace("M=4096", "M=4"), "skinny", {"BLOCK_M": 16, "GROUP_M": 1, "BLOCK_N": 32}, None),
        (SQUARE.replace("M=4096", "M=4"), "skinny", {"GROUP_M": 1, "BLOCK_N": 32}, "BLOCK_M=128 has no effect"),
        (
            SQUARE.replace("M=4096", "M=16"),
            "skinny",
            {"BLOCK_M": 16, "GROUP_M": 1, "BLOCK_N": 256, "BLOCK_K": 128},
            "keeps 2048 values a thread",
        ),
        # 32-bit multiply-adds on the plain cores: 128 * 128 * 64 of them for 256 threads.
        ("M=4096,N=4096,K=4096,dtype=float32", "tiled", {}, "unrolls 4096 float32 multiply-adds a thread"),
        ("M=4096,N=4096,K=4096,dtype=float32,tf32=true", "tiled", {"BLOCK_K": 32}, None),
        (
            "M=4096,N=4096,K=4096,dtype=float8_e5m2,layout=nn",
            "descriptor",
            {"num_warps": 4, "WARP_SPECIALIZE": True},
            "takes float8_e5m2 in layout nt on sm_90, not nn",
        ),
        # Rows of 4095: both operands element by element, (128 + 128) * 64 of them for 256 threads, then for 128.
        ("M=4096,N=4095,K=4095,dtype=float16", "tiled", {}, None),
        ("M=4096,N=4095,K=4095,dtype=float16", "tiled", {"num_warps": 4}, "loads 128 elements one by one a thread"),
        (SQUARE.replace("K=4096", "K=0"), "persistent", {"BLOCK_K": 32}, "has nothing to sum up where K=0"),
    ],
)
def test_rules_of_h100(text, structure, changes, why):
    found = SPACE.why_not(config(H100, structure, **changes), Problem.parse(text), H100)
    assert found is None if why is None else found is not None and why in found, found


def test_sm_100_specialises_flattened_loops_of_one_product():
    both = config(B200, "descriptor", FLATTEN=True, WARP_SPECIALIZE=True)
    assert SPACE.why_not(both, Problem.parse(SQUARE), B200) is None
    gated = Problem.parse(f"{SQUARE},activation=swiglu")
    assert SPACE.why_not(both, gated, B200) == "WARP_SPECIALIZE does not take FLATTEN where a tile is gated"


@pytest.mark.parametrize(
    ("text", "changes", "why"),
    [
        ("layout=nt", {}, None),
        ("layout=tt,bias=true", {}, None),
        ("B=2", {}, "takes one product, not a batch of 2"),
        ("layout=sn", {}, "layout=sn has neither"),
        ("aligned=false", {}, "aligned=false"),
        # Rows of 4092 elements of 2 bytes are 8184 bytes, no multiple of 16.
        ("K=4092", {}, "a's are 4092 x 2 bytes"),
        ("K=4092,layout=tn", {}, None),
        ("K=4092,layout=tt", {}, "b's are 4092 x 2 bytes"),
        ("M=4092,layout=tn", {}, "a's are 4092 x 2 bytes"),
        ("M=4092", {}, None),
        ("N=4092", {}, "b's are 4092 x 2 bytes"),
        ("N=4092,layout=nt", {}, "the result's are 4092 x 2 bytes"),
        ("N=4092,layout=nt,out=float32", {}, None),
        ("N=4104,layout=nt,activation=swiglu", {}, "the result's are 2052 x 2 bytes"),
        # The second half of b's rows starts 2056 bytes in.
        ("N=4112,dtype=int8,scale=tensor,activation=swiglu", {}, "b's are 2056 x 1 bytes"),
        ("N=4128,dtype=int8,scale=tensor,activation=swiglu", {}, None),
        ("N=4112,dtype=int8,scale=tensor,activation=swiglu,layout=nt", {}, None),
        # A gate of 32 columns is half of a tile of 64, and in 8 bits the least that a box may be wide.
        ("dtype=float8_e5m2,activation=swiglu", {"BLOCK_N": 64, "BLOCK_K": 128}, None),
        ("dtype=float8_e5m2,activation=swiglu", {"BLOCK_N": 32, "BLOCK_K": 128}, "a box of this tile has 16"),
        ("dtype=float8_e5m2,activation=swiglu,layout=nt", {"BLOCK_N": 32, "BLOCK_K": 128}, None),
        ("activation=swiglu,layout=nt", {"BLOCK_N": 16, "EPILOGUE_SUBTILE": 2}, "a box of this tile has 4"),
    ],
)
def test_descriptors_need_rows_of_16_bytes(text, changes, why):
    problem = Problem({**Problem.parse(SQUARE), **Problem.parse(text)})
    chosen = {"num_warps": 4, "BLOCK_M": 64, **changes}
    found = SPACE.why_not(config(H100, "descriptor", **chosen), problem, H100)
    assert found is None if why is None else found is not None and why in found, found


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float8_e5m2"])
def test_batch_invariant_sums_do_not_depend_on_m(arch, dtype):
    where, kept = DEVICES[arch], set()
    for M in (1, 16, 100, 5000):
        problem = Problem.parse(f"M={M},N=4096,K=4096,dtype={dtype},layout=nt,batch_invariant=true")
        allowed = [SPACE.default(problem, where), *SPACE.seeds(problem, where)]
        allowed += random.Random(0).sample(every := list(SPACE.allowed(problem, where)), min(50, len(every)))
        assert all(found["STRUCTURE"] != "skinny" for found in allowed)
        order = (
            "BLOCK_M",
            "BLOCK_N",
            "BLOCK_K",
            "SPLIT_K",
            "num_warps",
            "matrix_instr_nonkdim",
            "kpack",
        )
        kept |= {tuple(found.get(name) for name in order) for found in allowed}
    assert len(kept) == 1


#: Llama-3 8B and 70B, the latter for one of 8 devices; of a config what decides: structure, tile, parts of K.
@pytest.mark.parametrize(
    ("text", "where", "expected"),
    [
        # 512 tiles, 3.9 for each of 132 SMs.
        (SQUARE, H100, "descriptor 128x256x64 /1, 8 warps, 3 stages"),
        (SQUARE, A100, "tiled 128x128x64 /1, 4 warps, 4 stages"),
        (SQUARE, B200, "descriptor 128x256x64 /1, 8 warps, 3 stages"),
        (SQUARE, MI300X, "tiled 128x128x64 /1, 4 warps, 2 stages"),
        ("M=2048,N=7168,K=8192,dtype=bfloat16,layout=nt", H100, "descriptor 128x256x64 /1, 8 warps, 3 stages"),
        # 64 tiles of 128 x 256: 128 of 128 x 128 fit at once as well.
        ("M=512,N=4096,K=4096,dtype=bfloat16,layout=nt", H100, "tiled 128x128x64 /1, 4 warps, 4 stages"),
        # 20 tiles of 64 x 64 leave room for 6 parts.
        ("M=64,N=1280,K=8192,dtype=bfloat16,layout=nt", H100, "tiled 64x64x64 /4, 4 warps, 4 stages"),
        ("M=16,N=7168,K=8192,dtype=bfloat16,layout=nt", H100, "tiled 16x64x64 /1, 4 warps, 4 stages"),
        # 128 programs of 32 columns, and twice as many fit.
        ("M=1,N=4096,K=4096,dtype=bfloat16,layout=nt", H100, "skinny 16x32x128 /2, 4 warps, 4 stages"),
        ("M=1,N=4096,K=4096,dtype=bfloat16,layout=nt", MI300X, "skinny 16x32x128 /4, 4 warps, 2 stages"),
        (
            "M=8192,N=13312,K=16384,dtype=float8_e4m3fn,layout=nt",
            H100,
            "descriptor 128x256x128 /1, 8 warps, 3 stages",
        ),
        ("M=64,N=2304,K=16384,dtype=float8_e4m3fn,layout=nt", H100, "tiled 64x64x128 /2, 4 warps, 4 stages"),
        ("M=4096,N=4096,K=4096,dtype=float32", H100, "tiled 64x64x32 /1, 4 warps, 4 stages"),
        # Rows that start anywhere: short steps and more warps, or the addresses spill. 20 tiles, room for 5 parts.
        ("M=500,N=301,K=700,dtype=float16,layout=nt", A100, "tiled 128x64x32 /4, 8 warps, 4 stages"),
        (SQUARE, device.INTERPRETER, "tiled 128x128x128 /1, 4 warps, 2 stages"),
    ],
)
def test_default_of_usual_shapes(text, where, expected):
    found = SPACE.default(Problem.parse(text), where)
    tile = f"{found['STRUCTURE']} {found['BLOCK_M']}x{found['BLOCK_N']}x{found['BLOCK_K']} /{found['SPLIT_K']}"
    assert f"{tile}, {found['num_warps']} warps, {found['num_stages']} stages" == expected


def test_the_interpreter_has_every_structure():
    problem = Problem.parse("M=16,N=256,K=512,dtype=float16")
    found = list(SPACE.allowed(problem, device.INTERPRETER))
    for name, values in SPACE.params(problem, device.INTERPRETER).items():
        if name != "BLOCK_M":
            assert {config[name] for config in found} == set(values), name


def test_h100_has_thousands_of_configs_and_published_seeds_for_a_square():
    problem = Problem.parse(SQUARE)
    allowed = list(SPACE.allowed(problem, H100))
    assert 10_000 < len(allowed) < 100_000
    seeds = SPACE.seeds(problem, H100)
    assert len(seeds) >= 6 and set(seeds) < set(allowed)
    assert {seed["STRUCTURE"] for seed in seeds} == {"tiled", "persistent", "descriptor"}
    decode = SPACE.seeds(Problem.parse("M=8,N=4096,K=4096,dtype=bfloat16,layout=nt"), H100)
    assert {(seed["STRUCTURE"], seed["SPLIT_K"] > 1) for seed in decode} >= {("tiled", True), ("skinny", True)}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    with Worker({"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": cache}) as worker:
        yield worker


#: Per structure a problem and a config to change one parameter of; small tiles compile fast.
COMPILED = {
    "tiled": ("M=1000,N=4096,K=4096,dtype=float16,layout=nt", {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4}),
    "persistent": ("M=4096,N=4096,K=4096,dtype=bfloat16,layout=nt", {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4}),
    "descriptor": ("M=4096,N=4096,K=4096,dtype=float8_e5m2,layout=nt", {"BLOCK_K": 128, "num_warps": 4}),
    "skinny": ("M=2,N=4096,K=4096,dtype=bfloat16,layout=nt", {"BLOCK_N": 64, "num_warps": 4}),
}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("structure", COMPILED)
def test_code_of_neighbours_differs_and_fits_the_arithmetic(worker, structure, arch):
    where, entry = DEVICES[arch], registry.load("gemm").entry
    text, tile = COMPILED[structure]
    problem = Problem.parse(text)
    ranges = SPACE.params(problem, where)
    if structure not in ranges["STRUCTURE"]:
        pytest.skip(f"{arch} has no {structure}")
    base = Config(SPACE.settle(config(where, structure, **tile), problem, where))
    assert SPACE.why_not(base, problem, where) is None
    near = [{**base, name: value} for name, values in ranges.items() for value in values if value != base[name]]
    near = [Config(found) for found in near if SPACE.why_not(Config(found), problem, where) is None]
    # Long code takes seconds each to compile.
    near = [found for found in near if found["BLOCK_M"] * found["BLOCK_N"] <= 2048 * found["num_warps"]]
    codes = set()
    for found in (base, *random.Random(arch).sample(near, 2)):
        compiled = worker.call(compile_config, entry, problem, found, where, timeout_s=120)
        assert compiled.resources.shared_bytes <= shared_bytes(found, problem, where), found
        codes.add(compiled.code)
    assert len(codes) == 3
