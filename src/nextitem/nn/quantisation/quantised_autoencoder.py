"""QuantisedAutoEncoder: an autoencoder of content vectors whose latents are quantised into codes.

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
    """Module between encoder and decoder that quantises latents, such as LearntCodebooks or FiniteScalars."""

    def __call__(self, latent: Tensor) -> QuantisedLatent:
        """Quantise latents [B, E]."""

    def encode(self, latent: Tensor) -> Tensor:
        """Return the codes [B, M] of latents [B, E]."""

    def decode(self, codes: Tensor) -> Tensor:
        """Return the latents [B, E] that codes [B, M] represent."""


class QuantisedAutoEncoder(nn.Module):
    """Autoencoder with a quantizer between encoder and decoder.

    The encoder has linear layers of `widths` with ReLU between them, from content to latents. The decoder mirrors it.
    """

    def __init__(self, widths: Sequence[int], quantizer: nn.Module) -> None:
        super().__init__()
        self.encoder = _relu_layers(widths)
        self.quantizer = quantizer
        self.decoder = _relu_layers(widths[::-1])

    def forward(self, content: Tensor) -> tuple[Tensor, QuantisedLatent]:
        """Return the reconstruction loss (squared distance, mean over rows) and the quantised latents."""
        quantised = cast(Quantizer, self.quantizer)(self.encoder(content))
        return mean_square(content, self.decoder(quantised.latent)), quantised

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Return the codes [B, M] of content vectors [B, D]."""
        return cast(Quantizer, self.quantizer).encode(self.encoder(content))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the reconstructed content vectors [B, D] of codes [B, M]."""
        reconstruction: Tensor = self.decoder(cast(Quantizer, self.quantizer).decode(codes))
        return reconstruction


def _relu_layers(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for below, above in pairwise(widths):
        layers += [nn.Linear(below, above), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
