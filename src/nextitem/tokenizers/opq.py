"""OPQ: content vectors turned so that their slices can be clustered apart, one code a slice.

Paper: Ge et al., Optimized Product Quantization, CVPR 2013; as unordered semantic IDs in RPG (arXiv 2506.05781).
Idea: a rotation spreads variance over M equal slices and makes them as independent as a rotation can; k-means in each
slice gives one code. No code depends on another, so all of an item's codes can be predicted at once.

Notable
- The rotation is faiss's OPQMatrix (alternating: quantise, solve for the rotation); the codebooks are then clustered
  anew, k-means with a good start (nn/quantisation/quantizers.py), and may have fewer codes than asked.
- Dimensions of zeros fill the content up to a multiple of M.

Shapes: n items, D content width, M levels, C codes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.nn.quantisation.quantizers import kmeans, product_quantise
from nextitem.tokenizers.tokenizer import Standardizer, Tokenizer, content_of

_SAMPLE = 65_536  # vectors from which the rotation is learnt
_ROTATION_CODES = 256  # codes a slice while it is: what the rotation balances hardly depends on their number


class OPQConfig(configs.Config):
    """Settings of OPQ."""

    levels: int = Field(4, ge=1)
    """Codes an item, and slices of its vector."""
    codebook_size: int = Field(64, ge=1)
    """Codes a level."""
    iterations: int = Field(25, ge=1)
    """Rounds of rotation, and of k-means a slice."""
    standardise: bool = False
    """Give every content dimension the same weight; else it is only centred."""


class OPQ(Tokenizer):
    """Closed form; the same seed and content give the same codes."""

    name = "opq"
    Config = OPQConfig
    config: OPQConfig
    coarse_to_fine: ClassVar[bool] = False
    rotation: Tensor

    def __init__(self, config: OPQConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        levels = self.config.levels
        self.standardizer = Standardizer(self.content_dim)
        self.width = -(-self.content_dim // levels) * levels
        self.register_buffer("rotation", torch.eye(self.width))
        for level in range(levels):
            self.register_buffer(f"codebook_{level}", torch.empty(0, self.width // levels))  # filled by fit

    @property
    def codebooks(self) -> list[Tensor]:
        """M code tables [C, D / M]; C may differ by level."""
        return [self.get_buffer(f"codebook_{level}") for level in range(self.config.levels)]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    @torch.no_grad()
    def fit(self, train: Dataset) -> None:
        """Learns the rotation, then clusters each slice of the turned content."""
        content = content_of(train.catalog)
        self.standardizer.fit(content)
        if not self.config.standardise:
            self.standardizer.scale.fill_(1)
        self.rotation.copy_(self._learnt_rotation(self._padded(content)))
        for level, part in enumerate(self._turned(content).chunk(self.config.levels, dim=1)):
            seed = (int(self.seed) + level) % 2**31
            codebook = kmeans(part, self.config.codebook_size, seed=seed, iterations=self.config.iterations)
            setattr(self, f"codebook_{level}", codebook)

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Codes [n, M] of content vectors [n, D]."""
        return product_quantise(self._turned(content), self.codebooks).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Content vectors [n, D] of codes [n, M]."""
        slices = [codebook[codes[:, level]] for level, codebook in enumerate(self.codebooks)]
        turned_back = torch.cat(slices, dim=1) @ self.rotation  # its inverse is its transpose
        return self.standardizer.inverse(turned_back[:, : self.content_dim])

    def _padded(self, content: Tensor) -> Tensor:
        return torch.nn.functional.pad(self.standardizer(content), (0, self.width - self.content_dim))

    def _turned(self, content: Tensor) -> Tensor:
        return self._padded(content) @ self.rotation.T

    def _learnt_rotation(self, vectors: Tensor) -> Tensor:
        """[D, D], orthogonal; the identity where vectors are too few to learn from."""
        import faiss

        codes = min(_ROTATION_CODES, 2 ** int(np.log2(max(1, len(vectors) // 4))))
        if codes < 2 or self.config.levels == 1:
            return torch.eye(self.width)
        order = np.random.default_rng(int(self.seed)).permutation(len(vectors))[:_SAMPLE]
        matrix = faiss.OPQMatrix(self.width, self.config.levels)
        matrix.pq = faiss.ProductQuantizer(self.width, self.config.levels, int(np.log2(codes)))
        matrix.niter, matrix.verbose = self.config.iterations, False
        matrix.pq.cp.min_points_per_centroid = 1
        matrix.train(np.ascontiguousarray(vectors[order].numpy()))
        turned: np.ndarray = faiss.vector_to_array(matrix.A).reshape(matrix.d_out, matrix.d_in)
        return torch.from_numpy(turned.copy())
