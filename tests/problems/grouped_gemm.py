"""Problems of ``grouped_gemm`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    # A layer of DeepSeek-V3 and of Llama-4 Scout, and a few tokens of the former.
    "T=32768,K=7168,N=4096,G=256,dtype=bfloat16,layout=nt,activation=swiglu",
    "T=8192,K=5120,N=16384,G=16,dtype=float16",
    "T=64,K=7168,N=4096,G=256,dtype=bfloat16,layout=nt",
    "T=1,K=1,N=1,G=5000,dtype=float32",
    "T=4096,K=1001,N=999,G=8,dtype=float32,layout=ss,aligned=false",
]
COMPILED = [
    "T=8192,K=2048,N=4096,G=16,dtype=bfloat16,layout=nt",
    "T=64,K=4096,N=2048,G=64,dtype=float16,bias=true,activation=swiglu",
    "T=500,K=700,N=300,G=7,dtype=float32,layout=nt",
]
EMPTY = [
    "T=0,K=16,N=32,G=3,dtype=float16",
    "T=20,K=0,N=32,G=3,dtype=float32",
    "T=20,K=16,N=0,G=3,dtype=bfloat16",
    "T=20,K=16,N=32,G=0,dtype=float32",
]
