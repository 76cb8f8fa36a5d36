"""OPQ: content vectors, rotated so that their slices can be clustered separately; each slice gives one code.

Paper: Ge et al., Optimized Product Quantization, CVPR 2013; as unordered semantic IDs in RPG (arXiv 2506.05781). Idea:
a rotation spreads variance over M equal slices and makes them as independent as a rotation can. k-means in each slice
gives one code. No code depends on another, so all of an item's codes can be predicted at once.

Notable
- The rotation is faiss's OPQMatrix (alternating: quantise, solve for the rotation). The codebooks are then clustered
  again from scratch, by k-means with a good start (nn/quantisation/quantizers.py). They may have fewer codes than
  configured.
- The content is padded with zeros to a multiple of M dimensions.

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

_SAMPLE = 65_536  # maximum number of vectors on which the rotation is trained
_ROTATION_CODES = 256  # codes of a slice during that training; the rotation hardly depends on their number


class OPQConfig(configs.Config):
    """Settings of OPQ."""

    levels: int = Field(4, ge=1)
    """Number of codes of an item, and of slices of its vector (M)."""
    codebook_size: int = Field(64, ge=1)
    """Number of codes of each level (C)."""
    iterations: int = Field(25, ge=1)
    """Number of rounds to train the rotation, and of rounds of k-means in each slice."""
    standardise: bool = False
    """Whether to scale every content dimension to the same variance; if not, content is only centred."""


class OPQ(Tokenizer):
    """OPQ tokenizer (closed form). The same seed and content give the same codes."""

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
        """Return the M tables of code vectors, [C, D / M]; C may differ by level."""
        return [self.get_buffer(f"codebook_{level}") for level in range(self.config.levels)]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each level."""
        return tuple(len(codebook) for codebook in self.codebooks)

    @torch.no_grad()
    def fit(self, train: Dataset) -> None:
        """Train the rotation, then cluster each slice of the rotated content of `train.catalog`."""
        content = content_of(train.catalog)
        self.standardizer.fit(content)
        if not self.config.standardise:
            self.standardizer.scale.fill_(1)
        self.rotation.copy_(self._fit_rotation(self._padded(content)))
        for level, part in enumerate(self._rotated(content).chunk(self.config.levels, dim=1)):
            seed = (int(self.seed) + level) % 2**31
            codebook = kmeans(part, self.config.codebook_size, seed=seed, iterations=self.config.iterations)
            setattr(self, f"codebook_{level}", codebook)

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Return codes [n, M] of content vectors [n, D]."""
        return product_quantise(self._rotated(content), self.codebooks).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return content vectors [n, D] of codes [n, M]."""
        slices = [codebook[codes[:, level]] for level, codebook in enumerate(self.codebooks)]
        unrotated = torch.cat(slices, dim=1) @ self.rotation  # its inverse is its transpose
        return self.standardizer.inverse(unrotated[:, : self.content_dim])

    def _padded(self, content: Tensor) -> Tensor:
        """Standardise content [n, D] and pad it with zeros to a multiple of M dimensions."""
        return torch.nn.functional.pad(self.standardizer(content), (0, self.width - self.content_dim))

    def _rotated(self, content: Tensor) -> Tensor:
        """Standardise, pad and rotate content [n, D]."""
        return self._padded(content) @ self.rotation.T

    def _fit_rotation(self, vectors: Tensor) -> Tensor:
        """Return an orthogonal matrix [D, D]; the identity if there are too few `vectors` to train on."""
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
        rotation: np.ndarray = faiss.vector_to_array(matrix.A).reshape(matrix.d_out, matrix.d_in)
        return torch.from_numpy(rotation.copy())
