"""Tokenizer: the contract of everything that turns content vectors into semantic IDs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError


class Tokenizer(nn.Module, ABC):
    """Spells content vectors [n, D] as codes [n, M] and back.

    It learns as a ClosedForm (`fit`) or as a Trainable (`examples`, `training_loss`) from the content vectors
    of `train.catalog`. What it learns sits in parameters and buffers. Its random numbers follow from `seed`,
    a buffer drawn from torch's generator on construction. `name` is its name in the registry.
    """

    name: ClassVar[str]
    coarse_to_fine: ClassVar[bool] = True  # a code refines those before it; False: each level says something of its own
    tells_apart: ClassVar[bool] = False  # no two items that it has learnt from ever have the same codes
    Config: ClassVar[type[configs.Config]]
    seed: Tensor

    def __init__(self, config: configs.Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.content_dim = content_of(catalog).shape[1]
        self.register_buffer("seed", torch.randint(2**31, ()))

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each of the M levels, known once it has learnt."""

    @abstractmethod
    def encode(self, content: Tensor) -> Tensor:
        """Codes [n, M] int64 of content vectors [n, D]; a pure function of each row."""

    def spell(self, catalog: Catalog) -> Tensor:
        """Codes [N, M] of the items of the catalogue that it has just learnt from.

        Those of `encode`, unless codes are dealt out evenly: then who gets which depends on the others.
        """
        return self.encode(content_of(catalog))

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """The content vectors [n, D] that codes [n, M] stand for."""


class Standardizer(nn.Module):
    """Centres each dimension and divides by its standard deviation, measured once by `fit`.

    Dimensions that do not vary are only centred. Without `fit` it changes nothing.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, vectors: Tensor) -> None:
        """Measures `vectors [n, D]`."""
        deviation = vectors.std(0, correction=0)
        self.mean.copy_(vectors.mean(0))
        # Below this the spread is rounding error of the mean, not information.
        self.scale.copy_(deviation.where(deviation > 1e-6 * (1 + self.mean.abs()), torch.ones_like(deviation)))

    def forward(self, vectors: Tensor) -> Tensor:
        """Standardised vectors, [n, D]."""
        return (vectors - self.mean) / self.scale

    def inverse(self, vectors: Tensor) -> Tensor:
        """What `forward` was given, [n, D]."""
        return vectors * self.scale + self.mean


def content_of(catalog: Catalog) -> Tensor:
    """Content vectors [N, D] of items 1..N; UserError where the catalogue has none."""
    if catalog.content is None:
        raise UserError("semantic IDs are made from content vectors, and this catalogue has none; see [content]")
    return catalog.content[1:]
