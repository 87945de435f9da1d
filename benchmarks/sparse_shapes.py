"""The sparse problems that benchmarks/sparse.py measures, by named lists; benchmarks/shapes.py has the dense ones.

Sources. ``meta``: what torch/sparse/_triton_ops_meta.py was tuned for on an A100. ``stk``: the tests of stk, whose
blocks are 128. ``pruned``: torchao#1734, Llama-3-8B at 90 % sparsity in blocks of 64. ``scout``, ``maverick``,
``deepseek-v3``: experts of transformers' ``configuration_llama4.py`` and of ``config_671B.json``. ``vllm``: the
sizes, ranks and adapters of vLLM's LoRA tests. ``tbe``: FBGEMM's split_table_batched_embeddings benchmark.
``dlrm``: MLPerf ``training/recommendation_v2``.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.shapes import DECODE_M, MODELS, Lists, doubling

#: Stored blocks, percent.
DENSITIES = (5, 10, 20, 50)


def bsr(M: int, N: int, K: int, block: int, density: int, dtype: str = "bfloat16") -> str:
    return f"M={M},N={N},K={K},BLOCK_ROWS={block},BLOCK_COLUMNS={block},density={density},dtype={dtype}"


def masked(S: int, density: int, rest: str = "", block: int = 128, B: int = 1, H: int = 16, HKV: int = 16) -> str:
    shape = f"B={B},H={H},HKV={HKV},SQ={S},SK={S},D=128,BLOCK_Q={block},BLOCK_KV={block}"
    return f"{shape},density={density},dtype=bfloat16" + (f",{rest}" if rest else "")


def grouped(T: int, K: int, N: int, G: int, rest: str = "") -> str:
    return f"T={T},K={K},N={N},G={G},dtype=bfloat16,layout=nt" + (f",{rest}" if rest else "")


def experts(dim: int, ffn: int, count: int) -> tuple[str, ...]:
    """Gate and up with their product, and down, from a few tokens to a batch of prefill, each to one expert."""
    return tuple(
        problem
        for tokens in (16, 128, 1024, 8192, 32768)
        for problem in (grouped(tokens, dim, 2 * ffn, count, "activation=swiglu"), grouped(tokens, ffn, dim, count))
    )


def adapted(T: int, K: int, N: int, R: int, A: int) -> str:
    return f"T={T},K={K},N={N},R={R},A={A},dtype=bfloat16,base=true"


def bags(B: int, V: int, D: int, L: int, rest: str = "", dtype: str = "float32") -> str:
    return f"B={B},V={V},D={D},L={L},dtype={dtype}" + (f",{rest}" if rest else "")


_LLAMA = MODELS["llama3-8b"].layers(1)[:4]  # without the head
#: (rows, entries of a bag) of the 26 tables, D=128.
DLRM_TABLES = tuple(
    zip(
        (
            *(40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10),
            *(2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36),
        ),
        (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1),
        strict=True,
    )
)

BSR: Lists = {
    # The aim is set on these: blocks of all sizes at all densities.
    "grid": tuple(bsr(4096, 4096, 4096, block, density) for block in doubling(16, 128) for density in DENSITIES),
    "pruned": tuple(bsr(M, N, K, 64, 10) for N, K in _LLAMA for M in (*DECODE_M, 2048, 8192)),
    "meta": tuple(
        bsr(M, S, S, block, 50, "float16")
        for S in doubling(256, 16384)[::2]
        for block in doubling(16, 128)
        for M in (256, 4096, 65536)
    ),
    "stk": tuple(bsr(S, S, S, 128, density, "float16") for S in doubling(512, 2048) for density in (100, 50, 20)),
    "skewed": tuple(f"{bsr(4096, 4096, 4096, 64, 10)},imbalance={times}" for times in (4, 16)),
}
SDDMM: Lists = {
    # The gradient of a weight of 4096 x 4096 over so many tokens.
    "gradient": tuple(
        f"{bsr(4096, 4096, tokens, block, density)},layout=tn"
        for tokens in (2048, 16384)
        for block in doubling(16, 128)
        for density in DENSITIES
    ),
}
BLOCK_SPARSE_ATTENTION: Lists = {
    # Time should be in proportion to the density.
    "blocks": tuple(masked(S, density) for S in (4096, 8192, 16384) for density in (*DENSITIES, 100)),
    "causal": tuple(masked(S, 50, "causal=true,plain=true") for S in doubling(2048, 16384)),
}
GROUPED: Lists = {
    "scout": experts(5120, 8192, 16),
    "maverick": experts(5120, 8192, 128),
    "deepseek-v3": experts(7168, 2048, 256),
}
LORA: Lists = {
    "vllm": tuple(
        adapted(T, dim, dim, rank, adapters)
        for dim in (2048, 4096, 8192)
        for rank in (8, 16, 64, 256)
        for adapters in (1, 8, 32, 128)
        for T in (1, 32, 256, 2048)
    ),
    # A model of one's own for everybody.
    "thousands": tuple(adapted(T, 4096, 4096, 16, adapters) for adapters in (1024, 8192) for T in (64, 1024)),
}
EMBEDDING_BAG: Lists = {
    "tbe": (bags(65536, 20_000_000, 192, 32, "T=2,ragged=true"),),
    # The batch of one of eight devices; tables one by one, the largest cut to what fits beside its references.
    "dlrm": tuple(
        dict.fromkeys(bags(8192, min(rows, 10_000_000), 128, length) for rows, length in DLRM_TABLES if rows > 1000)
    ),
    # All 26 in one launch, equally large here, of 214 / 26 entries a bag.
    "dlrm-packed": (bags(8192, 10_000_000, 128, 8, "T=26,ragged=true"),),
}

SPARSE: Mapping[str, Lists] = {
    "bsr_matmul": BSR,
    "sddmm": SDDMM,
    "block_sparse_attention": BLOCK_SPARSE_ATTENTION,
    "grouped_gemm": GROUPED,
    "lora": LORA,
    "embedding_bag": EMBEDDING_BAG,
}

#: Kernel -> problems whose spaces benchmarks/record.py records.
RECORDED: Mapping[str, tuple[str, ...]] = {
    "bsr_matmul": (
        *(bsr(4096, 4096, 4096, 64, 10), bsr(4096, 4096, 4096, 32, 20), bsr(16, 28672, 4096, 64, 10)),
        f"{bsr(4096, 4096, 4096, 64, 10)},imbalance=16",
    ),
    "sddmm": (f"{bsr(4096, 4096, 16384, 64, 10)},layout=tn", f"{bsr(4096, 4096, 2048, 32, 20)},layout=tn"),
    "block_sparse_attention": (masked(8192, 20), masked(4096, 50, "causal=true,plain=true")),
    "grouped_gemm": (
        grouped(128, 5120, 16384, 16, "activation=swiglu"),
        grouped(8192, 7168, 4096, 256, "activation=swiglu"),
    ),
    "lora": (adapted(64, 4096, 4096, 16, 1024), adapted(2048, 4096, 4096, 64, 8)),
    "embedding_bag": (bags(65536, 20_000_000, 192, 32, "T=2,ragged=true"), bags(8192, 10_000_000, 128, 100)),
}
