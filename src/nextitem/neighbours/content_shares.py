"""Content shares: probabilities of items without a training event, from their content and that of the history.

A generator has learned nothing about such an item. What is left is how similar its content is to that of the history,
compared with all other items that the request does not exclude, and what usually follows the history:

    q(i) = softmax over the items of (cos(p, c_i) + transition_weight b(i)) / temperature
    p    = sum of decay ** age(j) c_j                       over the last events j of the history
    b(i) = log(1 + s(i) / mean of v over items with events)  of an item without an event; 0 of all others
    s(i) = weighted mean of v(j)                            over the items with events nearest to i in content
    v(j) = w(j) / sqrt(training events of j),  w = h T + second_step h T T,  h(j) = decay ** age(j)

T are the row-normalised transitions of training. So an item without an event inherits the transitions of items like it:
cosines alone compare topics, and do not know that a charger is bought after a phone.

An item without an event gets the score log(weight q(i) ** power), and the others have the logarithms of their
probabilities: of the generator's, or of the mixture with a guide. So new items are listed if the history is about them,
and displace few others if not. The generator searches the other items alone, and both lists are merged.

The cost is a product with the content of the whole catalogue for each request. The nearest items of the new items are
computed once, when the numbers of training events are set or loaded.

Shapes: B requests, N items, U items without an event, D content width, K returned.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.recommendations import Recommendations
from nextitem.core.top_items import top_items
from nextitem.neighbours.sparse_rows import SparseRows, ages, keep_largest, weighted_histories
from nextitem.neighbours.transitions import item_transitions
from nextitem.ops.topk import stable_topk

# Chosen on validation requests of Beauty, where none of them matters much (decision 97).
LAG_WEIGHTS = (1.0, 0.5, 0.25)  # of transitions between events that are 1, 2 and 3 events apart
BACKWARD = 0.5  # weight of the reverse of a transition
MAX_TRANSITIONS = 100  # transitions of an item that are stored, the most frequent ones
SECOND_STEP = 0.3  # weight of walks of two transitions
NEAREST_ITEMS = 30  # items with events that an item without one inherits from
NEAREST_TEMPERATURE = 0.05  # of the softmax over their cosines, by which they are weighted
BLOCK_ENTRIES = 2**24  # cosines in memory at a time: 64 MiB


class ContentSharesConfig(configs.Config):
    """Settings of the shares of items without a training event."""

    weight: float = Field(0.0285, gt=0)
    """Factor on the shares; a higher one lists more items without an event. With a guide a seventh of it costs the
    others as much, because the probabilities of the mixture are lower."""
    power: float = Field(0.45, gt=0, le=1)
    """Exponent of the shares: below 1, they differ less between requests and items."""
    temperature: float = Field(0.1, gt=0)
    """Temperature of the softmax over cosines: a lower one favours the most similar items more."""
    transition_weight: float = Field(0.07, ge=0)
    """Weight of what follows the history, by the transitions of similar items, in units of a cosine; 0: none."""
    recent_items: int = Field(10, ge=1)
    """Number of most recent events of the history that are read."""
    recency_decay: float = Field(0.7, gt=0, le=1)
    """Factor on the weight of an event for each later event."""


class ContentShares(nn.Module):
    """Shares of the items without a training event; it has no trained weights, and stores transitions.

    Attributes:
        directions: [N + 1, D], content of length 1, or 0 for items without content.
        transitions: [N + 1, N + 1], T; None if they have no weight.
        new_items: [U] int64, the items without an event.
        near_items: [U, n] int64, for each of them the nearest items with events.
        near_weights: [U, n], weights of these in s, the square root included; 0 if the item has no content.
        mean_weights: [N + 1], weights in the mean of v over the items with events.

    Args:
        config: settings.
        content: [N + 1, D], content of the items.

    Raises:
        ValueError: there is no content.

    """

    directions: Tensor
    new_items: Tensor
    near_items: Tensor
    near_weights: Tensor
    mean_weights: Tensor

    def __init__(self, config: ContentSharesConfig, content: Tensor | None) -> None:
        super().__init__()
        if content is None:
            raise ValueError("content_shares needs a catalogue with content: the pipeline adds it from the items table")
        self.config = config
        self.register_buffer("directions", F.normalize(content, dim=1), persistent=False)
        self.transitions = SparseRows() if config.transition_weight else None
        if self.transitions is not None:
            self.transitions.store(sp.csr_matrix((len(content), len(content)), dtype=np.float32))  # none counted yet
        self.set_popularity(torch.zeros(len(content)), None)

    def count_transitions(self, train: Dataset) -> None:
        """Count the transitions of the training events, and store the most frequent ones of each item."""
        if self.transitions is not None:
            counts = item_transitions(train.interactions.targets_only(), LAG_WEIGHTS, backward=BACKWARD)
            self.transitions.store(keep_largest(counts, MAX_TRANSITIONS))

    def set_popularity(self, counts: Tensor, unseen: Tensor | None) -> None:
        """Store which items have no event, and compute the nearest of the others.

        Args:
            counts: number of training events of each item, [N + 1].
            unseen: the items without one, bool [N + 1]; None if no item is to be ranked by its content.

        """
        counts = counts.to(self.directions.device)
        is_new = torch.zeros_like(counts, dtype=torch.bool) if unseen is None else unseen.to(counts.device)
        new_items = is_new.nonzero()[:, 0]
        seen = counts.nonzero()[:, 0]
        rarity = torch.where(counts > 0, counts.clamp(min=1).rsqrt(), 0.0)
        values = {"new_items": new_items, "mean_weights": rarity / max(1, len(seen))}
        values["near_items"], weights = self._nearest(new_items, seen)
        values["near_weights"] = weights * rarity[values["near_items"]]
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    def _nearest(self, items: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
        """Return the items `among` that are nearest in content to each of `items`, [U, n], and their weights [U, n]."""
        count = min(NEAREST_ITEMS, len(among)) if self.transitions is not None else 0
        near, weights = [among.new_zeros(0, count)], [self.directions.new_zeros(0, count)]
        for part in items.split(max(1, BLOCK_ENTRIES // max(1, len(among)))) if count else ():
            cosines, places = stable_topk(self.directions[part] @ self.directions[among].T, count)
            has_content = self.directions[part].any(1, keepdim=True)
            near.append(among[places])
            weights.append((cosines / NEAREST_TEMPERATURE).softmax(1) * has_content)
        return torch.cat(near), torch.cat(weights)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Return log q of all items for each request, [B, N + 1]; -inf for padding and excluded items.

        If the history has neither content nor transitions, all items have equal shares.
        """
        config, recent = self.config, batch.items.last(self.config.recent_items)
        weights = config.recency_decay ** ages(recent.offsets)
        read = self.directions[recent.values] * weights[:, None]
        profiles = read.new_zeros(recent.num_rows, read.shape[1]).index_add_(0, recent.row_ids(), read)
        logits = F.normalize(profiles, dim=1) @ self.directions.T
        if self.transitions is not None and self.near_items.numel():
            logits[:, self.new_items] += config.transition_weight * self._surpluses(batch).log1p()
        logits /= config.temperature
        logits[:, 0] = -torch.inf
        if batch.excluded is not None:
            logits[batch.excluded.row_ids(), batch.excluded.values] = -torch.inf
        return logits.log_softmax(1)

    def _surpluses(self, batch: SequenceBatch) -> Tensor:
        """Return s of the items without an event, as a multiple of the mean of v, [B, U]; 0 without transitions."""
        assert self.transitions is not None
        events, decay = batch.items.last(self.config.recent_items), self.config.recency_decay
        matrix, num_items = self.transitions.matrix(), len(self.directions) - 1
        weights = decay ** ages(events.offsets)
        step = weighted_histories(events.values, events.offsets, weights, num_items=num_items) @ matrix
        walk = (step + SECOND_STEP * (step @ matrix)).toarray().astype(np.float32, copy=False)
        reached = torch.from_numpy(walk).to(self.directions.device)
        mean = (reached @ self.mean_weights)[:, None]
        inherited = F.embedding_bag(
            self.near_items, reached.T.contiguous(), per_sample_weights=self.near_weights, mode="sum"
        ).T
        return torch.where(mean > 0, inherited / mean.clamp(min=torch.finfo(mean.dtype).tiny), 0.0)

    def merge(self, answer: Recommendations, batch: SequenceBatch) -> Recommendations:
        """Return the best K items of `answer`, which contains items with events alone, and of those without.

        Only items that the request allows are returned. Equal scores: the smaller item number first.
        """
        if not len(self.new_items):
            return answer
        k, config = answer.item_ids.shape[1], self.config
        shares = self(batch)[:, self.new_items] * config.power + math.log(config.weight)
        scores = shares.new_full((len(shares), len(self.directions)), -torch.inf)
        scores[:, self.new_items] = shares
        new = top_items(scores, batch, k)
        items, by_item = torch.cat([answer.item_ids, new.item_ids], dim=1).sort(dim=1, stable=True)
        scores = torch.cat([answer.scores, new.scores], dim=1).gather(1, by_item)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return replace(answer, item_ids=items.gather(1, order)[:, :k], scores=scores[:, :k])
