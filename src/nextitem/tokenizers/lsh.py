"""LSH: the signs of random projections, several of them for each code.

Paper: as an ablation of semantic IDs in TIGER, arXiv 2305.05065, section 4.2; Charikar 2002. Idea: each level has h
random hyperplanes through the mean of the content. The sides on which an item lies are the h bits of its code. Near
items lie on the same sides more often than by chance. Nothing is learned.

Notable
- TIGER: h = 8, so 256 codes, and 4 levels. Levels are independent, and do not go from coarse to fine.
- Decoding is the linear map from signs to content with the smallest squared error over the catalogue.

Shapes: n items, D content width, M levels, h bits of a code.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.tokenizers.tokenizer import Standardizer, Tokenizer, content_of


class LSHConfig(configs.Config):
    """Settings of LSH."""

    levels: int = Field(4, ge=1)
    """Number of codes of an item (M)."""
    codebook_size: int = Field(64, ge=2)
    """Number of codes of each level (C); a power of two."""
    standardise: bool = True
    """Whether to scale every content dimension to the same variance; if not, content is only centred."""


class LSH(Tokenizer):
    """LSH tokenizer (closed form). The same seed and content give the same codes."""

    name = "lsh"
    Config = LSHConfig
    config: LSHConfig
    coarse_to_fine: ClassVar[bool] = False
    hyperplanes: Tensor
    linear: Tensor

    def __init__(self, config: LSHConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        size = self.config.codebook_size
        if size & (size - 1):
            raise ValueError(f"codebook_size = {size} must be a power of two: a code is a sequence of bits")
        self.num_bits = size.bit_length() - 1
        self.standardizer = Standardizer(self.content_dim)
        directions = self.config.levels * self.num_bits
        generator = torch.Generator().manual_seed(int(self.seed))
        self.register_buffer("hyperplanes", torch.randn(self.content_dim, directions, generator=generator))
        self.register_buffer("linear", torch.zeros(directions, self.content_dim))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each level: the same for all levels."""
        return (self.config.codebook_size,) * self.config.levels

    @torch.no_grad()
    def fit(self, train: Dataset) -> None:
        """Fit the standardisation to the content of `train.catalog`, and the linear map from codes to content."""
        content = content_of(train.catalog)
        self.standardizer.fit(content)
        if not self.config.standardise:
            self.standardizer.scale.fill_(1)
        centred = self.standardizer(content)
        signs = self._signs(self.encode(content))
        # With a small ridge term: with few items or equal hyperplanes the map would be undetermined.
        gram = signs.T @ signs + 1e-3 * len(signs) * torch.eye(signs.shape[1])
        self.linear.copy_(torch.linalg.solve(gram, signs.T @ centred))

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Return codes [n, M] of content vectors [n, D].

        The first hyperplane of a level is the most significant bit of its code.
        """
        # A row gets the same code, however many rows come together: a product of matrices may round differently.
        sides = (self.standardizer(content)[:, :, None].double() * self.hyperplanes.double()).sum(1) > 0
        bit_values = 2 ** torch.arange(self.num_bits - 1, -1, -1)
        codes: Tensor = (sides.view(len(content), self.config.levels, self.num_bits) * bit_values).sum(2)
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return content vectors [n, D] of codes [n, M]."""
        return self.standardizer.inverse(self._signs(codes) @ self.linear)

    def _signs(self, codes: Tensor) -> Tensor:
        """Return the bits of `codes [n, M]` as signs, +1 and -1, [n, M h]."""
        bit_values = 2 ** torch.arange(self.num_bits - 1, -1, -1)
        return ((codes[..., None] // bit_values % 2) * 2.0 - 1).flatten(1)
