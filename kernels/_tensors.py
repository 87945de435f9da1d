"""Facts of tensors that kernels' problems name: dtype, layout, alignment. Host-static, no device reads."""

from __future__ import annotations

import itertools

import torch

from autotune.data import ITEMSIZE

#: torch.float16 -> "float16", for the dtypes the kernels take.
DTYPE_NAMES = {getattr(torch, name): name for name in ITEMSIZE}
#: What operators without integers take: kernels all but float64, torch each.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def dtype_name(**tensors: torch.Tensor) -> str:
    """The one dtype the tensors share.

    :raises ValueError: if they differ, no kernel takes it, or a tensor is not dense.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} is {tensor.layout}; the kernels take dense tensors, call to_dense() first")
    (first, tensor), *others = tensors.items()
    for name, other in others:
        if other.dtype != tensor.dtype:
            raise ValueError(f"{name} is {other.dtype} but {first} is {tensor.dtype}; convert one of them")
        if other.device != tensor.device:
            raise ValueError(f"{name} is on {other.device} but {first} is on {tensor.device}; move one of them")
    if tensor.dtype not in DTYPE_NAMES:
        raise ValueError(f"{first} is {tensor.dtype}; the kernels take {', '.join(ITEMSIZE)}")
    return DTYPE_NAMES[tensor.dtype]


def check_dense_floats(**tensors: torch.Tensor) -> None:
    """:raises ValueError: if one is not dense, or of a dtype that neither a kernel nor torch computes."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} is {tensor.layout}; it must be dense, call to_dense() first")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}; it must be float16, bfloat16, float32 or float64")


def matrix_layout(matrix: torch.Tensor) -> str:
    """``n`` if rows are contiguous, ``t`` if columns are, ``s`` if neither; of the last two dimensions."""
    if matrix.stride(-1) == 1 or matrix.size(-1) <= 1:
        return "n"
    return "t" if matrix.stride(-2) == 1 or matrix.size(-2) <= 1 else "s"


def foldable(tensor: torch.Tensor) -> bool:
    """Whether all but the last dimension are evenly spaced rows."""
    dims = [
        (size, stride) for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size != 1
    ]
    return all(outer[1] == inner[0] * inner[1] for outer, inner in itertools.pairwise(dims))


def heads_layout(*tensors: torch.Tensor) -> str:
    """The order in memory: ``bhsd``, ``bshd`` (heads split from a projection), or ``s`` for any other."""
    orders = set()
    for tensor in tensors:
        by_head, by_row = tensor.stride(1), tensor.stride(2)
        if tensor.stride(3) != 1 and tensor.size(3) > 1:
            orders.add("s")
        elif tensor.size(1) > 1 and tensor.size(2) > 1:
            orders.add("bhsd" if by_head >= by_row else "bshd")
    return orders.pop() if len(orders) == 1 else "s" if orders else "bhsd"


def aligned(*tensors: torch.Tensor) -> bool:
    """Whether each tensor is as well aligned for 16-byte accesses as a fresh contiguous one of its sizes.

    Alignment that the sizes alone decide (a row of 57 elements) is no trait: the sizes say it already.
    """
    for tensor in tensors:
        if tensor.data_ptr() % 16:
            return False
        for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
            loose = stride * tensor.element_size() % 16 and stride != 1 and size > 1
            if loose and not tensor.is_contiguous() and not tensor.mT.is_contiguous():
                return False
    return True


def random(*sizes: int, dtype: str, device: str, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers, drawn in float32 on the CPU so that every device sees the same ones."""
    drawn = torch.randn(*sizes, generator=generator)
    return drawn.to(device=device, dtype=getattr(torch, dtype))


def relaid(matrix: torch.Tensor, layout: str, misaligned: bool = False) -> torch.Tensor:
    """The same matrix (last two dimensions) with strides of ``layout``, and one element off if asked."""
    if layout == "t":
        return relaid(matrix.mT, "n", misaligned).mT
    *batch, rows, columns = matrix.shape
    step = 2 if layout == "s" else 1
    offset = 1 if misaligned else 0
    storage = matrix.new_empty(matrix.numel() * step + offset)
    view = storage[offset:].view(*batch, rows, columns * step)[..., ::step]
    return view.copy_(matrix)
