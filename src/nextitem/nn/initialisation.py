"""Weight initialisation that several models share."""

from __future__ import annotations

from torch import nn


def truncated_normal_(module: nn.Module, *, std: float = 0.02) -> None:
    """Fill matrices and tables from a truncated normal and biases with 0, in place.

    The padding row of an embedding table becomes 0.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() >= 2:
            nn.init.trunc_normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight[part.padding_idx])
