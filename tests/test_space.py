import itertools
import random
import re

import pytest

from autotune import device, registry
from autotune.data import Config, Problem
from autotune.space import SearchSpace, by_arch
from tests.problems import of

DEVICES = [*(device.profile(name) for name in device.profiles()), device.INTERPRETER]
CASES = [
    pytest.param(name, text, where, id=f"{name}-{where.arch}-{text}")
    for name in registry.entries()
    for text in (*registry.load(name).kernel.problems, *of(name, "BIG", ()))
    for where in DEVICES
]


@pytest.mark.parametrize(("name", "text", "where"), CASES)
def test_default_is_allowed_wherever_the_problem_runs(name, text, where):
    loaded = registry.load(name)
    problem = loaded.kernel.parse(text)
    if loaded.space.unsupported(problem, where) is not None:
        assert next(loaded.space.allowed(problem, where), None) is None
        return
    assert loaded.space.why_not(loaded.space.default(problem, where), problem, where) is None


#: Of a space's product, which for gemm on a GPU has millions.
DRAWN = 2000


@pytest.mark.parametrize("where", DEVICES, ids=lambda where: where.arch)
@pytest.mark.parametrize("name", registry.entries())
def test_allowed_is_what_why_not_lets_pass(name, where):
    loaded = registry.load(name)
    problem = loaded.kernel.parse(loaded.kernel.problems[0])
    ranges, drawn = loaded.space.params(problem, where), random.Random(name)
    allowed = list(loaded.space.allowed(problem, where))
    assert 0 < len(allowed) == len(set(allowed)) <= loaded.space.size(problem, where)
    for config in drawn.sample(allowed, min(DRAWN, len(allowed))):
        assert loaded.space.why_not(config, problem, where) is None, config
    known = set(allowed)
    for _ in range(DRAWN):
        config = Config({name: drawn.choice(values) for name, values in ranges.items()})
        settled = Config(loaded.space.settle(config, problem, where))
        for one in (config, settled):
            assert (loaded.space.why_not(one, problem, where) is None) == (one in known), one


@pytest.mark.parametrize("name", registry.entries())
def test_some_seed_is_allowed_on_every_gpu(name):
    loaded = registry.load(name)
    problem = loaded.kernel.parse(of(name, "BIG", ())[0])
    for where in DEVICES:
        seeds = loaded.space.seeds(problem, where)
        assert any(loaded.space.why_not(seed, problem, where) is None for seed in seeds), where


def test_constraints_explain_themselves():
    space, a100 = registry.load("gemm").space, device.profile("a100")
    problem = Problem.parse("M=4096,N=4096,K=4096,dtype=float16")
    config = {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 64, "GROUP_M": 8, "num_warps": 8, "num_stages": 4}
    config = {**space.default(problem, a100), **config}
    # 256 * 256 / (8 warps * 32)
    assert "keeps 256 values a thread" in space.why_not(Config(config), problem, a100)
    tall = Config({**config, "BLOCK_N": 128, "BLOCK_K": 128})
    # (256 * 128 + 128 * 128) * 2 B * 3 stages that are not in registers
    why = space.why_not(tall, problem, a100)
    assert re.fullmatch(r"needs 294\d{3} B of shared memory, sm_80 has 166912 B", why)
    assert "is not one of" in space.why_not(Config({**config, "BLOCK_M": 96}), problem, a100)
    assert "has parameters" in space.why_not(Config(BLOCK_M=64), problem, a100)
    idle = space.why_not(Config({**config, "SPLIT_K": 2, "STRUCTURE": "persistent"}), problem, a100)
    assert idle == "SPLIT_K=2 has no effect here; write SPLIT_K=1"
    assert "mostly padding" in space.why_not(
        Config({**config, "GROUP_M": 1}), Problem.parse("M=16,N=16,K=64,dtype=float16"), a100
    )


def test_true_is_no_value_of_an_integer_parameter():
    space, h100 = registry.load("gemm").space, device.profile("h100")
    problem = Problem.parse("M=4096,N=4096,K=4096,dtype=float16")
    good = space.default(problem, h100)
    assert "GROUP_M=True is not one of" in space.why_not(Config({**good, "GROUP_M": True}), problem, h100)


@pytest.mark.parametrize(
    ("arch", "used"),
    [("sm_80", "sm_80"), ("sm_89", "sm_80"), ("sm_120", "sm_100"), ("sm_75", "sm_80"), ("gfx950", "gfx942")],
)
def test_unknown_architecture_takes_the_newest_older_ranges(arch, used):
    table = {name: {"NAME": (name,)} for name in ("sm_80", "sm_90", "sm_100", "gfx942", "interpreter")}
    assert by_arch(table, arch) == {"NAME": (used,)}


def test_architecture_of_nobody_is_an_error():
    with pytest.raises(ValueError, match="no ranges for tpu"):
        by_arch({"gfx942": {}}, "tpu")


def test_a_space_without_constraints_allows_the_product():
    space = SearchSpace(
        params=lambda p, d: {"A": (1, 2), "B": (True, False)}, default=lambda p, d: Config(A=1, B=True)
    )
    assert len(list(space.allowed(Problem(), device.INTERPRETER))) == 4


#: SPLIT means something only in the structure that splits, and DEPTH only where it does.
CONDITIONAL = SearchSpace(
    params=lambda p, d: {"STRUCTURE": ("whole", "split"), "SPLIT": (1, 2, 4), "DEPTH": (1, 2)},
    default=lambda p, d: Config(STRUCTURE="whole", SPLIT=1, DEPTH=1),
    constraints=(lambda config, p, d: "is too deep" if config["SPLIT"] == 4 and config["DEPTH"] == 2 else None,),
    matters={
        "SPLIT": lambda config, p, d: config["STRUCTURE"] == "split",
        "DEPTH": lambda config, p, d: config["SPLIT"] != 1,
    },
)


def test_a_parameter_without_effect_stays_at_its_first_value():
    allowed = list(CONDITIONAL.allowed(Problem(), device.INTERPRETER))
    assert [tuple(config.values()) for config in allowed] == [
        ("whole", 1, 1),
        ("split", 1, 1),
        ("split", 2, 1),
        ("split", 2, 2),
        ("split", 4, 1),
    ]
    product = itertools.product(("whole", "split"), (1, 2, 4), (1, 2))
    configs = [Config(dict(zip(("STRUCTURE", "SPLIT", "DEPTH"), values, strict=True))) for values in product]
    assert [c for c in configs if CONDITIONAL.why_not(c, Problem(), device.INTERPRETER) is None] == allowed


def test_a_parameter_without_effect_is_named():
    idle = Config(STRUCTURE="whole", SPLIT=2, DEPTH=1)
    why = CONDITIONAL.why_not(idle, Problem(), device.INTERPRETER)
    assert why == "SPLIT=2 has no effect here; write SPLIT=1"
    settled = CONDITIONAL.settle(Config(STRUCTURE="whole", SPLIT=2, DEPTH=2), Problem(), device.INTERPRETER)
    assert settled == {"STRUCTURE": "whole", "SPLIT": 1, "DEPTH": 1}
