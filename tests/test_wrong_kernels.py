"""The checker must refuse each of these; a suite that can't fail checks nothing."""

from pathlib import Path

import pytest

from autotune import device, registry
from autotune.verify import Oracle

HERE = Path(__file__).parent / "wrong_kernels"
#: Space, problem and what the checker must say, by file.
GEMM = ("gemm", "M=64,N=64,K=1024,dtype=float16,layout=tn")
SMALL = ("gemm", "M=64,N=64,K=64,dtype=float16,layout=tn")
ATTENTION = ("attention", "B=1,H=4,HKV=2,SQ=64,SK=64,D=32,dtype=float16,causal=true")
BSR = ("bsr_matmul", "M=32,N=64,K=64,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=100,dtype=float16")
WRONG = {
    "attends_ahead": (*ATTENTION, "error"),
    "cheats_on_large_k": (*GEMM, "error"),
    "drops_block": (*BSR, "error"),
    "fits_one_set": (*SMALL, "error"),
    "ignores_strides": (*GEMM, "error"),
    "keeps_old_output": (*GEMM, "not finite"),
    "low_precision": (*GEMM, "error"),
    "misses_last_tile": (*GEMM, "error"),
    "mixes_heads": (*ATTENTION, "error"),
    "moves_input": (*GEMM, "changed its input"),
    "races": (*SMALL, "two runs on the same inputs differ"),
    "remembers_result": (*SMALL, "error"),
    "returns_one_buffer": (*SMALL, "same memory twice"),
    "returns_other_dtype": (*GEMM, "expected"),
    "skips_last_row": (*GEMM, "not finite"),
    "writes_after": (*SMALL, "wrote outside its output, 1 bytes after its (64, 64) torch.float16"),
    "writes_before": (*SMALL, "wrote outside its output, 1 bytes before its (64, 64) torch.float16"),
    "writes_beside_input": (*SMALL, "wrote outside its output, 1 bytes after input tensor number 1"),
}


def fault(path, space, problem):
    loaded = registry.Entry(path.stem, str(path), f"autotune.search_spaces.{space}").load()
    parsed = loaded.kernel.parse(problem)
    oracle = Oracle(loaded.kernel, *(loaded.kernel.inputs(parsed, seed, "cpu") for seed in (0, 1)))
    return oracle.fault(loaded.space.default(parsed, device.INTERPRETER))


def test_each_file_has_its_symptom():
    assert {path.stem for path in HERE.glob("[!_]*.py")} == set(WRONG)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernel_is_refused(name):
    space, problem, symptom = WRONG[name]
    found = fault(HERE / f"{name}.py", space, problem)
    assert found is not None and symptom in found.text


@pytest.mark.parametrize(("name", "problem"), [GEMM, ATTENTION, BSR])
def test_the_right_one_passes(name, problem):
    assert fault(Path(registry.__file__).parent / "kernels" / f"{name}.py", name, problem) is None
