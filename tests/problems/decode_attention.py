"""Problems of ``decode_attention`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    "B=16,H=32,HKV=8,SK=8192,D=128,dtype=bfloat16,page=16",
    "B=1,H=64,HKV=1,SK=131072,D=256,dtype=float32",
    "B=0,H=1,HKV=1,SK=0,D=1,dtype=float16",
]
COMPILED = [
    "B=16,H=5,HKV=1,SK=4096,D=128,dtype=float16,page=16,window=1024",
    "B=4,H=32,HKV=8,SK=8192,D=128,dtype=bfloat16",
    "B=2,H=6,HKV=2,SK=1000,D=200,dtype=float32",
]
EMPTY = []
#: The 16 rows of a group of heads are too few for the others.
OPCODES = "few"
#: What it costs in other sizes is that of the lengths that inputs() draws.
GROWS = "H"
