"""Residual k-means: k-means on content vectors, then on what each level leaves over.

Paper: OneRec, arXiv 2502.18965, section 3.1 (as RK-means elsewhere); a training-free stand-in for an RQ-VAE.
Idea: the first level's codes are the clusters of the content vectors; each further level clusters the
distances that are left between vectors and their code vectors; an item's codes are its clusters from coarse
to fine.

Notable
- Plain k-means, or with `balanced` OneRec's: every code of a level has equally many items, up to one. Cluster after
  cluster takes the nearest residuals that are left, so items with equal content may get different codes, and the last
  clusters what is left over. A further item takes its nearest codes.
- A level has fewer codes than asked where there are fewer distinct residuals, and none that no item uses.
- Large catalogues are clustered on a seeded sample of 256 items a code (faiss's limit).

Shapes: n items, D content width, M levels, C codes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.nn.quantisation.quantizers import balanced_clusters, kmeans, nearest_code, residual_quantise, sum_of_codes
from nextitem.tokenizers.tokenizer import Standardizer, Tokenizer, content_of


class ResidualKMeansConfig(configs.Config):
    """Settings of residual k-means; 3 levels x 256 codes are usual for ten thousand items and more."""

    levels: int = Field(3, ge=1)
    """Codes an item."""
    codebook_size: int = Field(64, ge=1)
    """Codes a level."""
    iterations: int = Field(25, ge=1)
    """Rounds of k-means a level."""
    balanced: bool = False
    """Equally many items a code."""
    standardise: bool = True
    """Give every content dimension the same weight."""


class ResidualKMeans(Tokenizer):
    """Closed form; the same seed and content give the same codes."""

    name = "residual-kmeans"
    Config = ResidualKMeansConfig
    config: ResidualKMeansConfig

    def __init__(self, config: ResidualKMeansConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.standardizer = Standardizer(self.content_dim)
        for level in range(self.config.levels):
            # How many codes there are is known after fit.
            self.register_buffer(f"codebook_{level}", torch.empty(0, self.content_dim))
        self._dealt: Tensor | None = None  # codes of the items that it learnt from, where they are balanced

    @property
    def codebooks(self) -> list[Tensor]:
        """M code tables [C, D]; C may differ by level."""
        return [self.get_buffer(f"codebook_{level}") for level in range(self.config.levels)]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    @torch.no_grad()
    def fit(self, train: Dataset) -> None:
        """Clusters the content vectors of `train.catalog`, level by level."""
        content = content_of(train.catalog)
        if self.config.standardise:
            self.standardizer.fit(content)
        residual, dealt = self.standardizer(content), []
        for level in range(self.config.levels):
            codebook = kmeans(
                residual,
                self.config.codebook_size,
                seed=(int(self.seed) + level) % 2**31,
                iterations=self.config.iterations,
            )
            if self.config.balanced:
                codes, codebook = balanced_clusters(residual, codebook, iterations=self.config.iterations)
            else:
                codes = nearest_code(residual, codebook)
            setattr(self, f"codebook_{level}", codebook)
            residual = residual - codebook[codes]
            dealt.append(codes)
        self._dealt = torch.stack(dealt, dim=1) if self.config.balanced else None

    def spell(self, catalog: Catalog) -> Tensor:
        """Codes [N, M] of the items that it has learnt from."""
        if self._dealt is None:
            return super().spell(catalog)
        assert len(self._dealt) == catalog.num_items
        return self._dealt

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Codes [n, M] of content vectors [n, D]."""
        return residual_quantise(self.standardizer(content), self.codebooks).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Content vectors [n, D] of codes [n, M]."""
        return self.standardizer.inverse(sum_of_codes(codes, self.codebooks))
