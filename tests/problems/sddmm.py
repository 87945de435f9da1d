"""Problems of ``sddmm`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    "M=8192,N=8192,K=8192,BLOCK_ROWS=128,BLOCK_COLUMNS=128,density=10,dtype=float16",
    "M=256,N=256,K=1,BLOCK_ROWS=256,BLOCK_COLUMNS=256,density=100,dtype=float32",
    "M=4096,N=4096,K=65536,BLOCK_ROWS=16,BLOCK_COLUMNS=16,density=1,dtype=float32,layout=tn",
    "M=256,N=512,K=1000,BLOCK_ROWS=256,BLOCK_COLUMNS=32,density=50,dtype=bfloat16,layout=ts,aligned=false",
]
COMPILED = [
    "M=4096,N=4096,K=4096,BLOCK_ROWS=64,BLOCK_COLUMNS=64,density=20,dtype=float16",
    "M=1024,N=1024,K=16384,BLOCK_ROWS=32,BLOCK_COLUMNS=128,density=10,dtype=bfloat16,layout=tn",
    "M=4096,N=4096,K=500,BLOCK_ROWS=16,BLOCK_COLUMNS=16,density=50,dtype=float32,layout=nt",
]
EMPTY = [
    "M=0,N=32,K=32,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=100,dtype=float16",
    "M=32,N=32,K=0,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=100,dtype=float32",
    "M=64,N=64,K=32,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=1,dtype=bfloat16",
]
