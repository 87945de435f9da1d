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
SDDMM = ("sddmm", "M=64,N=64,K=64,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=50,dtype=float16")
BLOCKS = (
    "block_sparse_attention",
    "B=1,H=2,HKV=1,SQ=64,SK=64,D=32,BLOCK_Q=32,BLOCK_KV=32,density=75,dtype=float16,causal=true,plain=true",
)
GROUPED = ("grouped_gemm", "T=64,K=64,N=32,G=3,dtype=float16")
LORA = ("lora", "T=40,K=64,N=32,R=16,A=3,dtype=float16,base=true")
BAGS = ("embedding_bag", "B=8,V=20,D=32,L=8,dtype=float16,padded=true")
BAGS_BACKWARD = ("embedding_bag_backward", "B=8,V=20,D=32,L=4,dtype=float16")
WRONG = {
    "adapts_all": (*LORA, "error"),
    "attends_ahead": (*ATTENTION, "error"),
    "attends_all_of_a_block": (*BLOCKS, "error"),
    "counts_padding": (*BAGS, "error"),
    "cheats_on_large_k": (*GEMM, "error"),
    "drops_block": (*BSR, "error"),
    "fits_one_set": (*SMALL, "error"),
    "ignores_strides": (*GEMM, "error"),
    "keeps_last_gradient": (*BAGS_BACKWARD, "error"),
    "keeps_old_output": (*GEMM, "not finite"),
    "low_precision": (*GEMM, "error"),
    "misses_end_of_k": (*SDDMM, "error"),
    "misses_last_tile": (*GEMM, "error"),
    "mixes_heads": (*ATTENTION, "error"),
    "moves_input": (*GEMM, "changed its input"),
    "races": (*SMALL, "two runs on the same inputs differ"),
    "remembers_result": (*SMALL, "error"),
    "returns_one_buffer": (*SMALL, "same memory twice"),
    "returns_other_dtype": (*GEMM, "expected"),
    "shifts_groups": (*GROUPED, "error"),
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


@pytest.mark.parametrize(
    ("name", "problem"), [GEMM, ATTENTION, BSR, SDDMM, BLOCKS, GROUPED, LORA, BAGS, BAGS_BACKWARD]
)
def test_the_right_one_passes(name, problem):
    assert fault(Path(registry.__file__).parent / "kernels" / f"{name}.py", name, problem) is None
