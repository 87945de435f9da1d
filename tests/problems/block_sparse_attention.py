"""Problems of ``block_sparse_attention`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    "B=4,H=32,HKV=8,SQ=8192,SK=8192,D=128,BLOCK_Q=128,BLOCK_KV=128,density=10,dtype=bfloat16,causal=true",
    "B=1,H=1,HKV=1,SQ=1,SK=1,D=1,BLOCK_Q=16,BLOCK_KV=16,density=100,dtype=float32,plain=true",
    "B=1,H=8,HKV=8,SQ=2048,SK=2048,D=256,BLOCK_Q=64,BLOCK_KV=64,density=20,dtype=float32,window=true",
    "B=1,H=8,HKV=1,SQ=2048,SK=2048,D=256,BLOCK_Q=16,BLOCK_KV=16,density=1,dtype=float16,per_head=true",
]
COMPILED = [
    "B=1,H=16,HKV=2,SQ=4096,SK=4000,D=64,BLOCK_Q=16,BLOCK_KV=64,density=5,dtype=float16,causal=true,window=true,"
    "documents=true",
    "B=1,H=4,HKV=4,SQ=512,SK=500,D=80,BLOCK_Q=32,BLOCK_KV=32,density=20,dtype=float32",
]
EMPTY = [
    "B=0,H=2,HKV=2,SQ=16,SK=16,D=16,BLOCK_Q=16,BLOCK_KV=16,density=100,dtype=float16,plain=true",
    "B=1,H=2,HKV=2,SQ=0,SK=16,D=16,BLOCK_Q=16,BLOCK_KV=16,density=100,dtype=float32,plain=true",
    "B=1,H=2,HKV=1,SQ=16,SK=0,D=16,BLOCK_Q=16,BLOCK_KV=16,density=100,dtype=float16,plain=true",
    # No block at all.
    "B=1,H=2,HKV=1,SQ=64,SK=64,D=16,BLOCK_Q=32,BLOCK_KV=32,density=1,dtype=float16",
]
