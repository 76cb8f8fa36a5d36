"""RowTable: base class of the tables whose rows are no codes; only the rows that a step reads have a gradient."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RowTable(nn.Embedding):
    """A table that finds the rows of 64-bit ids by their hashes. Row 0 is padding, the vector of id 0.

    Its gradient is sparse, and the optimizer must leave rows without a gradient unchanged (training.optimizers).

    Args:
        num_rows: number of rows in the beginning, row 0 included.
        width: width of the vectors (D).
        keys: ids of the codes that are looked up [C], int64; None: what is looked up are ids.

    """

    keys: Tensor | None

    def __init__(self, num_rows: int, width: int, *, keys: Tensor | None) -> None:
        super().__init__(num_rows, width, padding_idx=0, sparse=True)
        self.register_buffer("keys", keys, persistent=False)

    @abstractmethod
    def rows_of(self, ids: Tensor) -> Tensor:
        """Return the rows of ids, in their shape or with a last dimension more."""

    def all_vectors(self) -> Tensor:
        """Return the vectors of all codes, [C, D]."""
        assert self.keys is not None, "without codes there is no number of them"
        return self._read(self.keys)

    def forward(self, codes: Tensor) -> Tensor:
        """Return the vectors of codes (of ids, if there are no codes), [..., D]."""
        return self._read(self.ids_of(codes))

    def means(self, codes: Tensor, offsets: Tensor) -> Tensor:
        """Return the mean vector of each bag of codes, [bags, D]; bag b begins at `offsets[b]`, empty ones are 0."""
        distinct, places = torch.unique(codes, return_inverse=True)
        vectors: Tensor = self(distinct)
        if not len(distinct):
            return vectors.sum() * vectors.new_zeros(len(offsets), self.embedding_dim)
        return F.embedding_bag(places, vectors, offsets, mode="mean")

    def observe(self, codes: Tensor) -> None:
        """Count the occurrence of codes in a training batch; the kinds that need no counts ignore it."""

    def ids_of(self, codes: Tensor) -> Tensor:
        """Return the ids of codes."""
        return codes if self.keys is None else self.keys[codes]

    def _read(self, ids: Tensor) -> Tensor:
        return F.embedding(self.rows_of(ids), self.weight, self.padding_idx, sparse=self.sparse)
