"""Problems of ``block_sparse_attention_backward`` for the suites over kernels; see tests/problems/__init__.py."""

BIG = [
    "B=2,H=32,HKV=8,SQ=8192,SK=8192,D=128,BLOCK_Q=128,BLOCK_KV=128,density=20,dtype=bfloat16,causal=true",
    "B=1,H=8,HKV=8,SQ=2048,SK=2048,D=256,BLOCK_Q=64,BLOCK_KV=32,density=35,dtype=float32,documents=true",
    "B=1,H=8,HKV=8,SQ=4096,SK=4096,D=1,BLOCK_Q=16,BLOCK_KV=16,density=5,dtype=float16,per_head=true",
]
COMPILED = ["B=4,H=32,HKV=8,SQ=4096,SK=4096,D=64,BLOCK_Q=64,BLOCK_KV=64,density=20,dtype=float16,causal=true"]
# Its products are those of ``attention_backward``, whose instructions are looked for.
OPCODES = False
EMPTY = []
