"""The layer of embeddings: one interface for a dense table, a growing table and a hashed table.

A model looks up codes: item numbers, or values of fields. Dense tables have a row for each code. The other kinds know
codes by their keys: 64-bit ids that stay the same if the catalogue grows, such as the hash of an external id. Code 0 of
items is padding; its key is 0, whose vector is always 0.

Shapes: C codes, D width.
"""

from __future__ import annotations

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.catalog import Catalog
from nextitem.core.ids import stable_keys
from nextitem.nn.tables.growing import GrowingTable
from nextitem.nn.tables.hashed import HashedTable
from nextitem.nn.tables.kinds import DenseRows, GrowingRows, TableConfig
from nextitem.nn.tables.row_table import RowTable


class DenseTable(nn.Embedding):
    """An embedding with a row for each code (torch.nn.Embedding)."""

    def all_vectors(self) -> Tensor:
        """Return the vectors of all codes, [C, D]."""
        return self.weight

    def means(self, codes: Tensor, offsets: Tensor) -> Tensor:
        """Return the mean vector of each bag of codes, [bags, D]; bag b begins at `offsets[b]`, empty ones are 0."""
        return F.embedding_bag(codes, self.weight, offsets, mode="mean")

    def observe(self, codes: Tensor) -> None:
        """Do nothing: which rows there are does not depend on training."""


Table = DenseTable | RowTable


def build_table(
    config: TableConfig, width: int, keys: Tensor | int, *, padding_idx: int | None = None, std: float = 1.0
) -> Table:
    """Return a table of vectors.

    Args:
        config: the kind of the table and its settings.
        width: width of the vectors (D).
        keys: keys of the codes [C], int64; for a dense table their number is enough.
        padding_idx: code whose vector is 0 in a dense table; in the others that is every code with key 0.
        std: standard deviation of the initial vectors of a growing table without shared rows, and of a hashed table.

    """
    if isinstance(config, DenseRows):
        return DenseTable(keys if isinstance(keys, int) else len(keys), width, padding_idx=padding_idx)
    assert isinstance(keys, Tensor), "only a dense table has no keys"
    if isinstance(config, GrowingRows):
        return GrowingTable(config, width, keys=keys, std=std)
    return HashedTable(config, width, keys=keys, std=std)


def item_table(config: TableConfig, catalog: Catalog, width: int, *, std: float = 0.02) -> Table:
    """Return a table of the items of a catalogue, whose codes are the item numbers; number 0 is padding."""
    size = catalog.num_items + 1
    return build_table(
        config,
        width,
        size if isinstance(config, DenseRows) else item_keys(catalog.ids.external),
        padding_idx=0,
        std=std,
    )


def item_keys(ids: pl.Series) -> Tensor:
    """Return the keys of item numbers 0..N: 0 for padding, then a stable key for each external id, [N + 1] int64."""
    return F.pad(torch.from_numpy(stable_keys(ids)), (1, 0))
