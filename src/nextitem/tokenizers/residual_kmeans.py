"""Residual k-means: k-means on content vectors, then on the residuals that each level leaves.

Paper: OneRec, arXiv 2502.18965, section 3.1 (as RK-means elsewhere); a training-free stand-in for an RQ-VAE. Idea: the
codes of the first level are the clusters of the content vectors. Each further level clusters the differences between
vectors and their code vectors (residuals). An item's codes are its clusters from coarse to fine.

Notable
- Plain k-means, or with `balanced` OneRec's: all codes of a level have the same number of items, plus or minus one. One
  cluster after another takes the nearest of the remaining residuals. So items with equal content may get different
  codes, and the last clusters take whatever remains. With `balanced_by = "auction"` all clusters compete for the items
  at once, so that no cluster comes last (nn/quantisation/balanced_kmeans.py). A new item takes its nearest codes.
- A level has fewer codes than configured if there are fewer distinct residuals, and none that no item uses.
- Large catalogues are clustered on a seeded sample of 256 items for each code (faiss's limit).

Shapes: n items, D content width, M levels, C codes.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.nn.quantisation.balanced_kmeans import balanced_kmeans
from nextitem.nn.quantisation.quantizers import balanced_clusters, kmeans, nearest_code, residual_quantise, sum_of_codes
from nextitem.tokenizers.tokenizer import Standardizer, Tokenizer, content_of


class ResidualKMeansConfig(configs.Config):
    """Settings of residual k-means. 3 levels x 256 codes are usual for ten thousand items and more."""

    levels: int = Field(3, ge=1)
    """Number of codes of an item (M)."""
    codebook_size: int = Field(64, ge=1)
    """Number of codes of each level (C)."""
    iterations: int = Field(25, ge=1)
    """Number of rounds of k-means at each level."""
    balanced: bool = False
    """Whether all codes of a level have the same number of items (plus or minus one)."""
    balanced_by: Literal["turns", "auction"] = "turns"
    """How balanced clusters get their items: one cluster after another (OneRec), or all of them at once."""
    standardise: bool = True
    """Whether to scale every content dimension to the same variance, so that all have the same weight."""

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that have no effect under the other settings, each with the reason."""
        return configs.idle_unless(self.balanced, "balanced is false", "balanced_by")


class ResidualKMeans(Tokenizer):
    """Residual k-means tokenizer (closed form). The same seed and content give the same codes."""

    name = "residual-kmeans"
    Config = ResidualKMeansConfig
    config: ResidualKMeansConfig

    def __init__(self, config: ResidualKMeansConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.standardizer = Standardizer(self.content_dim)
        for level in range(self.config.levels):
            # The number of codes is known after fit.
            self.register_buffer(f"codebook_{level}", torch.empty(0, self.content_dim))
        self._balanced_codes: Tensor | None = None  # codes of the items that it was fitted to, if they are balanced

    @property
    def codebooks(self) -> list[Tensor]:
        """Return the M tables of code vectors, [C, D]; C may differ by level."""
        return [self.get_buffer(f"codebook_{level}") for level in range(self.config.levels)]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    @torch.no_grad()
    def fit(self, train: Dataset) -> None:
        """Cluster the content vectors of `train.catalog`, level by level."""
        content = content_of(train.catalog)
        if self.config.standardise:
            self.standardizer.fit(content)
        residual, level_codes = self.standardizer(content), []
        for level in range(self.config.levels):
            codes, codebook = self._clusters(residual, seed=(int(self.seed) + level) % 2**31)
            setattr(self, f"codebook_{level}", codebook)
            residual = residual - codebook[codes]
            level_codes.append(codes)
        self._balanced_codes = torch.stack(level_codes, dim=1) if self.config.balanced else None

    def _clusters(self, residual: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """Return the codes [N] of the residuals [N, D] of a level, and its code vectors [C, D]."""
        config = self.config
        if config.balanced and config.balanced_by == "auction":
            codes = balanced_kmeans(residual, config.codebook_size, seed=seed, iterations=config.iterations)
            sums = residual.new_zeros(int(codes.max()) + 1, residual.shape[1]).index_add_(0, codes, residual)
            return codes, sums / codes.bincount()[:, None]
        codebook = kmeans(residual, config.codebook_size, seed=seed, iterations=config.iterations)
        if config.balanced:
            return balanced_clusters(residual, codebook, iterations=config.iterations)
        return nearest_code(residual, codebook), codebook

    def encode_catalog(self, catalog: Catalog) -> Tensor:
        """Return codes [N, M] of the items to which the tokenizer was fitted."""
        if self._balanced_codes is None:
            return super().encode_catalog(catalog)
        assert len(self._balanced_codes) == catalog.num_items
        return self._balanced_codes

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Return codes [n, M] of content vectors [n, D]."""
        return residual_quantise(self.standardizer(content), self.codebooks).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return content vectors [n, D] of codes [n, M]."""
        return self.standardizer.inverse(sum_of_codes(codes, self.codebooks))
