"""Problems of ``embedding_bag_backward`` for the suites over all kernels; see tests/problems/__init__.py."""

BIG = [
    "B=8192,V=204184588,D=128,L=8,dtype=float32,T=26,ragged=true",
    "B=65536,V=1000,D=192,L=32,dtype=float16,mode=mean",
    "B=0,V=0,D=1,L=0,dtype=float32",
]
COMPILED = [
    "B=8192,V=204184588,D=128,L=8,dtype=float16,T=26,padded=true,ragged=true",
    "B=4,V=1000,D=200,L=4096,dtype=float32,weighted=true,ragged=true",
]
#: Nothing in it is hard to compile, and there are two launches.
COMPILED_SAMPLES = 1
EMPTY = [
    "B=0,V=10,D=16,L=0,dtype=float16",
    "B=4,V=0,D=16,L=0,dtype=float32,mode=mean,ragged=true",
    "B=3,V=1,D=8,L=2,dtype=bfloat16,padded=true",
]
OPCODES = False
