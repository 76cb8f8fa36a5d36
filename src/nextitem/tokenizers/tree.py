"""Tree: the path to an item's leaf in a balanced tree over the content.

Paper: Zhu et al., Learning Tree-based Deep Model (TDM), arXiv 1801.02294, section 3.5. Idea: content vectors are split
in even halves by 2-means, and each half again, down to single items; some splits in a row make a code. Every item has
a path of its own, and equally many items lie under every prefix.

Notable
- `codebook_size` is the tree's branching: 2 is TDM's binary tree, 256 spells a million items with three codes. The last
  code may have fewer values.
- Items that the tree was made of keep their leaves. A further item walks down by the planes between the halves, and
  shares the leaf that it comes to.
- The tree is made of the content's first principal components; or of the order of categories, each one's items
  together, as TDM begins; or of a random order, TDM's ablation. There a further item joins the leaf with the nearest
  content.

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
    """Settings of the tree."""

    order: Literal["content", "category", "random"] = "content"
    """What lies near in the tree."""
    codebook_size: int = Field(2, ge=2)
    """Children of a node; a power of two."""
    components: int = Field(64, ge=1)
    """Of the content that the tree is made of."""
    iterations: int = Field(10, ge=0)
    """Rounds of 2-means at a node."""
    standardise: bool = True
    """Give every content dimension the same weight."""


class Tree(Tokenizer):
    """Closed form; the same seed and content give the same codes."""

    name = "tree"
    Config = TreeTokenizerConfig
    config: TreeTokenizerConfig
    tells_apart: ClassVar[bool] = True
    directions: Tensor
    leaves: Tensor

    def __init__(self, config: TreeTokenizerConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if self.config.codebook_size & (self.config.codebook_size - 1):
            raise ValueError(f"codebook_size = {self.config.codebook_size} must be a power of two: splits are in two")
        width = min(self.config.components, self.content_dim)
        self.standardizer = Standardizer(self.content_dim)
        self.register_buffer("directions", torch.empty(self.content_dim, width))
        # Filled by fit: planes of all inner nodes, breadth first, and the leaves' vectors, inf where there is no item.
        self.register_buffer("normals", torch.empty(0, width))
        self.register_buffer("thresholds", torch.empty(0))
        self.register_buffer("leaves", torch.empty(0, width))
        self._paths: Tensor | None = None

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level: the branching; of the last one, what is left of the depth."""
        return tuple(2 ** (end - start) for start, end in self._spans())

    @torch.no_grad()
    def fit(self, train: Dataset) -> None:
        """Builds the tree over the content of `train.catalog`."""
        content = content_of(train.catalog)
        if self.config.standardise:
            self.standardizer.fit(content)
        centred = self.standardizer(content)
        # eigh sorts rising: the last eigenvectors are the principal directions.
        spread = torch.linalg.eigh(centred.T @ centred)[1].flip(1)
        self.directions.copy_(spread[:, : self.directions.shape[1]])
        vectors = centred @ self.directions
        # Halves of a line are halves of the order.
        basis = vectors if self.config.order == "content" else self._ranks(train.catalog)[:, None]
        tree = balanced_tree(basis, seed=int(self.seed), iterations=self.config.iterations)
        if self.config.order == "content":
            self.normals, self.thresholds = torch.cat(tree.normals), torch.cat(tree.thresholds)
        self.leaves = torch.full((2 ** tree.bits.shape[1], vectors.shape[1]), torch.inf)
        self.leaves[_number(tree.bits)] = vectors
        self._paths = self._joined(tree.bits)

    def spell(self, catalog: Catalog) -> Tensor:
        """Codes [N, M]: each item's own leaf."""
        assert self._paths is not None
        assert len(self._paths) == catalog.num_items
        return self._paths

    @torch.no_grad()
    def encode(self, content: Tensor) -> Tensor:
        """Codes [n, M] of content vectors [n, D]: by the planes between the halves, else the leaf with the nearest."""
        vectors = self.standardizer(content) @ self.directions
        if self.config.order != "content":
            real = self.leaves[:, 0].isfinite().nonzero()[:, 0]
            leaf = real[nearest_code(vectors, self.leaves[real])]
            return self._joined(leaf[:, None] // 2 ** torch.arange(self._depth - 1, -1, -1) % 2)
        starts = [2**level - 1 for level in range(self._depth + 1)]
        normals = tuple(self.normals[start:end] for start, end in pairwise(starts))
        thresholds = tuple(self.thresholds[start:end] for start, end in pairwise(starts))
        tree = BalancedTree(torch.empty(0, self._depth, dtype=torch.int64), normals, thresholds)
        return self._joined(tree.descend(vectors))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Content vectors [n, D] of codes [n, M]: of the leaf at the end of the path, by its components."""
        leaf = torch.zeros(len(codes), dtype=torch.int64)
        for level, size in enumerate(self.codebook_sizes):
            leaf = leaf * size + codes[:, level]
        return self.standardizer.inverse(self.leaves[leaf].nan_to_num(posinf=0.0) @ self.directions.T)

    @property
    def _depth(self) -> int:
        return (len(self.leaves) - 1).bit_length()

    def _ranks(self, catalog: Catalog) -> Tensor:
        """Each item's place in the order of categories, or at random, [N]."""
        draw = torch.Generator().manual_seed(int(self.seed))
        if self.config.order == "random":
            return torch.randperm(catalog.num_items, generator=draw).float()
        if "category" not in catalog.table.columns:
            raise UserError("a tree in order of categories needs a column category in the items file")
        names = catalog.table["category"].cast(pl.String).fill_null("")
        numbers = torch.from_numpy(names.rank("dense").to_numpy().astype("int64")) - 1
        shuffled = torch.randperm(int(numbers.max()) + 1, generator=draw)
        ranks = torch.empty(len(numbers))
        ranks[shuffled[numbers].argsort(stable=True)] = torch.arange(len(numbers)).float()
        return ranks

    def _spans(self) -> list[tuple[int, int]]:
        """Which splits make each code."""
        step = self.config.codebook_size.bit_length() - 1
        return [(start, min(start + step, self._depth)) for start in range(0, self._depth, step)]

    def _joined(self, bits: Tensor) -> Tensor:
        return torch.stack([_number(bits[:, start:end]) for start, end in self._spans()], dim=1)


def _number(bits: Tensor) -> Tensor:
    """Rows of `bits [n, m]` read as binary numbers, [n]."""
    return (bits * 2 ** torch.arange(bits.shape[1] - 1, -1, -1)).sum(1)
