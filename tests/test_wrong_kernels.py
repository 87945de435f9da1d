"""The checker must refuse each of these; a suite that can't fail checks nothing."""

from pathlib import Path

import pytest

from autotune import device, registry
from autotune.verify import Oracle

HERE = Path(__file__).parent / "wrong_kernels"
SYMPTOMS = {
    "cheats_on_large_k": "error",
    "ignores_strides": "error",
    "keeps_old_output": "not finite",
    "low_precision": "error",
    "misses_last_tile": "error",
    "moves_input": "changed its input",
    "races": "two runs on the same inputs differ",
    "returns_other_dtype": "expected",
    "skips_last_row": "not finite",
}


def fault(path):
    loaded = registry.Entry(path.stem, str(path), "autotune.search_spaces.gemm").load()
    problem = loaded.kernel.parse("M=64,N=64,K=1024,dtype=float16,layout=tn")
    oracle = Oracle(loaded.kernel, loaded.kernel.inputs(problem, 0, "cpu"))
    return oracle.fault(loaded.space.default(problem, device.INTERPRETER))


def test_each_file_has_its_symptom():
    assert {path.stem for path in HERE.glob("[!_]*.py")} == set(SYMPTOMS)


@pytest.mark.parametrize("name", SYMPTOMS)
def test_wrong_kernel_is_refused(name):
    found = fault(HERE / f"{name}.py")
    assert found is not None and SYMPTOMS[name] in found


def test_the_right_one_passes():
    assert fault(Path(registry.__file__).parent / "kernels" / "gemm.py") is None
