"""``grouped_gemm`` and its gradients in plain torch, and torch's own grouped product as another road to both."""

from __future__ import annotations

import torch

from autotune.data import ITEMSIZE, Device, Problem
from autotune.kernels._gemm_reference import activate
from autotune.kernels._grouped_gemm_operator import check, check_values, result_shape


def spans(offs: torch.Tensor) -> list[tuple[int, int]]:
    """Where each group begins and ends; reads the device."""
    ends = offs.tolist()
    return list(zip([0, *ends], ends, strict=False))


def reference(
    x: torch.Tensor,
    w: torch.Tensor,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """One product a group. What follows it is in float32 and rounded once, in float64 where ``x`` is."""
    check(x, w, offs, bias, activation)
    check_values(offs, x.shape[0])
    wide = torch.promote_types(x.dtype, torch.float32)
    out = x.new_zeros(result_shape(x, w, activation))
    for group, (begin, end) in enumerate(spans(offs)):
        rows, weight = x[begin:end], w[group]
        if bias is None and activation is None:
            out[begin:end] = rows @ weight
            continue
        product = rows.to(wide) @ weight.to(wide)
        out[begin:end] = activate(product if bias is None else product + bias[group].to(wide), activation)
    return out


def by_torch(
    x: torch.Tensor,
    w: torch.Tensor,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """torch's product in one launch, and what follows it in others; reads no device where it is offered."""
    check(x, w, offs, bias, activation)
    check_values(offs, x.shape[0])
    product = torch._grouped_mm(in_rows(x), w, offs=offs.int())
    row = torch.arange(x.shape[0], dtype=torch.int32, device=x.device)
    if bias is not None:
        # Rows of no group take the last one's, and are dropped.
        group = torch.searchsorted(offs, row, right=True).clamp(max=w.shape[0] - 1)
        product = product + bias[group]
    # torch leaves rows of no group as they were in memory, and pads short ones.
    return activate(product, activation).masked_fill((row >= offs[-1])[:, None], 0).contiguous()


def in_rows(tokens: torch.Tensor) -> torch.Tensor:
    """The tokens, or a copy if they are not contiguous rows, apart, at multiples of 16 bytes.

    In columns, an assertion on the device fails in torch where a group begins at no multiple of 16 bytes.
    """
    distance, step = tokens.stride()
    if step == 1 and distance >= tokens.shape[1] and distance * tokens.element_size() % 16 == 0:
        return tokens
    return tokens.clone(memory_format=torch.contiguous_format)


def torch_lacks(problem: Problem, device: Device) -> str | None:
    """Why torch's grouped product can't compute ``x @ w``, or would read the device, in torch 2.10 to 2.13."""
    why, layout = lacks_kernel(problem, device), problem.get("layout", "nn")
    if why is not None or (layout in ("nn", "nt") and rows_fit(problem, "K", "N" if layout == "nn" else "K")):
        return why
    return "torch takes contiguous rows of x, and rows or columns of w, of a multiple of 16 bytes"


def lacks_kernel(problem: Problem, device: Device) -> str | None:
    if not (problem.integer("T") and problem.integer("G") and problem.integer("K") and problem.integer("N")):
        return "torch's grouped product takes no empty tensor"
    if device.arch in ("interpreter", "cpu"):
        return None
    if problem["dtype"] != "bfloat16" or not device.arch.startswith(("sm_90", "sm_10")):
        return f"torch loops over groups on the host for {problem['dtype']} on {device.arch}"
    # CUTLASS's array of pointers is that long.
    return None if problem.integer("G") < 1024 else f"torch takes up to 1023 groups, and G={problem['G']}"


def rows_fit(problem: Problem, *lengths: str) -> bool:
    """Whether rows of these fields' lengths start where torch takes them."""
    size = ITEMSIZE[str(problem["dtype"])]
    return bool(problem.get("aligned", True)) and not any(problem.integer(name) * size % 16 for name in lengths)


def baseline(
    x: torch.Tensor,
    w: torch.Tensor,
    offs: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """torch's grouped product where it takes the tensors, a loop of products where not."""
    try:
        return by_torch(x, w, offs, bias, activation)
    except RuntimeError:
        return reference(x, w, offs, bias, activation)
