"""Problems of ``attention_backward`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    "B=4,H=32,HKV=8,SQ=4096,SK=4096,D=128,dtype=bfloat16,causal=true",
    "B=1,H=8,HKV=8,SQ=2048,SK=2048,D=256,dtype=float32",
    "B=1,H=1,HKV=1,SQ=1,SK=1,D=1,dtype=float32",
]
COMPILED = ["B=4,H=32,HKV=8,SQ=2048,SK=2048,D=64,dtype=float16,causal=true"]
COMPILED_SAMPLES = 1
EMPTY = []
