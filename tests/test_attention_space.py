"""What attention's kernels are served untuned: allowed by their own space, whatever the problem and the device."""

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autotune import device, registry

SPACES = ("attention", "attention_backward", "decode_attention")
A100 = device.profile("a100")
DEVICES = {
    **{name: device.profile(name) for name in ("a100", "h100", "b200", "mi300x")},
    # Consumer GPUs, which have less shared memory.
    **{arch: replace(A100, arch=arch, shared_bytes_per_block=101376) for arch in ("sm_89", "sm_120")},
    "interpreter": device.INTERPRETER,
}
WIDTHS = st.integers(1, 256) | st.sampled_from((64, 128, 192, 256))
LENGTHS = st.integers(0, 5000) | st.sampled_from((0, 1, 4096))
#: float32 of wide keys and narrow values; a group that takes large tiles of heads.
NARROW_VALUES = {"group": 1, "kv_heads": 1, "rows": 1024, "keys": 1024, "widths": (192, 32), "dtype": "float32"}
LARGE_GROUP = {"group": 64, "kv_heads": 2, "rows": 1, "keys": 4096, "widths": (256, 256), "dtype": "bfloat16"}


@pytest.mark.parametrize("where", DEVICES.values(), ids=list(DEVICES))
@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    group=st.sampled_from((1, 2, 5, 8, 64, 128)),
    kv_heads=st.sampled_from((1, 2, 8)),
    rows=LENGTHS,
    keys=LENGTHS,
    widths=st.tuples(WIDTHS, WIDTHS),
    dtype=st.sampled_from(("float16", "bfloat16", "float32")),
    causal=st.booleans(),
    window=st.integers(0, 5000),
    softcap=st.booleans(),
)
@example(batch=1, causal=True, window=0, softcap=False, **NARROW_VALUES)
@example(batch=1, causal=False, window=0, softcap=False, **LARGE_GROUP)
def test_the_default_is_allowed(
    name, where, batch, group, kv_heads, rows, keys, widths, dtype, causal, window, softcap
):
    loaded = registry.load(name)
    width, value_width = widths
    sizes = {"B": batch, "H": group * kv_heads, "HKV": kv_heads, "SK": keys, "D": width, "dtype": dtype}
    if value_width != width:
        sizes["DV"] = value_width
    # Decoding's has an effect only within the capacity.
    if name != "decode_attention":
        sizes.update(SQ=rows, causal=causal, window=window, softcap=softcap)
    elif 0 < window < keys:
        sizes["window"] = window
    problem = loaded.kernel.make(**sizes)
    assert loaded.space.why_not(loaded.space.default(problem, where), problem, where) is None
