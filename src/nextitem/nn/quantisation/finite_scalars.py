"""FiniteScalars: a latent is rounded, dimension by dimension, to a few values; there is no codebook to learn.

Shapes: B rows, E latent width, M levels, S scalars of a level (E = M S).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nextitem.nn.quantisation.learnt_codebooks import QuantisedLatent


class FiniteScalars(nn.Module):
    """M levels of S scalars; scalar s takes one of `values[s]` values, so that a level has their product of codes.

    Mentzer et al., arXiv 2309.15505, section 3.1: z -> round(half tanh(z + shift) - offset), with the gradient of what
    was rounded; scaled to [-1, 1] for the decoder.
    """

    def __init__(self, levels: int, values: tuple[int, ...]) -> None:
        super().__init__()
        self.levels, self.values = levels, values

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return (math.prod(self.values),) * self.levels

    def forward(self, latent: Tensor) -> QuantisedLatent:
        """Rounds `latent [B, E]`; no loss draws it anywhere."""
        bounded = self._bounded(latent)
        rounded = bounded + (bounded.round() - bounded).detach()
        nothing = latent.new_zeros(())
        return QuantisedLatent(self._codes(rounded), rounded / self._half(rounded), nothing, nothing)

    def encode(self, latent: Tensor) -> Tensor:
        """Codes [B, M]."""
        return self._codes(self._bounded(latent).round())

    def decode(self, codes: Tensor) -> Tensor:
        """The latents [B, E] that `codes [B, M]` stand for."""
        digits = torch.stack([codes // place % count for place, count in self._digits()], dim=2)
        half = torch.tensor([count // 2 for count in self.values], device=codes.device)
        whole = (digits - half).flatten(1).float()
        return whole / self._half(whole)

    def _bounded(self, latent: Tensor) -> Tensor:
        count = torch.tensor(self.values * self.levels, dtype=latent.dtype, device=latent.device)
        half = (count - 1) * (1 + 1e-3) / 2
        offset = (count % 2 == 0) * 0.5  # an even number of values lies to one side of 0
        return torch.tanh(latent + torch.atanh(offset / half)) * half - offset

    def _half(self, like: Tensor) -> Tensor:
        return torch.tensor([count // 2 for count in self.values] * self.levels, dtype=like.dtype, device=like.device)

    def _codes(self, rounded: Tensor) -> Tensor:
        whole = rounded.detach().view(len(rounded), self.levels, len(self.values)).long()
        places = torch.tensor([place for place, _ in self._digits()], device=rounded.device)
        half = torch.tensor([count // 2 for count in self.values], device=rounded.device)
        return ((whole + half) * places).sum(2)

    def _digits(self) -> list[tuple[int, int]]:
        """Each scalar's place value in a code, and its number of values; the first scalar is the most significant."""
        return [(math.prod(self.values[place + 1 :]), count) for place, count in enumerate(self.values)]
