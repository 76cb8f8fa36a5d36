"""Tokenizer: the contract of everything that turns items into semantic IDs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.errors import UserError


class Tokenizer(nn.Module, ABC):
    """Turns content vectors [n, D] into codes [n, M] and back.

    It learns as a ClosedForm (`fit`) or as a Trainable (`examples`, `training_loss`) from the content vectors of
    `train.catalog`, and from the events of `train` if `learns_from_events`. What it learns is stored in parameters and
    buffers. Its random numbers depend on `seed` alone, a buffer that is sampled from torch's generator on construction.

    Attributes:
        name: name in the registry.
        coarse_to_fine: True: a code refines the codes before it. False: levels are independent.
        has_unique_codes: True: items in the training catalogue never share a code sequence.
        has_item_numbers: True: the last code numbers the items with equal codes before it, from 0. A new item gets the
            next free number.
        needs: parts of the catalogue that it requires; its config can require further ones.
        Config: class of the settings.
        seed: seed of all random numbers of the tokenizer.

    """

    name: ClassVar[str]
    coarse_to_fine: ClassVar[bool] = True
    has_unique_codes: ClassVar[bool] = False
    has_item_numbers: ClassVar[bool] = False
    needs: ClassVar[frozenset[Requirement]] = frozenset({"content"})
    Config: ClassVar[type[configs.Config]]
    seed: Tensor

    def __init__(self, config: configs.Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.content_dim = self.item_content(catalog).shape[1]
        self.register_buffer("seed", torch.randint(2**31, ()))

    @classmethod
    def learns_from_events(cls, config: configs.Config) -> bool:
        """Return whether codes depend on the events of `train` under these settings, not on its items alone."""
        return False

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each of the M levels; valid once the tokenizer is trained."""

    @abstractmethod
    def encode(self, content: Tensor) -> Tensor:
        """Return codes [n, M] int64 of content vectors [n, D]; a pure function of each row."""

    def encode_catalog(self, catalog: Catalog) -> Tensor:
        """Return codes [N, M] of the items of the catalogue on which the tokenizer has just been trained.

        These are the codes of `encode`, unless codes are distributed evenly over the items: then the codes of an item
        depend on the other items.
        """
        return self.encode(self.item_content(catalog))

    def encode_new(self, catalog: Catalog, num_old: int) -> tuple[Tensor, Tensor]:
        """Return the codes [n, M] of the items after the first `num_old` of the catalogue, and whether each is placed.

        An item is placed if something that is known of it has determined its codes. Here that is its content.
        """
        content = self.item_content(catalog)[num_old:]
        return self.encode(content), (content != 0).any(1)

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the content vectors [n, D] that codes [n, M] represent."""

    def item_content(self, catalog: Catalog) -> Tensor:
        """Return the content vectors [N, D] of items 1..N; D = 0 if there are none and none are needed."""
        if catalog.content is None and "content" not in self.needs | self.config.needs:
            return torch.zeros(catalog.num_items, 0)
        return content_of(catalog)

    def inputs(self, catalog: Catalog) -> Tensor:
        """Return the vectors [N, ...] from which it has just made the codes of the catalogue's items."""
        return self.item_content(catalog)

    def figures(self, codes: Tensor) -> dict[str, Any]:
        """Return further figures of the quality report, for the `codes [N, M]` of the items it has just learned."""
        return {}


class Standardizer(nn.Module):
    """Centres each dimension and divides it by its standard deviation, both computed once by `fit`.

    Dimensions that do not vary are only centred. Before `fit` vectors are returned unchanged.

    Attributes:
        mean: [D], subtracted from vectors.
        scale: [D], the divisor.

    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, vectors: Tensor) -> None:
        """Compute mean and scale of `vectors [n, D]`."""
        deviation = vectors.std(0, correction=0)
        self.mean.copy_(vectors.mean(0))
        # A smaller deviation is rounding error of the mean, not information.
        self.scale.copy_(deviation.where(deviation > 1e-6 * (1 + self.mean.abs()), torch.ones_like(deviation)))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the standardised `vectors [n, D]`."""
        return (vectors - self.mean) / self.scale

    def inverse(self, vectors: Tensor) -> Tensor:
        """Return the original vectors [n, D] of standardised ones: the inverse of `forward`."""
        return vectors * self.scale + self.mean


def content_of(catalog: Catalog) -> Tensor:
    """Return the content vectors [N, D] of items 1..N; UserError if the catalogue has none."""
    if catalog.content is None:
        raise UserError("semantic IDs are made from content vectors, and this catalogue has none; see [content]")
    return catalog.content[1:]
