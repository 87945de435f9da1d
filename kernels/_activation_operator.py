"""Gradients of the activations in the epilogues of products, in torch."""

from __future__ import annotations

import torch

aten = torch.ops.aten


def activation_gradient(activation: str, gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of an activation's argument ``x``."""
    if activation == "relu":
        return gradient * (x > 0)
    if activation in ("gelu", "gelu_tanh"):
        exact: torch.Tensor = aten.gelu_backward(
            gradient, x, approximate="tanh" if activation == "gelu_tanh" else "none"
        )
        return exact
    if activation == "silu":
        return _silu_gradient(gradient, x)
    gate, up = x.chunk(2, dim=-1)
    return torch.cat([_silu_gradient(gradient * up, gate), gradient * torch.nn.functional.silu(gate)], dim=-1)


def _silu_gradient(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    # torch's own, aten.silu_backward, has no derivative.
    sigmoid = torch.sigmoid(x)
    return gradient * sigmoid * (1 + x * (1 - sigmoid))
