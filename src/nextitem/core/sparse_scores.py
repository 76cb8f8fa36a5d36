"""SparseScores: scores of the items that a model reaches; all other items of a request have none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged


@dataclass(frozen=True, eq=False)
class SparseScores:
    """Scores of some items for B requests; an item that is not listed has the score 0.

    Attributes:
        items: item ids, Jagged int64, without repeats in a row.
        values: [T] float32, the score of each of these items, at least 0.
        num_items: number of items of the catalogue (N).

    """

    items: Jagged
    values: Tensor
    num_items: int

    def __post_init__(self) -> None:
        if self.values.shape != self.items.values.shape:
            raise ValueError(f"{len(self.values)} values for {len(self.items.values)} items")

    def to_dense(self) -> Tensor:
        """Return the scores of all items, [B, N + 1]."""
        dense = self.values.new_zeros(self.items.num_rows, self.num_items + 1)
        dense[self.items.row_ids(), self.items.values] = self.values
        return dense

    def totals(self) -> Tensor:
        """Return the sum of the scores of each request, [B]."""
        return self.values.new_zeros(self.items.num_rows).index_add_(0, self.items.row_ids(), self.values)

    def to(self, device: torch.device | str) -> SparseScores:
        """Return the same scores on another device."""
        return SparseScores(self.items.to(device), self.values.to(device), self.num_items)
