"""``grouped_gemm`` and the gradient of its weights against float64: any split of tokens, and what is not read."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from triton.runtime.interpreter import InterpreterBuilder

import autotune
from autotune import device, ops, registry
from autotune.data import Config
from autotune.kernels import grouped_gemm, grouped_gemm_weight_gradient
from autotune.kernels._gemm_arguments import ACTIVATIONS
from autotune.worker import Worker
from tests.test_compile import compile_and_launch, job
from tests.test_kernels import far_apart

LOADED = registry.load("grouped_gemm")
KERNEL, SPACE = LOADED.kernel, LOADED.space
GRADIENT = registry.load("grouped_gemm_weight_gradient").kernel
TILE = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": 4, "num_warps": 4, "num_stages": 2}
STRUCTURES = ("tiled", "persistent", "descriptor")
CONFIGS = [pytest.param(Config(**TILE, STRUCTURE=name), id=name) for name in STRUCTURES]
TILED, DESCRIPTOR = (Config(**TILE, STRUCTURE=name) for name in ("tiled", "descriptor"))
GRADIENT_CONFIG = Config(BLOCK_K=16, BLOCK_N=32, BLOCK_T=16, GROUP_K=4, num_warps=4, num_stages=2)
NAN = float("nan")


def case(sizes, *, rest=0, K=24, N=40, dtype=torch.float32, seed=0):
    """x, w and offs for groups of these sizes and ``rest`` tokens of none."""
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(*s, generator=generator) for s in ((sum(sizes) + rest, K), (len(sizes), K, N)))
    return x.to(dtype), w.to(dtype), torch.tensor(sizes, dtype=torch.int32).cumsum(0).int()


def exact(x, w, offs, bias=None, activation=None):
    """In float64, differentiable, from the definition: row by row the weight of its group."""
    group = torch.searchsorted(offs, torch.arange(len(x)), right=True)
    inside = group < len(w)
    group = group[inside]
    y = torch.einsum("tk,tkn->tn", x[inside].double(), w.double()[group])
    y = y if bias is None else y + bias.double()[group]
    if activation == "swiglu":
        y = F.silu(y.chunk(2, 1)[0]) * y.chunk(2, 1)[1]
    elif activation is not None:
        act = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"), "silu": F.silu}
        y = act[activation](y)
    return torch.zeros(len(x), y.shape[1], dtype=torch.float64).index_put((inside.nonzero()[:, 0],), y)


def assert_right(config, *args, rtol=1e-5):
    result = KERNEL.run(config, *args)
    assert result.dtype == args[0].dtype and result.is_contiguous()
    torch.testing.assert_close(result.double(), exact(*args), rtol=rtol, atol=rtol)
    return result


SPLITS = {
    "first empty": ([0, 5, 40], 0),
    "empty in the middle, edges inside tiles": ([17, 0, 0, 28], 0),
    "last empty": ([5, 40, 0], 0),
    "one has all": ([0, 45, 0], 0),
    "whole tiles": ([16, 32], 0),
    "one token each": ([1, 1, 1], 0),
    "one token": ([0, 1], 0),
    "a rest": ([7, 18], 20),
    "nothing but a rest": ([0, 0], 20),
    "over a thousand groups": ([1] + [0] * 1100 + [6], 3),
}


#: Each split meets one structure, and each structure a third of them; those with a rest meet all.
PAIRS = [
    (s, n) for i, n in enumerate(SPLITS) for j, s in enumerate(STRUCTURES) if "a rest" in n or (i + j) % 3 == 0
]


@pytest.mark.parametrize(("structure", "name"), PAIRS)
def test_any_split(structure, name):
    sizes, rest = SPLITS[name]
    small = {"K": 8, "N": 16} if len(sizes) > 9 else {}
    assert_right(Config({**TILE, "STRUCTURE": structure}), *case(sizes, rest=rest, **small))


@pytest.mark.parametrize("name", list(SPLITS)[1::2])
def test_weight_gradients_of_any_split(name):
    sizes, rest = SPLITS[name]
    if len(sizes) > 9:  # which has a program for each
        sizes = [1, *[0] * 10, 6]
    x, w, offs = case(sizes, rest=rest)
    d_out = torch.randn(len(x), w.shape[2])
    result = GRADIENT.run(GRADIENT_CONFIG, x, d_out, offs)
    w.requires_grad_()
    (expected,) = torch.autograd.grad(exact(x, w, offs), w, d_out.double())
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert all(result[group].count_nonzero() == 0 for group, size in enumerate(sizes) if size == 0)


#: Each activation meets one structure; what the descriptors' own epilogue does, and gates, meet two.
EPILOGUES = list(zip(STRUCTURES * 2, (None, *ACTIVATIONS), strict=True))


@pytest.mark.parametrize(("structure", "activation"), [*EPILOGUES, ("descriptor", None), ("tiled", "swiglu")])
def test_bias_and_activation(structure, activation):
    x, w, offs = case([3, 0, 19], rest=2)
    config = Config({**TILE, "STRUCTURE": structure})
    assert_right(config, x, w, offs, torch.randn(3, 40), activation)
    if activation == "swiglu":
        assert_right(config, x, w.mT.contiguous().mT, offs, None, activation)


def test_without_inner_dimension_the_bias_is_left():
    x, w, offs = case([3, 4], rest=2, K=0)
    bias = torch.randn(2, 40)
    for param in CONFIGS:
        assert_right(param.values[0], x, w, offs, bias)


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_not_finite_stays_in_its_row_and_in_its_group(config):
    x, w, offs = case([5, 0, 20, 9], rest=3, K=40)
    x[6, 3], x[-1, 0] = NAN, NAN
    w[3, 39, 7] = NAN
    w[1] = NAN  # of an empty group
    result = KERNEL.run(config, x, w, offs)
    bad = torch.zeros_like(result, dtype=torch.bool)
    bad[6] = True
    bad[25:34, 7] = True
    assert torch.equal(result.isnan(), bad)
    assert not result[34:].any()


def test_a_token_spoils_only_its_groups_weight_gradient():
    x, w, offs = case([5, 0, 20, 9], rest=3)
    d_out = torch.randn(len(x), 40)
    x[25, 3] = d_out[24, 8] = x[-1] = NAN  # first of the last group, last of the one before, and of none
    bad = torch.zeros_like(w, dtype=torch.bool)
    bad[3, 3], bad[2, :, 8] = True, True
    assert torch.equal(GRADIENT.run(GRADIENT_CONFIG, x, d_out, offs).isnan(), bad)


@settings(max_examples=5, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    rest=st.integers(0, 20),
    K=st.integers(1, 70),
    N=st.integers(1, 70),
    block_m=st.sampled_from([16, 64]),
    structure=st.sampled_from(STRUCTURES),
    seed=st.integers(0, 99),
)
def test_any_shape(sizes, rest, K, N, block_m, structure, seed):
    x, w, offs = case(sizes, rest=rest, K=K, N=N, seed=seed)
    config = Config({**TILE, "BLOCK_M": block_m, "STRUCTURE": structure})
    result = KERNEL.run(config, x, w, offs)
    torch.testing.assert_close(result.double(), exact(x, w, offs), rtol=1e-4, atol=1e-4)


STRIDES = {
    "a linear layer's": lambda t: t.mT.contiguous().mT,
    "every other row": lambda t: t.repeat_interleave(2, -2)[..., ::2, :],
    "every other column": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "odd base address": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("name", STRIDES)
def test_any_strides(name):
    x, w, offs = case([5, 0, 20], rest=1)
    d_out = torch.randn(len(x), 40)
    expected, gradient = KERNEL.reference(x, w, offs), GRADIENT.reference(x, d_out, offs)
    far = STRIDES[name]
    offs = torch.stack([offs, offs + 1], 1).long()[:, 0]
    torch.testing.assert_close(KERNEL.run(TILED, far(x), far(w), offs), expected)
    torch.testing.assert_close(KERNEL.run(DESCRIPTOR, x, far(w), offs), expected)
    torch.testing.assert_close(GRADIENT.run(GRADIENT_CONFIG, far(x), far(d_out), offs), gradient)


@pytest.mark.parametrize("config", CONFIGS)
def test_one_weight_may_be_expanded_to_all_groups(config):
    x, w, offs = case([5, 0, 20])
    assert_right(config, x, w[:1].expand(3, -1, -1), offs)


@pytest.mark.parametrize("config", CONFIGS)
def test_offsets_are_64_bit(config):
    """From the rows of x, groups and rows of w, and of a gradient's tokens, over 2**31 elements."""
    x, w, offs = case([1, 1, 1], K=16, N=16, dtype=torch.float16)
    far_x, expected = far_apart(3, 16, far=0), exact
    assert_right(config, far_x, w, offs, rtol=1e-2)
    assert_right(config, x, far_apart(3, 16, 16, far=0), offs, rtol=1e-2)
    rows = torch.randn(3, 3).half()
    assert_right(config, rows, far_apart(3, 3, 16, far=1), offs, rtol=1e-2)
    result = GRADIENT.run(GRADIENT_CONFIG, far_x, far_x, offs)
    expected = far_x.double()[:, :, None] * far_x.double()[:, None, :]
    torch.testing.assert_close(result.double(), expected, rtol=1e-2, atol=1e-2)


def test_bfloat16_is_rounded_once():
    x, w, offs = case([9, 0, 7], rest=2, dtype=torch.bfloat16)
    bias = torch.randn(3, 40).bfloat16()
    wide = KERNEL.run(TILED, x.float(), w.float(), offs, bias.float(), "swiglu")
    assert torch.equal(KERNEL.run(TILED, x, w, offs, bias, "swiglu"), wide.bfloat16())


def watch(monkeypatch, name):
    """A list of the addresses that the interpreter's ``name`` touches from now on."""
    real, seen = getattr(InterpreterBuilder, name), []

    def watched(builder, pointers, *rest, **named):
        (mask,) = (v for v in rest if isinstance(getattr(v, "data", None), np.ndarray) and v.data.dtype == bool)
        seen.append(pointers.data[mask.data])
        return real(builder, pointers, *rest, **named)

    monkeypatch.setattr(InterpreterBuilder, name, watched)
    return seen


def places(addresses, tensor):
    """Which elements of a contiguous tensor the addresses are, as they come."""
    found = torch.cat([torch.from_numpy(a.astype("int64")).flatten() for a in addresses]) - tensor.data_ptr()
    found = found // tensor.element_size()
    return found[(found >= 0) & (found < tensor.numel())]


@pytest.mark.parametrize("config", CONFIGS)
def test_empty_groups_and_rows_of_none_are_never_loaded(config, monkeypatch):
    x, w, offs = case([5, 0, 20, 0], rest=40, K=32, N=64)
    loads = watch(monkeypatch, "create_masked_load")
    KERNEL.run(config, x, w, offs)
    read = torch.bincount(places(loads, w) // w[0].numel(), minlength=4)
    # 5 and 20 tokens are one and two rows of tiles.
    assert read.tolist() == [w[0].numel(), 0, 2 * w[0].numel(), 0]
    # The last tile of tokens may reach on, by less than itself.
    assert int(places(loads, x).max()) // 32 < 25 + 16


@pytest.mark.parametrize(
    ("structure", "activation"), list(zip(STRUCTURES, ("swiglu", None, "swiglu"), strict=True))
)
def test_each_element_is_stored_once(structure, activation, monkeypatch):
    """Whatever bands of tile rows the split makes: 3 programs share them where they are persistent."""
    x, w, offs = case([5, 0, 33], rest=18, K=8, N=40)
    stores = watch(monkeypatch, "create_masked_store")
    result = KERNEL.run(Config({**TILE, "STRUCTURE": structure}), x, w, offs, None, activation)
    assert torch.bincount(places(stores, result), minlength=result.numel()).eq(1).all()


@pytest.mark.parametrize("bad", [[-9, 50, 3], [30, -(2**31), 20], [2**31 + 5, 7, -1]])
def test_offsets_that_nobody_checked_reach_no_other_memory(bad, monkeypatch):
    """As on a GPU, where whatever they say is within the tensors."""
    for module in (grouped_gemm, grouped_gemm_weight_gradient):
        monkeypatch.setattr(module, "check_values", lambda *args: None)
    x, w, _ = case([20, 20, 5], K=8, N=16)
    offs, d_out = torch.tensor(bad), torch.randn(45, 16)
    loads, stores = watch(monkeypatch, "create_masked_load"), watch(monkeypatch, "create_masked_store")
    for compute, config, args in (
        *((KERNEL.run, param.values[0], (x, w, offs)) for param in CONFIGS[:2]),
        (GRADIENT.run, GRADIENT_CONFIG, (x, d_out, offs)),
    ):
        loads.clear()
        stores.clear()
        result = compute(config, *args)
        for touched, tensors in ((loads, args), (stores, [result])):
            inside = sum(len(places(touched, tensor)) for tensor in tensors)
            assert inside == sum(addresses.size for addresses in touched)


@pytest.mark.parametrize("activation", [None, "swiglu", "gelu"])
def test_gradients_match_float64(activation):
    x, w, offs = case([9, 0, 30], rest=3)
    leaves = [x.requires_grad_(), w.requires_grad_(), torch.randn(3, 40, requires_grad=True)]
    y = ops.grouped_gemm(x, w, offs, bias=leaves[2], activation=activation)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, leaves, upstream)
    expected = torch.autograd.grad(exact(x, w, offs, leaves[2], activation), leaves, upstream.double())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not found[0][39:].any() and not found[1][1].any()


def test_second_derivatives():
    x, w, offs = case([2, 0, 3], rest=1, K=3, N=4, dtype=torch.float64)
    bias = torch.randn(3, 4, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, w, bias)]

    def layer(x, w, bias):
        return ops.grouped_gemm(x, w, offs, bias=bias, activation="swiglu")

    assert torch.autograd.gradcheck(layer, leaves) and torch.autograd.gradgradcheck(layer, leaves)


def test_only_what_is_asked_for_is_differentiated():
    x, w, offs = case([2, 3])
    ops.grouped_gemm(x, w.requires_grad_(), offs).sum().backward()
    assert x.grad is None and w.grad is not None


def test_the_operators_pass_opcheck():
    x, w, offs = case([5, 0, 9], rest=2, dtype=torch.float16)
    bias = torch.randn(3, 40).half()
    leaves = [tensor.requires_grad_() for tensor in (x.clone(), w.mT.contiguous().mT, bias)]
    samples = [
        (torch.ops.autotune.grouped_gemm, (*leaves[:2], offs, leaves[2], "swiglu")),
        (torch.ops.autotune.grouped_gemm_weight_gradient, (x, torch.randn(16, 40).half(), offs)),
    ]
    for operator, args in samples:
        assert set(torch.library.opcheck(operator.default, args).values()) == {"SUCCESS"}


def test_it_traces_whole_under_compile_with_its_gradient():
    x, w, offs = case([9, 0, 30], rest=3)
    leaves = [x.requires_grad_(), w.requires_grad_()]

    def step(x, w, offs):
        return ops.grouped_gemm(x, w, offs, activation="silu") + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = [function(x, w, offs) for function in (compiled, step)]
    assert torch.equal(*results)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in results), strict=True):
        assert torch.equal(one, other)


def test_torchs_own_grouped_product_is_served_and_recorded():
    x, w, offs = case([16, 0, 16], rest=4, K=16, N=32)
    d_out = torch.randn(36, 32)
    with autotune.route():
        result = F.grouped_mm(x, w, offs=offs)
        gradient = F.grouped_mm(x.mT, d_out, offs=offs)
        assert F.grouped_mm(w, w.mT).shape == (3, 16, 16)  # not ours
        with torch.autocast("cpu", dtype=torch.bfloat16):  # which leaves it alone
            assert F.grouped_mm(x, w, offs=offs).dtype == F.grouped_mm(x.mT, d_out, offs=offs).dtype == x.dtype
    torch.testing.assert_close(result, KERNEL.reference(x, w, offs))
    torch.testing.assert_close(gradient, GRADIENT.reference(x, d_out, offs))
    with autotune.record() as workload:
        F.grouped_mm(x.requires_grad_(), w.requires_grad_(), offs=offs).square().sum().backward()
    assert {name for name, _ in workload.calls} == {"grouped_gemm", "grouped_gemm_weight_gradient"}


def test_torchs_product_is_a_provider_where_it_reads_no_device():
    provider = KERNEL.providers["grouped_mm"]
    h100, a100 = device.profile("h100"), device.profile("a100")
    layer = "T=512,K=64,N=64,G=4,dtype=bfloat16"
    for text, where, why in (
        (layer, h100, None),
        (layer, device.INTERPRETER, None),
        (layer, a100, "loops over groups"),
        (layer.replace("bfloat16", "float16"), h100, "loops over groups"),
        (layer.replace("G=4", "G=1024"), h100, "up to 1023 groups"),
        (layer.replace("N=64", "N=60"), h100, "of a multiple of 16 bytes"),
        (layer.replace("N=64", "N=60") + ",layout=nt", h100, None),
        # Groups that begin anywhere in a column fail an assertion in torch's kernel.
        (layer + ",layout=tn", h100, "takes contiguous rows of x"),
        (layer.replace("T=512", "T=0"), h100, "no empty tensor"),
    ):
        found = provider.unavailable(KERNEL.parse(text), where)
        assert found is None if why is None else why in found
    x, w, offs = case([9, 0, 30], rest=3, K=16, N=32)
    bias = torch.randn(3, 32)
    torch.testing.assert_close(provider.run(x, w, offs), KERNEL.reference(x, w, offs))
    gated = x, w, offs, bias, "swiglu"
    torch.testing.assert_close(provider.run(*gated), KERNEL.reference(*gated))
    # As the gradient of a sum is, which is the same problem.
    one_row = x[:1].expand(42, -1)
    torch.testing.assert_close(provider.run(one_row, w, offs), KERNEL.reference(one_row, w, offs))
    args = one_row, one_row, offs
    torch.testing.assert_close(GRADIENT.providers["grouped_mm"].run(*args), GRADIENT.reference(*args))
    layer = "T=512,K=64,N=64,G=4,dtype=bfloat16"
    for layout, why in (("nn", None), ("nt", "takes contiguous rows of x and d_out")):
        assert GRADIENT.providers["grouped_mm"].unavailable(GRADIENT.parse(f"{layer},layout={layout}"), h100) == (
            why and f"torch {why}, of a multiple of 16 bytes"
        )
    args = GRADIENT.inputs(GRADIENT.parse(GRADIENT.problems[0]), 0, "cpu")
    assert torch.equal(GRADIENT.providers["grouped_mm"].run(*args), GRADIENT.reference(*args))


REFUSED = {
    "grouped_gemm takes (tokens, K) and (groups, K, N)": {"x": torch.ones(3, 20, 8)},
    "the last of x must be the middle of w": {"x": torch.ones(20, 9)},
    "offs has 4 entries and w 3 groups": {"offs": torch.tensor([0, 5, 5, 9])},
    "offs is torch.float32 (3,)": {"offs": torch.tensor([1.0, 2.0, 3.0])},
    "offs is torch.int32 (1, 3)": {"offs": torch.tensor([[1, 2, 3]], dtype=torch.int32)},
    "offs is on meta but x is on cpu": {"offs": torch.ones(3, dtype=torch.int32, device="meta")},
    "w is torch.float16 on cpu but x is torch.float32": {"w": torch.ones(3, 8, 12).half()},
    "x is torch.int32; it must be float16": {"x": torch.ones(20, 8).int()},
    "w is torch.sparse_coo; it must be dense": {"w": torch.ones(3, 8, 12).to_sparse()},
    "bias has shape (12,); it must be (3, 12)": {"bias": torch.ones(12)},
    "bias is torch.float16 on cpu": {"bias": torch.ones(3, 12).half()},
    "activation is 'tanh'; use None or one of relu": {"activation": "tanh"},
    "w has 11 columns; swiglu takes an even number": {"w": torch.ones(3, 8, 11), "activation": "swiglu"},
    "offs goes from -1 to 9; it must stay in 0 to 20 tokens": {"offs": torch.tensor([-1, 5, 9])},
    "offs goes from 1 to 21": {"offs": torch.tensor([1, 5, 21])},
    "offs[2] is 4 after 5; offs must never decrease": {"offs": torch.tensor([1, 5, 4])},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_named_before_anything_runs(message):
    good = {"x": torch.ones(20, 8), "w": torch.ones(3, 8, 12), "offs": torch.tensor([1, 5, 9])}
    bad = {**good, **REFUSED[message]}
    provider = KERNEL.providers["grouped_mm"].run
    for compute in (lambda **kwargs: KERNEL.run(TILED, **kwargs), KERNEL.reference, provider, ops.grouped_gemm):
        with pytest.raises(ValueError, match=re.escape(message)):
            compute(**bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_out": torch.ones(19, 12)}, "they must be (tokens, K) and (tokens, N)"),
        ({"d_out": torch.ones(20, 12).half()}, "d_out is torch.float16"),
        ({"d_out": torch.ones(20, 12).to_sparse()}, "d_out is torch.sparse_coo; it must be dense"),
        ({"offs": torch.tensor(3)}, "it must be int32 or int64 of (groups,)"),
        ({"offs": torch.tensor([5, 4])}, "offs must never decrease"),
    ],
)
def test_bad_arguments_of_the_weight_gradient_are_named(changes, message):
    args = {"x": torch.ones(20, 8), "d_out": torch.ones(20, 12), "offs": torch.tensor([1, 5]), **changes}
    provider = GRADIENT.providers["grouped_mm"].run
    for compute in (GRADIENT.reference, provider, ops.grouped_gemm_weight_gradient):
        with pytest.raises(ValueError, match=re.escape(message)):
            compute(**args)


def test_numbers_on_a_gpu_are_looked_at_only_on_request(monkeypatch):
    """A meta tensor stands for one on a device: to look at it is an error of another kind."""
    from autotune.kernels._grouped_gemm_operator import check_values

    offs = torch.ones(3, dtype=torch.int32, device="meta")
    check_values(offs, 20)
    monkeypatch.setenv("AUTOTUNE_CHECK_VALUES", "1")
    with pytest.raises((RuntimeError, NotImplementedError)):
        check_values(offs, 20)


def test_inputs_have_an_empty_group_and_a_hot_one():
    for groups in (2, 3, 16):
        problem = KERNEL.make(T=1000, K=4, N=4, G=groups, dtype="float32")
        sizes = [KERNEL.inputs(problem, seed, "cpu")[2].diff(prepend=torch.zeros(1)).int() for seed in range(5)]
        assert all(int(split.min()) == 0 and int(split.max()) >= 500 and split.sum() == 1000 for split in sizes)


def test_work_counts_the_weights_of_groups_that_can_have_a_token():
    # 8 tokens of 16, 3 groups' weights of 16 x 20, and 8 results of 10 in 2 bytes.
    work = KERNEL.work(KERNEL.parse("T=8,K=16,N=20,G=3,dtype=float16,activation=swiglu"))
    assert (work.flops, work.bytes) == (2 * 8 * 16 * 20, 2 * (8 * 16 + 3 * 16 * 20 + 8 * 10))
    assert KERNEL.work(KERNEL.parse("T=2,K=16,N=20,G=9,dtype=float16")).bytes == 2 * (2 * 16 + 2 * 320 + 2 * 20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 2048 tokens a group on the average, 128 of them 2 x 8192 / 256 tiles.
        ("T=32768,K=5120,N=16384,G=16,dtype=bfloat16,layout=nt", "descriptor 128x256x64"),
        # A token or none each: 16 rows, and 8 rows of tiles.
        ("T=8,K=7168,N=4096,G=256,dtype=bfloat16,layout=nt", "tiled 16x128x64"),
        ("T=512,K=1000,N=301,G=4,dtype=float16", "tiled 128x64x64"),
        ("T=4096,K=512,N=512,G=4,dtype=float32", "tiled 64x64x32"),
    ],
)
def test_default_of_usual_shapes(text, expected):
    found = SPACE.default(KERNEL.parse(text), device.profile("h100"))
    tile = f"{found['STRUCTURE']} {found['BLOCK_M']}x{found['BLOCK_N']}x{found['BLOCK_K']}"
    assert tile == expected


def test_the_space_says_why_not():
    h100 = device.profile("h100")
    layer = KERNEL.parse("T=512,K=1024,N=1024,G=16,dtype=float16")
    base = {**SPACE.default(layer, h100), "STRUCTURE": "tiled"}
    for text, change, why in (
        (str(layer), {"BLOCK_M": 256}, "mostly padding for 32 tokens a group; 128 is enough"),
        (
            str(layer).replace("N=1024", "N=64"),
            {"STRUCTURE": "persistent", "BLOCK_N": 64, "GROUP_M": 1},
            "tiles for",
        ),
        (str(layer) + ",layout=tn", {"STRUCTURE": "descriptor"}, "takes aligned rows of x"),
        (str(layer).replace("N=1024", "N=1020"), {"STRUCTURE": "descriptor"}, "w's are 1020 x 2"),
        (str(layer) + ",activation=swiglu", {"STRUCTURE": "descriptor", "BLOCK_N": 16, "num_warps": 4}, None),
    ):
        found = SPACE.why_not(Config({**base, **change}), KERNEL.parse(text), h100)
        assert found is None if why is None else found is not None and why in found, found


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with Worker({"TRITON_INTERPRET": None, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}) as worker:
        yield worker


@pytest.mark.parametrize(
    ("name", "text", "profile", "structure"),
    [
        ("grouped_gemm", "T=64,K=64,N=64,G=3,dtype=float16,layout=nt,bias=true", "h100", "tiled"),
        ("grouped_gemm", "T=64,K=64,N=64,G=3,dtype=bfloat16,layout=nt,activation=swiglu", "h100", "descriptor"),
        ("grouped_gemm", "T=64,K=40,N=24,G=3,dtype=float16,layout=sn,aligned=false", "mi300x", "persistent"),
        ("grouped_gemm_weight_gradient", "T=64,K=48,N=64,G=3,dtype=bfloat16,layout=tn", "a100", None),
    ],
)
def test_a_launch_finds_what_was_compiled_ahead(worker, name, text, profile, structure):
    task = job(name, text, profile, **({"STRUCTURE": structure} if structure else {}))
    ahead, launches, compiled_again = worker.call(compile_and_launch, *task, timeout_s=120)
    assert compiled_again == 0
    # A persistent kernel is told its tiles, and takes 3 programs where there is no device.
    assert launches == (ahead if structure in (None, "tiled") else [min(ahead[0], 3)])
