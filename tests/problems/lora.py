"""Problems of ``lora`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    "T=64,K=4096,N=4096,R=16,A=1024,dtype=bfloat16,base=true",
    "T=8192,K=8192,N=28672,R=64,A=128,dtype=float16,base=true",
    "T=1,K=128256,N=1,R=1,A=1,dtype=float32",
    "T=4096,K=4096,N=4096,R=256,A=32,dtype=float32,layout=tt",
    "T=33,K=2049,N=2049,R=100,A=3,dtype=bfloat16,layout=ss,aligned=false",
]
COMPILED = [
    "T=4096,K=4096,N=4096,R=16,A=32,dtype=float16,base=true",
    "T=32,K=4096,N=11008,R=64,A=2048,dtype=bfloat16",
    "T=16,K=2049,N=4096,R=8,A=128,dtype=float32,layout=tt",
]
EMPTY = [
    "T=0,K=32,N=32,R=8,A=2,dtype=float16",
    "T=3,K=32,N=0,R=8,A=2,dtype=float32",
    "T=3,K=0,N=32,R=8,A=2,dtype=float16",
    "T=3,K=32,N=16,R=8,A=0,dtype=bfloat16",
]
