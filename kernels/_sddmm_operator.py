"""The torch side of ``sddmm``: what its arguments must be, and the operator."""

from __future__ import annotations

from typing import Any

import torch

from autotune.kernel import Operator, Tensors
from autotune.kernels._bsr import BsrWeight


def check(
    a: torch.Tensor,
    b: torch.Tensor,
    crow: torch.Tensor,
    columns: torch.Tensor,
    block_rows: int,
    block_columns: int,
) -> None:
    """All that can be said without reading numbers on a device; ``pattern_of`` says the rest, once a pattern.

    :raises ValueError: if ranks, sizes, dtypes or devices don't fit together.
    """
    for name, tensor in (("a", a), ("b", b)):
        if tensor.layout != torch.strided or tensor.dim() != 2:
            raise ValueError(f"{name} is {tensor.layout} {tuple(tensor.shape)}; it must be a dense matrix")
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"a is {tuple(a.shape)} and b is {tuple(b.shape)}; a's columns must be b's rows")
    if a.dtype != b.dtype:
        raise ValueError(f"a is {a.dtype} but b is {b.dtype}; convert one of them")
    for name, tensor in (("b", b), ("the pattern's crow", crow), ("the pattern's columns", columns)):
        if tensor.device != a.device:
            raise ValueError(f"{name} is on {tensor.device} but a is on {a.device}; move one of them")
    for name, size, block in (("rows of a", a.shape[0], block_rows), ("columns of b", b.shape[1], block_columns)):
        if block < 1 or size % block:
            raise ValueError(f"{name} are {size} and blocks have {block}; the second must divide the first")
    rows = a.shape[0] // block_rows
    if crow.shape != (rows + 1,):
        raise ValueError(
            f"the pattern's crow is {tuple(crow.shape)}; a has {rows} block rows, so it must be ({rows + 1},)"
        )


def sddmm(pattern_bsr: torch.Tensor | BsrWeight, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | BsrWeight:
    """The blocks of ``a @ b`` that a pattern has, as torch.sparse.sampled_addmm with ``beta=0``.

    :param pattern_bsr: (M, N), ``torch.sparse_bsr``, or a :class:`BsrWeight` where torch.compile traces. Where it
        has blocks is what counts; their values are not read.
    :param a: (M, K), any strides
    :param b: (K, N), any strides
    :return: (M, N) of the pattern's kind, with its blocks, in the dtype of ``a``

    Blocks of powers of two from 16 to 256 in float16, bfloat16 and float32 run the tuned kernel, others torch.
    Accumulates in float32 without tf32, whatever autocast says. Equal from run to run. Only the blocks asked for
    are computed. Differentiable in ``a`` and ``b`` by products with the block-sparse gradient.

    The first call with a pattern checks it, for which the host waits for the device; keep the pattern.

    :raises ValueError: if the pattern is not block-sparse, its blocks are repeated or out of order, or sizes,
        dtypes or devices don't fit together.
    """
    pattern = BsrWeight.of(pattern_bsr, "pattern_bsr")
    pattern.check("pattern_bsr")
    if a.dim() != 2 or b.dim() != 2 or pattern.shape != (a.shape[0], b.shape[1]):
        raise ValueError(
            f"pattern_bsr is {tuple(pattern.shape)}, a is {tuple(a.shape)} and b is {tuple(b.shape)}; "
            "it must have a's rows and b's columns"
        )
    check(a, b, pattern.crow, pattern.columns, *pattern.block)
    values: torch.Tensor = torch.ops.autotune.sddmm(pattern.crow, pattern.columns, a, b, *pattern.block)
    result = pattern._replace(values=values)
    return result if isinstance(pattern_bsr, BsrWeight) else result.sparse()


def _fake(
    crow: torch.Tensor,
    columns: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    block_rows: int,
    block_columns: int,
) -> torch.Tensor:
    return a.new_empty(columns.shape[0], block_rows, block_columns)


def _backward(gradients: Tensors, inputs: tuple[Any, ...], results: Tensors) -> tuple[torch.Tensor | None, ...]:
    """With S the block-sparse gradient: S @ b.T, as (b @ S.T).T, and a.T @ S."""
    (gradient,), (crow, columns, a, b, _, _) = gradients, inputs
    weight = crow, columns, gradient.contiguous(), a.shape[0], b.shape[1], None, None
    product = torch.ops.autotune.bsr_matmul
    grad_a = product(b, *weight, False).mT if a.requires_grad else None
    grad_b = product(a.mT, *weight, True) if b.requires_grad else None
    return None, None, grad_a, grad_b, None, None


OPERATOR = Operator(
    front=sddmm,
    schema=("(Tensor crow, Tensor columns, Tensor a, Tensor b, SymInt block_rows, SymInt block_columns) -> Tensor"),
    fake=_fake,
    backward=_backward,
    # The dispatcher looks at the first argument, which a is.
    kernel_args=lambda crow, columns, a, b, *block: (a, b, crow, columns, *block),
)
