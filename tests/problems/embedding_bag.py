"""Problems of ``embedding_bag`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    # TBE's benchmark (two tables of 10**7 rows), all tables of DLRM v2, one huge bag, and next to nothing.
    "B=65536,V=20000000,D=192,L=32,dtype=float16,T=2,ragged=true",
    "B=8192,V=204184588,D=128,L=8,dtype=float32,T=26,ragged=true",
    "B=1,V=1000000,D=64,L=1000000,dtype=bfloat16,mode=mean,padded=true",
    "B=0,V=0,D=1,L=0,dtype=float32",
]
COMPILED = [
    "B=8192,V=204184588,D=128,L=8,dtype=float16,T=26,padded=true,ragged=true",
    "B=1000,V=100000,D=200,L=50,dtype=float32,mode=mean,index=int32",
]
#: Nothing in it is hard to compile, and there are two launches.
COMPILED_SAMPLES = 1
EMPTY = [
    "B=0,V=10,D=16,L=0,dtype=float16",
    "B=4,V=10,D=16,L=0,dtype=float32",
    "B=4,V=0,D=16,L=0,dtype=bfloat16,mode=mean,ragged=true",
    "B=3,V=1,D=8,L=2,dtype=float16,padded=true",
]
OPCODES = False
