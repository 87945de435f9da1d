"""The problems that the operator benchmarks measure, by named lists, as the registry's kernels spell them.

Sources. Llama-3: torchtitan ``models/llama3/__init__.py``. DeepSeek-V3: its ``configs/config_671B.json``. DLRM:
MLPerf ``training/recommendation_v2``. ``published``: shapes with a cuBLAS time beside Triton's in triton#5461,
#5726, #3672 and facebookexperimental/triton#1038. ``split-k``, ``squares``: tritonbench ``gemm``. ``fa3``:
FlashAttention-3, arXiv 2407.08608, 16k tokens and a hidden size of 2048. ``tlx``: facebookexperimental/triton#3582.
``llama4-tp8``: tritonbench ``decoding_attention``. ``long``: TileOPs#2132.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

T = TypeVar("T")

#: Name -> problems.
Lists: TypeAlias = Mapping[str, tuple[str, ...]]
#: (N, K) of linear layers.
Layers: TypeAlias = list[tuple[int, int]]

DECODE_M = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PREFILL_M = (512, 1024, 2048, 4096, 8192, 16384)
TENSOR_PARALLEL = (1, 2, 4, 8)


@dataclass(frozen=True)
class Llama:
    """A Llama-3: grouped queries, gated feed-forward."""

    dim: int
    heads: int
    ffn: int
    kv_heads: int = 8
    vocabulary: int = 128256

    def layers(self, ways: int) -> Layers:
        """On one of ``ways`` tensor-parallel devices: QKV, output, gate and up, down, head."""
        head_dim = self.dim // self.heads
        qkv = (self.heads + 2 * self.kv_heads) * head_dim
        return [
            (qkv // ways, self.dim),
            (self.dim, self.dim // ways),
            (2 * self.ffn // ways, self.dim),
            (self.dim, self.ffn // ways),
            (self.vocabulary // ways, self.dim),
        ]


@dataclass(frozen=True)
class DeepSeek:
    """DeepSeek-V3: latent attention, experts beside three dense layers."""

    dim: int = 7168
    heads: int = 128
    q_rank: int = 1536
    kv_rank: int = 512
    nope: int = 128
    rope: int = 64
    v: int = 128
    ffn: int = 18432
    expert_ffn: int = 2048
    experts: int = 256
    vocabulary: int = 129280

    def layers(self, ways: int) -> Layers:
        """On one of ``ways`` devices; low-rank projections, router and experts are not split."""
        return [
            (self.q_rank, self.dim),
            (self.kv_rank + self.rope, self.dim),
            (self.heads * (self.nope + self.rope) // ways, self.q_rank),
            (self.heads * (self.nope + self.v) // ways, self.kv_rank),
            (self.dim, self.heads * self.v // ways),
            (2 * self.ffn // ways, self.dim),
            (self.dim, self.ffn // ways),
            (2 * self.expert_ffn, self.dim),
            (self.dim, self.expert_ffn),
            (self.experts, self.dim),
            (self.vocabulary // ways, self.dim),
        ]


MODELS: Mapping[str, Llama | DeepSeek] = {
    "llama3-8b": Llama(dim=4096, heads=32, ffn=14336),
    "llama3-70b": Llama(dim=8192, heads=64, ffn=28672),
    "llama3-405b": Llama(dim=16384, heads=128, ffn=53248),
    "deepseek-v3": DeepSeek(),
}

#: Dense 13-512-256-128, cross layers of rank 512 over 27 embeddings of 128, and 3456-1024-1024-512-256-1 on top.
DLRM_LAYERS: Layers = [
    *((512, 13), (256, 512), (128, 256)),
    *((512, 27 * 128), (27 * 128, 512)),
    *((1024, 27 * 128), (1024, 1024), (512, 1024), (256, 512), (1, 256)),
]
#: Samples a step: of one of eight devices, and of all.
DLRM_BATCHES = (8192, 65536)


def gemm(M: int, N: int, K: int, dtype: str = "bfloat16", layout: str = "nt") -> str:
    """As gemm spells it; ``nt`` is a linear layer. A single row or column is in order either way: ``n``."""
    a = "n" if 1 in (M, K) else layout[0]
    b = "n" if 1 in (K, N) else layout[1]
    return f"M={M},N={N},K={K},dtype={dtype}" + ("" if a + b == "nn" else f",layout={a}{b}")


def linear(model: Llama | DeepSeek, rows: Iterable[int]) -> tuple[str, ...]:
    layers = unique(layer for ways in TENSOR_PARALLEL for layer in model.layers(ways))
    return unique(gemm(M, N, K) for N, K in layers for M in rows)


def backward(batch: int, N: int, K: int) -> Iterator[str]:
    """What a linear layer's backward pass multiplies: the gradients of its input, and of its weight."""
    yield gemm(batch, K, N, layout="nn")
    yield gemm(N, K, batch, layout="tn")


def unique(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))


def attention(B: int, H: int, HKV: int, S: int, D: int, dtype: str = "bfloat16", rest: str = "causal=true") -> str:
    """As many queries as keys, S."""
    return f"B={B},H={H},HKV={HKV},SQ={S},SK={S},D={D},dtype={dtype}" + (f",{rest}" if rest else "")


def decode(B: int, H: int, HKV: int, SK: int, D: int = 128, page: int = 0, dtype: str = "bfloat16") -> str:
    """One query a sequence, room for SK keys; ``page`` keys a page, 0 for keys in a row."""
    return f"B={B},H={H},HKV={HKV},SK={SK},D={D},dtype={dtype}" + (f",page={page}" if page else "")


def doubling(first: int, last: int) -> tuple[int, ...]:
    """first, twice that, ... up to ``last``."""
    return tuple(first << shift for shift in range((last // first).bit_length()))


#: Keys of all sequences of a batch: at 8 heads of 128 they and their values take 2 GiB, and 8 GiB in float64.
MOST_KEYS = 2**19
#: Rows of a batch in prefill.
MOST_ROWS = 2**15

MATMUL: Lists = {
    **{f"{name}-decode": linear(model, DECODE_M) for name, model in MODELS.items()},
    **{f"{name}-prefill": linear(model, PREFILL_M) for name, model in MODELS.items()},
    "dlrm": unique(gemm(batch, N, K) for batch in DLRM_BATCHES for N, K in DLRM_LAYERS),
    "dlrm-backward": unique(
        problem for batch in DLRM_BATCHES for N, K in DLRM_LAYERS for problem in backward(batch, N, K)
    ),
    "split-k": tuple(gemm(M, M, K, "float16", "nn") for M in doubling(16, 64) for K in doubling(4096, 32768)),
    "squares": tuple(gemm(S, S, S, "float16", "nn") for S in range(256, 4096 + 1, 128)),
    "published": (
        *(gemm(8192, 8192, K, "float16") for K in doubling(512, 16384)),
        *(gemm(S, S, S, "float16", "nn") for S in (1024, 3072)),
        gemm(65536, 1024, 1024),
    ),
}

ATTENTION: Lists = {
    "fa3": tuple(
        attention(16384 // S, 2048 // D, 2048 // D, S, D, "float16", rest)
        for D in (64, 128, 256)
        for rest in ("", "causal=true")
        for S in doubling(512, 16384)
    ),
    "tlx": tuple(
        attention(4, 48, 48, S, 128, rest=rest) for rest in ("", "causal=true") for S in doubling(1024, 8192)
    ),
    "gqa": tuple(
        attention(B, H, 8, S, 128)
        for H in (32, 64, 128)
        for B in doubling(1, 8)
        for S in doubling(1024, MOST_ROWS // B)
    ),
    "window": tuple(
        attention(1, 32, 8, S, 128, rest=f"causal=true,window={window}")
        for window in (128, 1024, 4096)
        for S in (8192, 16384)
    ),
    # DeepSeek-V3's prefill: 128 + 64 wide keys, values of 128.
    "mla": tuple(attention(1, 128, 128, S, 192, rest="causal=true,DV=128") for S in doubling(1024, 8192)),
}

DECODE: Lists = {
    # There 8190 and 32760 keys, in pages that hold 8192 and 32768.
    "llama4-tp8": tuple(
        decode(B, 5, 1, SK, page=256) for B in doubling(16, 128) for SK in (1024, 2048, 4096, 8192, 32768)
    ),
    "grid": tuple(decode(B, 32, 8, SK) for B in doubling(1, 256) for SK in doubling(1024, MOST_KEYS // B)[:9]),
    **{
        f"paged-{page}": tuple(
            decode(B, 32, 8, SK, page=page) for B in doubling(1, 256) for SK in doubling(1024, MOST_KEYS // B)[:9:2]
        )
        for page in (16, 256)
    },
    "long": tuple(decode(1, 32, 4, SK) for SK in doubling(4096, 262144)),
}

#: Kernel -> problems whose spaces benchmarks/record.py records: from decode to prefill, and from short to long.
RECORDED: Mapping[str, tuple[str, ...]] = {
    "gemm": (
        *(gemm(1, 6144, 4096), gemm(16, 7168, 8192), gemm(64, 64, 16384, "float16", "nn")),
        *(gemm(128, 8192, 3584), gemm(2048, 4096, 4096), gemm(8192, 8192, 8192)),
    ),
    "attention": (
        attention(8, 32, 32, 2048, 64, "float16", ""),
        attention(4, 16, 16, 4096, 128, "float16"),
        attention(1, 32, 8, 4096, 128),
        attention(8, 8, 8, 2048, 256, "float16"),
    ),
    "decode_attention": (
        decode(64, 5, 1, 8192, page=256),
        decode(16, 32, 8, 4096, page=16),
        decode(1, 32, 4, 65536),
    ),
}
