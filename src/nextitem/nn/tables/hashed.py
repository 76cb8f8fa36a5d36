"""HashedTable: a fixed number of rows for any number of ids.

The vector of an id is the sum of k rows, one for each hash function, as in the hash embeddings of Svenstrup et al.,
NIPS 2017, without their weights. Two ids have the same vector only if they share all k rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextitem.nn.tables.id_hash import hash_ids
from nextitem.nn.tables.kinds import HashedRows
from nextitem.nn.tables.row_table import RowTable

_FIRST_SEED = 30


class HashedTable(RowTable):
    """Vectors of ids as sums of shared rows.

    Args:
        config: settings of the table.
        width: width of the vectors (D).
        keys: ids of the codes that are looked up [C], int64; None: what is looked up are ids.
        std: standard deviation of the initial vectors.

    """

    def __init__(self, config: HashedRows, width: int, *, keys: Tensor | None = None, std: float = 1.0) -> None:
        super().__init__(config.rows + 1, width, keys=keys)
        self.hashes = config.hashes
        nn.init.normal_(self.weight, std=std * self.hashes**-0.5)
        nn.init.zeros_(self.weight[0])

    def rows_of(self, ids: Tensor) -> Tensor:
        """Return the rows whose sum is the vector of each id, [..., hashes]; row 0 for id 0."""
        hashes = torch.stack([hash_ids(ids, _FIRST_SEED + number) for number in range(self.hashes)], -1)
        return (1 + hashes % (self.num_embeddings - 1)) * (ids != 0)[..., None]

    def _read(self, ids: Tensor) -> Tensor:
        return super()._read(ids).sum(-2)
