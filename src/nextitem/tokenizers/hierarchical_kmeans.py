"""Hierarchical k-means: clusters of the content, clusters within each of them, and so on.

Paper: Tay et al., Transformer Memory as a Differentiable Search Index, arXiv 2202.06991, section 3.2. Idea: the first
code is the cluster of an item's content vector, the second its cluster within that cluster. So a code has a different
meaning below every prefix. A path ends at a cluster that has no more items than codes: each item gets a code.

Notable
- If a cluster has no more different contents than codes, each content gets a code of its own, and code 0 below that.
- A level that no prefix needs has one code; there are always as many levels as configured.

Shapes: n items, D content width, M levels, P prefixes of a level, C codes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import offsets_of
from nextitem.nn.quantisation.quantizers import kmeans, nearest_code, nearest_code_in_range
from nextitem.tokenizers.tokenizer import Standardizer, Tokenizer, content_of


class HierarchicalKMeansConfig(configs.Config):
    """Settings of hierarchical k-means."""

    levels: int = Field(3, ge=1)
    """Number of codes of an item (M)."""
    codebook_size: int = Field(64, ge=2)
    """Maximum number of codes below a prefix (C)."""
    iterations: int = Field(25, ge=1)
    """Number of rounds of k-means in each cluster."""
    standardise: bool = True
    """Whether to scale every content dimension to the same variance, so that all have the same weight."""


class HierarchicalKMeans(Tokenizer):
    """Hierarchical k-means tokenizer (closed form). The same seed and content give the same codes."""

    name = "hierarchical-kmeans"
    Config = HierarchicalKMeansConfig
    config: HierarchicalKMeansConfig

    def __init__(self, config: HierarchicalKMeansConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        self.standardizer = Standardizer(self.content_dim)
        for level in range(self.config.levels):
            # The centroids below all clusters of the level above, cluster by cluster, and the start of each cluster's.
            self.register_buffer(f"centroids_{level}", torch.empty(0, self.content_dim))
            self.register_buffer(f"offsets_{level}", torch.zeros(1, dtype=torch.int64))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each level: the maximum over its prefixes."""
        return tuple(int(self._offsets(level).diff().max()) for level in range(self.config.levels))

    @torch.no_grad()
    def fit(self, train: Dataset) -> None:
        """Cluster the content vectors of `train.catalog`, level by level."""
        content = content_of(train.catalog)
        if self.config.standardise:
            self.standardizer.fit(content)
        vectors = self.standardizer(content)
        cluster = torch.zeros(len(vectors), dtype=torch.int64)
        for level in range(self.config.levels):
            tables = []
            sizes = torch.bincount(cluster, minlength=1 if level == 0 else int(self._offsets(level - 1)[-1])).tolist()
            for number, members in enumerate(torch.split(cluster.argsort(stable=True), sizes)):
                if not len(members):  # by rounding, its rows have moved to their second nearest centroid
                    tables.append(self.get_buffer(f"centroids_{level - 1}")[number : number + 1])
                    continue
                seed = (int(self.seed) + level + 131 * number) % 2**31
                tables.append(
                    kmeans(
                        vectors[members],
                        self.config.codebook_size,
                        seed=seed,
                        iterations=self.config.iterations,
                    )
                )
            setattr(self, f"centroids_{level}", torch.cat(tables))
            setattr(self, f"offsets_{level}", offsets_of(torch.tensor([len(table) for table in tables])))
            cluster = self._offsets(level)[cluster] + self._codes(vectors, cluster, level)

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Return codes [n, M] of content vectors [n, D]."""
        vectors = self.standardizer(content)
        cluster = torch.zeros(len(vectors), dtype=torch.int64)
        levels = []
        for level in range(self.config.levels):
            levels.append(self._codes(vectors, cluster, level))
            cluster = self._offsets(level)[cluster] + levels[-1]
        return torch.stack(levels, dim=1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return content vectors [n, D] of codes [n, M]: the centroid at the end of each path."""
        cluster = torch.zeros(len(codes), dtype=torch.int64)
        for level in range(self.config.levels):
            cluster = self._offsets(level)[cluster] + codes[:, level]
        return self.standardizer.inverse(self.get_buffer(f"centroids_{self.config.levels - 1}")[cluster])

    def _offsets(self, level: int) -> Tensor:
        return self.get_buffer(f"offsets_{level}")

    def _codes(self, vectors: Tensor, cluster: Tensor, level: int) -> Tensor:
        """Return the nearest of the centroids below each row's `cluster [n]`, [n] int64; if equal, the smaller code."""
        centroids, offsets = self.get_buffer(f"centroids_{level}"), self._offsets(level)
        if len(offsets) == 2:
            return nearest_code(vectors, centroids)
        return nearest_code_in_range(vectors, centroids, offsets[cluster], offsets[cluster + 1])
