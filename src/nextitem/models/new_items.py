"""New items: recent or rare items similar to the history, with an exploration bonus for items with few events.

An item is new if it was released shortly before the request, or if training has few events of it. New items are ranked
by the cosine of their content with the history's, plus an exploration bonus that falls with the item's number of
events, as upper confidence bounds do (Auer et al., 2002). At most `quota` of them head a list, so that items without
evidence cannot fill it.

    new(i)   = released(i) <= t  and  (released(i) > t - days  or  events(i) <= few_events)
    score(i) = 1 + cos(p, c_i) + exploration / sqrt(1 + events(i))           p: profile, as in content-neighbours

Notable
- The bonus is deterministic, not sampled: the same request gets the same list. It shrinks only with further training
  events.
- t is the request's time, or else that of the last training event (data/last_time.py). Items released after t are
  never new. Without release dates `few_events` alone decides.
- An item of the history is not new for that request.
- The other items follow by popularity, with scores of at most 0.

Shapes: B requests, N items, D content width, K returned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import Requirement
from nextitem.core.dataset import Dataset
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.recommender import Recommender
from nextitem.core.top_items import top_shared_items
from nextitem.data.last_time import last_time
from nextitem.neighbours.ann_index import AnnIndex, ExactIndex
from nextitem.neighbours.votes import recent_history

DAY_MS = 86_400_000


class NewItemsConfig(configs.Config):
    """Settings of NewItems."""

    days: float = Field(30.0, gt=0)
    """Number of days after its release during which an item counts as new."""
    few_events: int = Field(5, ge=0)
    """Number of training events up to which an item counts as new, whatever its release date."""
    quota: int = Field(200, ge=1)
    """Maximum number of new items at the head of a list."""
    exploration: float = Field(0.1, ge=0)
    """Exploration bonus of an item without any event, in units of the cosine."""
    recent_items: int | None = Field(10, ge=1)
    """Number of most recent items of the history in the profile; None: all."""
    recency_decay: float = Field(0.7, gt=0, le=1)
    """Factor on the weight of an item for each later event."""


class NewItems(Recommender):
    """A recommender that ranks new items by content and an exploration bonus."""

    Config = NewItemsConfig
    config: NewItemsConfig
    known_answers: ClassVar[tuple[str, ...]] = ()
    can_rank_unseen_items = True
    needs: ClassVar[frozenset[Requirement]] = frozenset({"content"})
    vectors: Tensor
    rare: Tensor
    last_time: Tensor

    def __init__(self, config: NewItemsConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        assert catalog.content is not None, "the pipeline adds content if `needs` contains it"
        rows, width = catalog.content.shape
        self.register_buffer("vectors", torch.zeros(rows, width + 1))  # content of length 1, and the bonus
        self.register_buffer("rare", torch.zeros(rows, dtype=torch.bool))
        self.register_buffer("last_time", torch.tensor(0))
        self.index = AnnIndex(ExactIndex())

    def fit(self, train: Dataset) -> None:
        """Count the training events of each item; nothing else is learned."""
        assert self.catalog.content is not None
        counts = torch.from_numpy(train.interactions.item_counts())
        content = torch.nn.functional.normalize(self.catalog.content, dim=1)
        self.vectors = torch.cat([content, self.config.exploration / (1 + counts[:, None]).sqrt()], dim=1)
        self.index.build(self.vectors)
        self.rare = counts <= self.config.few_events
        times = train.interactions.timestamps
        # A stray date in the future would leave nothing new.
        slack_ms = self.config.days * DAY_MS
        self.last_time = torch.tensor(0 if times is None or not len(times) else last_time(times, slack_ms=slack_ms))

    def new_items(self, batch: SequenceBatch) -> Tensor:
        """Return the items that are new to each request, bool [B, N + 1]; column 0 is false."""
        released = self.catalog.released_ms
        if released is None:
            is_new = self.rare.expand(batch.num_requests, -1).clone()
        else:
            times = self.last_time.expand(batch.num_requests) if batch.request_times is None else batch.request_times
            # Comparisons alone, so that no row of times is stored for each request.
            release_times, start_times = torch.tensor(released), times[:, None] - int(self.config.days * DAY_MS)
            is_new = torch.zeros(batch.num_requests, self.num_items + 1, dtype=torch.bool)
            is_new[:, 1:] = release_times > start_times
            is_new[:, 1:] |= self.rare[1:]
            is_new[:, 1:] &= release_times <= times[:, None]
        is_new[batch.items.row_ids(), batch.items.values] = False
        is_new[:, 0] = False
        return is_new

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        is_new = self.new_items(batch)
        if batch.allowed is not None:
            is_new &= batch.allowed
        head, scores = self.index.search(
            self.vectors, self._queries(batch), min(k, self.config.quota), allowed=is_new, excluded=batch.excluded
        )
        scores = 1 + scores
        if head.shape[1] == k and bool((head[:, -1] > 0).all()):
            return Recommendations(head, scores)
        others = (self.popularity / self.popularity.max().clamp(min=1) - 1)[None]
        head_items = Jagged.from_padded(head, (head > 0).sum(1))
        excluded = head_items if batch.excluded is None else batch.excluded.append(head_items)
        first_row = torch.zeros(batch.num_requests, dtype=torch.int64)
        other_items = top_shared_items(others, first_row, replace(batch, excluded=excluded), k)
        items, values = torch.cat([head, other_items.item_ids], 1), torch.cat([scores, other_items.scores], 1)
        order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
        return Recommendations(items.gather(1, order), values.gather(1, order))

    def _queries(self, batch: SequenceBatch) -> Tensor:
        """Return the profiles of length 1, with a 1 for the bonus, [B, D + 1]."""
        config = self.config
        history = recent_history(batch, count=config.recent_items, decay=config.recency_decay, num_items=self.num_items)
        rows = torch.from_numpy(np.repeat(np.arange(batch.num_requests), np.diff(history.indptr)))
        vectors = self.vectors[torch.from_numpy(history.indices).long(), :-1] * torch.from_numpy(history.data)[:, None]
        profiles = vectors.new_zeros(batch.num_requests, vectors.shape[1]).index_add_(0, rows, vectors)
        return torch.nn.functional.pad(torch.nn.functional.normalize(profiles, dim=1), (0, 1), value=1.0)
