"""``bsr_matmul`` in torch: what its results are held to, what torch's users run, and other roads to the result."""

from __future__ import annotations

import math
from typing import Any

import torch

from autotune.data import Device, Problem
from autotune.kernel import Provider
from autotune.kernels._bsr import BsrWeight
from autotune.kernels._bsr_matmul_kept import kept
from autotune.kernels._bsr_matmul_operator import check
from autotune.kernels._gemm_reference import finished


def reference(
    x: torch.Tensor,
    w_bsr: torch.Tensor | BsrWeight,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    transposed: bool = False,
    by_column: bool = False,
) -> torch.Tensor:
    """By the dense matrix. What follows the product is added in float32 at least, and the result rounded once."""
    weight = BsrWeight.of(w_bsr)
    check(x, weight, bias, activation, transposed, by_column)
    matrix = weight.dense() if transposed else weight.dense().mT
    if bias is None and activation is None:
        return _laid(torch.matmul(x, matrix), by_column)
    wide = torch.promote_types(x.dtype, torch.float32)
    result = finished(torch.matmul(x.to(wide), matrix.to(wide)), bias, activation, None)
    return _laid(result.to(x.dtype), by_column)


def _laid(result: torch.Tensor, by_column: bool) -> torch.Tensor:
    """In memory as the kernel's result is."""
    return result.mT.contiguous().mT if by_column else result.contiguous()


def _product(
    x: torch.Tensor, matrix: Any, bias: torch.Tensor | None, activation: str | None, by_column: bool
) -> torch.Tensor:
    """act(x @ matrix.T + bias) by torch's products, each further step by itself; in memory as the kernel's."""
    if by_column:
        return _laid(finished(torch.matmul(matrix, x.mT).mT, bias, activation, None), by_column)
    return _laid(finished(torch.nn.functional.linear(x, matrix, bias), None, activation, None), by_column)


def _product_of_rows(
    x: torch.Tensor, matrix: Any, bias: torch.Tensor | None, activation: str | None, by_column: bool
) -> torch.Tensor:
    """The same for matrices that torch multiplies by no batch."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    product = _product(rows, matrix, bias, activation, by_column)
    return _laid(product.reshape(*x.shape[:-1], matrix.shape[0]), by_column)


def _dense(
    x: torch.Tensor,
    w_bsr: torch.Tensor | BsrWeight,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    transposed: bool = False,
    by_column: bool = False,
) -> torch.Tensor:
    weight = BsrWeight.of(w_bsr)
    check(x, weight, bias, activation, transposed, by_column)
    matrix = kept(weight, BsrWeight.dense)
    return _product(x, matrix.mT if transposed else matrix, bias, activation, by_column)


def _torch_bsr(
    x: torch.Tensor,
    w_bsr: torch.Tensor | BsrWeight,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    transposed: bool = False,
    by_column: bool = False,
) -> torch.Tensor:
    weight = BsrWeight.of(w_bsr)
    check(x, weight, bias, activation, transposed, by_column)
    matrix = kept(weight, BsrWeight.sparse) if isinstance(w_bsr, BsrWeight) else w_bsr
    return _product_of_rows(x, matrix, bias, activation, by_column)


def _lacks_torch_bsr(problem: Problem, device: Device) -> str | None:
    if problem.get("transposed"):
        return "torch multiplies by no block-sparse matrix from the right"
    if problem.integer("B", 1) > 1:
        return "torch multiplies no batch by a block-sparse matrix"
    square = problem["BLOCK_ROWS"] == problem["BLOCK_COLUMNS"]
    if device.arch == "interpreter" and (problem["dtype"] != "float32" or not square):
        return "torch's block-sparse product on a CPU takes float32 and square blocks"
    return None


def _cusparselt(
    x: torch.Tensor,
    w_bsr: torch.Tensor | BsrWeight,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    transposed: bool = False,
    by_column: bool = False,
) -> torch.Tensor:
    weight = BsrWeight.of(w_bsr)
    check(x, weight, bias, activation, transposed, by_column)
    return _product_of_rows(x, kept(weight, _compressed), bias, activation, by_column)


def _compressed(weight: BsrWeight) -> torch.Tensor:
    return torch.sparse.to_sparse_semi_structured(weight.dense())


def _lacks_cusparselt(problem: Problem, device: Device) -> str | None:
    if not problem.get("semi_structured"):
        return "the weight keeps more than 2 of 4, or is trained, or torch has no cuSPARSELt for it here"
    if problem.integer("B", 1) > 1:
        return "cuSPARSELt multiplies one matrix, not a batch"
    return None


PROVIDERS = {
    "dense": Provider(_dense),
    "torch_bsr": Provider(_torch_bsr, _lacks_torch_bsr),
    "cusparselt": Provider(_cusparselt, _lacks_cusparselt),
}


def baseline(
    x: torch.Tensor,
    w_bsr: torch.Tensor | BsrWeight,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    transposed: bool = False,
    by_column: bool = False,
) -> torch.Tensor:
    """torch's own block-sparse product, where it has one, else the dense one."""
    block_rows, block_columns = BsrWeight.of(w_bsr).block
    lacks_on_cpu = x.dtype != torch.float32 or block_rows != block_columns
    lacks = transposed or (by_column and x.dim() > 2) or (not x.is_cuda and lacks_on_cpu)
    return (_dense if lacks else _torch_bsr)(x, w_bsr, bias, activation, transposed, by_column)
