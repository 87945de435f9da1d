"""Problems of ``attention`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    "B=4,H=32,HKV=8,SQ=4096,SK=4096,D=128,dtype=bfloat16,causal=true",
    "B=1,H=1,HKV=1,SQ=1,SK=1,D=1,dtype=float32",
    "B=1,H=8,HKV=8,SQ=2048,SK=2048,D=256,dtype=float32",
    "B=1,H=8,HKV=8,SQ=2048,SK=2048,D=256,dtype=float16",
]
COMPILED = [
    "B=4,H=32,HKV=8,SQ=2048,SK=2048,D=128,dtype=bfloat16,causal=true,layout=bshd",
    "B=4,H=32,HKV=32,SQ=2048,SK=2048,D=64,dtype=float16",
    "B=1,H=4,HKV=4,SQ=512,SK=500,D=80,dtype=float32,causal=true",
]
EMPTY = [
    "B=0,H=2,HKV=2,SQ=16,SK=16,D=16,dtype=float16",
    "B=1,H=2,HKV=2,SQ=0,SK=16,D=16,dtype=float32",
    "B=1,H=2,HKV=1,SQ=16,SK=0,D=16,dtype=float16,causal=true",
]
