"""VectorModel: base class of the recommenders whose score is an inner product of two vectors."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import rank_unseen_last, top_items

BLOCK_SCORES = 2**26  # scores that are computed at a time for a batch of lists: 256 MiB


class VectorModel(Recommender):
    """A model that ranks items by the inner product of a request vector and an item vector, plus an optional item bias.

    A subclass computes the vectors; this class computes scores and lists from them for all such models. It is an
    ItemScorer. With a `temperature`, scores are cosines divided by it, if the subclass passes its vectors through
    `scale_users` and `scale_items`.
    """

    temperature: float | None = None

    @property
    def can_rank_unseen_items(self) -> bool:
        """False, as the item vectors of most models are learned for each item separately."""
        return False

    @abstractmethod
    def user_vectors(self, batch: SequenceBatch) -> Tensor:
        """Return the vectors of the requests, [B, D]; every history has at least one event."""

    @abstractmethod
    def item_vectors(self) -> Tensor:
        """Return the vectors of all items, [N + 1, D]; row 0 is padding."""

    def item_biases(self) -> Tensor | None:
        """Return the bias that is added to the inner product of each item, [N + 1], or None if there are no biases."""
        return None

    def scores(self, batch: SequenceBatch) -> Tensor:
        """Return the score of every item for each request, [B, N + 1] (roles.ItemScorer)."""
        return self._scores(self.user_vectors(batch))

    def scale_users(self, vectors: Tensor) -> Tensor:
        """Return the vectors [..., D] scaled to length 1 / temperature; unchanged without a temperature."""
        return vectors if self.temperature is None else F.normalize(vectors, dim=-1) / self.temperature

    def scale_items(self, vectors: Tensor) -> Tensor:
        """Return the vectors [..., D] scaled to length 1; unchanged without a temperature."""
        return vectors if self.temperature is None else F.normalize(vectors, dim=-1)

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        return self._nearest(self.user_vectors(batch), batch, k)

    def _nearest(self, vectors: Tensor, batch: SequenceBatch, k: int) -> Recommendations:
        """Return the k best items for requests with the vectors `vectors [B, D]`.

        A subclass with an index overrides it and searches the index.
        """
        size = max(1, BLOCK_SCORES // (self.num_items + 1))
        if len(vectors) <= size:
            return top_items(self._scores(vectors), batch, k)
        rows = torch.arange(len(vectors), device=vectors.device)
        parts = [top_items(self._scores(vectors[part]), batch.select(part), k) for part in torch.split(rows, size)]
        return Recommendations(torch.cat([part.item_ids for part in parts]), torch.cat([part.scores for part in parts]))

    def _scores(self, vectors: Tensor) -> Tensor:
        """Return the score of every item for requests with the vectors `vectors [B, D]`, [B, N + 1]."""
        items, biases = self.item_vectors(), self.item_biases()
        scores = vectors @ items.T if biases is None else torch.addmm(biases, vectors, items.T)
        return rank_unseen_last(scores, self.unseen_items())
