"""CountSketch: approximate numbers of occurrences of ids, in memory that does not grow with the number of ids.

Cormode and Muthukrishnan, An Improved Data Stream Summary: the Count-Min Sketch, J. Algorithms 2005. Each of four hash
functions maps an id to a cell, and an occurrence is counted in all four cells. The smallest of them is the estimate: it
is never too small, and exact unless other ids share all four cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.nn.tables.id_hash import NUM_SLICES, cells_of

NUM_HASHES = 4
_FIRST_SEED = 10


class CountSketch(nn.Module):
    """Count-min sketch; sketches of different slices of ids add up to the sketch of all.

    Args:
        num_cells: number of cells of each hash function, a multiple of NUM_SLICES.

    """

    cells: Tensor

    def __init__(self, num_cells: int) -> None:
        super().__init__()
        if num_cells % NUM_SLICES:
            raise ValueError(f"num_cells must be a multiple of {NUM_SLICES}, got {num_cells}")
        self.register_buffer("cells", torch.zeros(NUM_HASHES, num_cells, dtype=torch.int32))

    def add(self, ids: Tensor, counts: Tensor) -> Tensor:
        """Count occurrences of distinct ids [n], and return the estimates after that, [n] int64."""
        places = self._places(ids)
        for cells, place in zip(self.cells, places, strict=True):
            cells.index_add_(0, place, counts.to(torch.int32))
        return self._smallest(places)

    def estimate(self, ids: Tensor) -> Tensor:
        """Return the estimated number of occurrences of each id, [n] int64."""
        return self._smallest(self._places(ids))

    def _places(self, ids: Tensor) -> list[Tensor]:
        num_cells = self.cells.shape[1]
        return [cells_of(ids, count=num_cells, seed=_FIRST_SEED + number) for number in range(NUM_HASHES)]

    def _smallest(self, places: list[Tensor]) -> Tensor:
        by_hash = [cells[place] for cells, place in zip(self.cells, places, strict=True)]
        return torch.stack(by_hash).amin(0).long()
