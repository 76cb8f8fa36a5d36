"""FiniteScalars: a quantizer that rounds each dimension of a latent to a few values, without a codebook to learn.

Shapes: B rows, E latent width, M levels, S scalars of each level (E = M S).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nextitem.nn.quantisation.learnt_codebooks import QuantisedLatent


class FiniteScalars(nn.Module):
    """Finite scalar quantizer with M levels of S scalars each.

    Scalar s has `values[s]` possible values, so the number of codes of a level is the product of `values`.

    Mentzer et al., arXiv 2309.15505, section 3.1: z -> round(half tanh(z + shift) - offset), with the gradient of the
    expression inside round. The result is scaled to [-1, 1] for the decoder.
    """

    def __init__(self, levels: int, values: tuple[int, ...]) -> None:
        super().__init__()
        self.levels, self.values = levels, values

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return (math.prod(self.values),) * self.levels

    def forward(self, latent: Tensor) -> QuantisedLatent:
        """Quantise `latent [B, E]` by rounding; codebook and commitment loss are 0."""
        bounded = self._bounded(latent)
        rounded = bounded + (bounded.round() - bounded).detach()
        no_loss = latent.new_zeros(())
        return QuantisedLatent(self._codes(rounded), rounded / self._half(rounded), no_loss, no_loss)

    def encode(self, latent: Tensor) -> Tensor:
        """Return the codes [B, M] of `latent [B, E]`."""
        return self._codes(self._bounded(latent).round())

    def decode(self, codes: Tensor) -> Tensor:
        """Return the latents [B, E] that `codes [B, M]` represent."""
        digits = torch.stack([codes // place % count for place, count in self._digits()], dim=2)
        half = torch.tensor([count // 2 for count in self.values], device=codes.device)
        whole = (digits - half).flatten(1).float()
        return whole / self._half(whole)

    def _bounded(self, latent: Tensor) -> Tensor:
        count = torch.tensor(self.values * self.levels, dtype=latent.dtype, device=latent.device)
        half = (count - 1) * (1 + 1e-3) / 2
        offset = (count % 2 == 0) * 0.5  # an even number of integers cannot be symmetric about 0
        return torch.tanh(latent + torch.atanh(offset / half)) * half - offset

    def _half(self, like: Tensor) -> Tensor:
        return torch.tensor([count // 2 for count in self.values] * self.levels, dtype=like.dtype, device=like.device)

    def _codes(self, rounded: Tensor) -> Tensor:
        whole = rounded.detach().view(len(rounded), self.levels, len(self.values)).long()
        places = torch.tensor([place for place, _ in self._digits()], device=rounded.device)
        half = torch.tensor([count // 2 for count in self.values], device=rounded.device)
        return ((whole + half) * places).sum(2)

    def _digits(self) -> list[tuple[int, int]]:
        """Return the place value of each scalar in a code and its number of values, most significant scalar first."""
        return [(math.prod(self.values[place + 1 :]), count) for place, count in enumerate(self.values)]
