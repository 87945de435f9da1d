"""Problems of ``bsr_matmul`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    "M=8192,N=8192,K=8192,BLOCK_ROWS=128,BLOCK_COLUMNS=128,density=10,dtype=float16",
    "M=1,N=256,K=256,BLOCK_ROWS=256,BLOCK_COLUMNS=256,density=100,dtype=float32",
    "M=8192,N=8192,K=8192,BLOCK_ROWS=16,BLOCK_COLUMNS=16,density=1,dtype=float32",
    "M=512,N=14336,K=4096,BLOCK_ROWS=16,BLOCK_COLUMNS=64,density=5,dtype=bfloat16,imbalance=16,transposed=true",
]
COMPILED = [
    "M=4096,N=4096,K=4096,BLOCK_ROWS=64,BLOCK_COLUMNS=64,density=20,dtype=float16",
    "M=500,N=4096,K=4096,BLOCK_ROWS=16,BLOCK_COLUMNS=128,density=10,dtype=bfloat16,imbalance=4,bias=true,activation=gelu",
    "M=4096,N=4096,K=4096,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=50,dtype=float32,layout=t,by_column=true",
    "M=1024,N=4096,K=4096,BLOCK_ROWS=128,BLOCK_COLUMNS=64,density=20,dtype=float16,imbalance=2,transposed=true",
]
COMPILED_SAMPLES = 1
EMPTY = [
    "M=0,N=32,K=32,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=100,dtype=float16",
    "M=16,N=0,K=32,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=100,dtype=float32",
    "M=16,N=32,K=0,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=100,dtype=float32",
    "M=16,N=64,K=64,BLOCK_ROWS=32,BLOCK_COLUMNS=32,density=1,dtype=float16",
]
