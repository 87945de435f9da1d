"""Problems of ``attention_varlen`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = ["B=8,H=32,HKV=8,SQ=4096,SK=4096,D=128,dtype=bfloat16,causal=true"]
COMPILED = ["B=8,H=32,HKV=8,SQ=2048,SK=2048,D=128,dtype=bfloat16,causal=true"]
EMPTY = []
#: It runs the code of the dense kernel.
OPCODES = False
