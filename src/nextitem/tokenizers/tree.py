"""Tree: an item's codes are the path to its leaf in a balanced tree over the content.

Paper: Zhu et al., Learning Tree-based Deep Model (TDM), arXiv 1801.02294, section 3.5. Idea: content vectors are split
into equal halves by 2-means, and each half again, down to single items; several splits in a row form a code. Every item
has its own path, and the same number of items lies under every prefix.

Notable
- `codebook_size` is the tree's branching factor: 2 is TDM's binary tree; with 256, three codes identify a million
  items. The last code may have fewer values.
- Items that the tree was built from keep their leaves. A new item descends by the planes between the halves, and shares
  the leaf that it reaches.
- The tree is built over the content's first principal components. Alternatives are the order of categories, with the
  items of each category together, which is TDM's initial tree, and a random order, TDM's ablation. With these a new
  item joins the leaf with the nearest content.

Shapes: n items, D content width, W components, M levels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import polars as pl
import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.nn.quantisation.balanced_tree import BalancedTree, balanced_tree
from nextitem.nn.quantisation.quantizers import nearest_code
from nextitem.tokenizers.tokenizer import Standardizer, Tokenizer, content_of


class TreeTokenizerConfig(configs.Config):
    """Settings of the tree tokenizer."""

    order: Literal["content", "category", "random"] = "content"
    """What makes items neighbours in the tree: similar content, equal category, or chance."""
    codebook_size: int = Field(2, ge=2)
    """Number of children of a node, and of codes of a level; a power of two."""
    components: int = Field(64, ge=1)
    """Number of principal components of the content over which the tree is built (W)."""
    iterations: int = Field(10, ge=0)
    """Number of rounds of 2-means at each node."""
    standardise: bool = True
    """Whether to scale every content dimension to the same variance, so that all have the same weight."""


class Tree(Tokenizer):
    """Tree tokenizer (closed form). The same seed and content give the same codes."""

    name = "tree"
    Config = TreeTokenizerConfig
    config: TreeTokenizerConfig
    has_unique_codes: ClassVar[bool] = True
    directions: Tensor
    leaves: Tensor

    def __init__(self, config: TreeTokenizerConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if self.config.codebook_size & (self.config.codebook_size - 1):
            raise ValueError(
                f"codebook_size = {self.config.codebook_size} must be a power of two: every split is into two halves"
            )
        width = min(self.config.components, self.content_dim)
        self.standardizer = Standardizer(self.content_dim)
        self.register_buffer("directions", torch.empty(self.content_dim, width))
        # Filled by fit: planes of all inner nodes, breadth first, and the leaves' vectors, inf for an empty leaf.
        self.register_buffer("normals", torch.empty(0, width))
        self.register_buffer("thresholds", torch.empty(0))
        self.register_buffer("leaves", torch.empty(0, width))
        self._paths: Tensor | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Return the number of codes of each level: the branching factor, or less at the last level."""
        return tuple(2 ** (end - start) for start, end in self._level_spans())

    @torch.no_grad()
    def fit(self, train: Dataset) -> None:
        """Build the tree over the content of `train.catalog`."""
        content = content_of(train.catalog)
        if self.config.standardise:
            self.standardizer.fit(content)
        centred = self.standardizer(content)
        # eigh sorts in ascending order: the last eigenvectors are the principal directions.
        eigenvectors = torch.linalg.eigh(centred.T @ centred)[1].flip(1)
        self.directions.copy_(eigenvectors[:, : self.directions.shape[1]])
        vectors = centred @ self.directions
        # For other orders the tree is built over ranks: halves of a line are halves of the order.
        basis = vectors if self.config.order == "content" else self._ranks(train.catalog)[:, None]
        tree = balanced_tree(basis, seed=int(self.seed), iterations=self.config.iterations)
        if self.config.order == "content":
            self.normals, self.thresholds = torch.cat(tree.normals), torch.cat(tree.thresholds)
        self.leaves = torch.full((2 ** tree.bits.shape[1], vectors.shape[1]), torch.inf)
        self.leaves[_binary_numbers(tree.bits)] = vectors
        self._paths = self._codes_of_paths(tree.bits)

    def encode_catalog(self, catalog: Catalog) -> Tensor:
        """Return codes [N, M]: the path to each item's own leaf."""
        assert self._paths is not None
        assert len(self._paths) == catalog.num_items
        return self._paths

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Return codes [n, M] of content vectors [n, D].

        A tree over the content is descended by the planes between the halves. In a tree of another order the leaf with
        the nearest content is taken.
        """
        vectors = self.standardizer(content) @ self.directions
        if self.config.order != "content":
            filled_leaves = self.leaves[:, 0].isfinite().nonzero()[:, 0]
            leaf = filled_leaves[nearest_code(vectors, self.leaves[filled_leaves])]
            return self._codes_of_paths(leaf[:, None] // 2 ** torch.arange(self._depth - 1, -1, -1) % 2)
        starts = [2**level - 1 for level in range(self._depth + 1)]
        normals = tuple(self.normals[start:end] for start, end in pairwise(starts))
        thresholds = tuple(self.thresholds[start:end] for start, end in pairwise(starts))
        tree = BalancedTree(torch.empty(0, self._depth, dtype=torch.int64), normals, thresholds)
        return self._codes_of_paths(tree.descend(vectors))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return content vectors [n, D] of codes [n, M], reconstructed from the components of the leaf of each path."""
        leaf = torch.zeros(len(codes), dtype=torch.int64)
        for level, size in enumerate(self.codebook_sizes):
            leaf = leaf * size + codes[:, level]
        return self.standardizer.inverse(self.leaves[leaf].nan_to_num(posinf=0.0) @ self.directions.T)

    @property
    def _depth(self) -> int:
        return (len(self.leaves) - 1).bit_length()

    def _ranks(self, catalog: Catalog) -> Tensor:
        """Return the rank of each item in the order of categories, or in a random order, [N]."""
        generator = torch.Generator().manual_seed(int(self.seed))
        if self.config.order == "random":
            return torch.randperm(catalog.num_items, generator=generator).float()
        if "category" not in catalog.table.columns:
            raise UserError(
                'order = "category" needs a column category in the items file; add it, or choose another order'
            )
        names = catalog.table["category"].cast(pl.String).fill_null("")
        numbers = torch.from_numpy(names.rank("dense").to_numpy().astype("int64")) - 1
        shuffled = torch.randperm(int(numbers.max()) + 1, generator=generator)
        ranks = torch.empty(len(numbers))
        ranks[shuffled[numbers].argsort(stable=True)] = torch.arange(len(numbers)).float()
        return ranks

    def _level_spans(self) -> list[tuple[int, int]]:
        """Return the ranges of splits (first, end) that form each code."""
        step = self.config.codebook_size.bit_length() - 1
        return [(start, min(start + step, self._depth)) for start in range(0, self._depth, step)]

    def _codes_of_paths(self, bits: Tensor) -> Tensor:
        """Return codes [n, M] of paths, one bit for each split, [n, depth]."""
        return torch.stack([_binary_numbers(bits[:, start:end]) for start, end in self._level_spans()], dim=1)


def _binary_numbers(bits: Tensor) -> Tensor:
    """Read the rows of `bits [n, m]` as binary numbers, [n]."""
    return (bits * 2 ** torch.arange(bits.shape[1] - 1, -1, -1)).sum(1)
