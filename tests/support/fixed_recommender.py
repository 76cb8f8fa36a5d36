"""A recommender with fixed scores, and small data sets and requests for it."""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Config
from nextitem.core.dataset import Dataset
from nextitem.core.identifiers import IdentifierTable
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import top_items
from nextitem.testing.known_answers import build


class Fixed(Recommender):
    """A recommender with the same scores [N + 1] for every request."""

    Config = Config

    def __init__(self, catalog: Catalog, scores: Tensor) -> None:
        super().__init__(Config(), catalog)
        self.scores = scores

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        return top_items(self.scores.expand(batch.num_requests, -1).clone(), batch, k)


def shop(sequences: list[list[int]], *, items: int) -> Dataset:
    """Return a data set of these sequences; all titles are different."""
    return build(sequences, [f"word{item} same" for item in range(1, items + 1)], name="made")


def ask(histories: list[list[int]], targets: list[list[int]], *, excluded: bool = False) -> SequenceBatch:
    """Return requests with these histories and targets; `excluded`: the items of the history are excluded."""
    items = Jagged.from_rows(histories)
    return SequenceBatch(items, targets=Jagged.from_rows(targets), excluded=items if excluded else None)


def identified(dataset: Dataset, codes: list[list[int]], sizes: tuple[int, ...]) -> Dataset:
    """Return the data set with these semantic IDs."""
    table = IdentifierTable.from_item_codes(
        torch.tensor(codes), codebook_sizes=sizes, catalog_fingerprint=dataset.catalog.fingerprint
    )
    return dataset.with_catalog(dataset.catalog.with_identifiers(table))
