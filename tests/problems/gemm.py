"""Problems of ``gemm`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = ["M=8192,N=8192,K=8192,dtype=float16", "M=1,N=1,K=1,dtype=float32", "M=0,N=5,K=0,dtype=bfloat16"]
COMPILED = [
    "M=4096,N=4096,K=4096,dtype=float16",
    "M=16,N=4096,K=4096,dtype=bfloat16,layout=nt",
    "M=500,N=300,K=700,dtype=float32,layout=tn,B=2",
]
EMPTY = [
    "M=0,N=32,K=16,dtype=float16",
    "M=32,N=0,K=16,dtype=float32",
    "M=32,N=16,K=0,dtype=bfloat16",
    "M=0,N=0,K=0,dtype=float32",
    "M=16,N=16,K=16,dtype=float16,B=0",
]
