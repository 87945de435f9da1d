"""Problems of ``grouped_gemm_weight_gradient`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    "T=32768,K=7168,N=4096,G=256,dtype=bfloat16",
    "T=1,K=1,N=1,G=5000,dtype=float32",
    "T=4096,K=1001,N=999,G=8,dtype=float32,layout=ss,aligned=false",
]
COMPILED = [
    "T=8192,K=2048,N=4096,G=16,dtype=bfloat16",
    "T=500,K=300,N=700,G=7,dtype=float32",
]
COMPILED_SAMPLES = 1
EMPTY = [
    "T=0,K=16,N=32,G=3,dtype=float16",
    "T=20,K=0,N=32,G=3,dtype=float32",
    "T=20,K=16,N=32,G=0,dtype=float32",
]
