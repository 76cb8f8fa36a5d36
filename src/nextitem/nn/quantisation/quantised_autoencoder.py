"""QuantisedAutoEncoder: content to a latent space, through codes, and back.

Shapes: B rows, D content width, E latent width, M levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from nextitem.nn.quantisation.learnt_codebooks import QuantisedLatent, mean_square


class Quantizer(Protocol):
    """What lies between encoder and decoder, as a module: LearntCodebooks, FiniteScalars."""

    def __call__(self, latent: Tensor) -> QuantisedLatent:
        """Quantise latents [B, E]."""

    def encode(self, latent: Tensor) -> Tensor:
        """Codes [B, M] of latents [B, E]."""

    def decode(self, codes: Tensor) -> Tensor:
        """Latents [B, E] of codes [B, M]."""


class QuantisedAutoEncoder(nn.Module):
    """ReLU layers of the given widths down to the latent space, a quantizer, and the mirror image of the layers."""

    def __init__(self, widths: Sequence[int], quantizer: nn.Module) -> None:
        super().__init__()
        self.encoder = _relu_layers(widths)
        self.quantizer = quantizer
        self.decoder = _relu_layers(widths[::-1])

    def forward(self, content: Tensor) -> tuple[Tensor, QuantisedLatent]:
        """The mean squared distance of rows to what comes back, and what the quantizer made of their latents."""
        passed = cast(Quantizer, self.quantizer)(self.encoder(content))
        return mean_square(content, self.decoder(passed.latent)), passed

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Codes [B, M] of content vectors [B, D]."""
        return cast(Quantizer, self.quantizer).encode(self.encoder(content))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Content vectors [B, D] of codes [B, M]."""
        rebuilt: Tensor = self.decoder(cast(Quantizer, self.quantizer).decode(codes))
        return rebuilt


def _relu_layers(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for below, above in pairwise(widths):
        layers += [nn.Linear(below, above), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
