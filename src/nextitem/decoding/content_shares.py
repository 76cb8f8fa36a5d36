"""Content shares: probabilities of items without a training event, from their content and that of the history.

A generator has learned nothing about such an item. What is left is how similar its content is to that of the history,
compared with all other items that the request does not exclude:

    q(i) = softmax over the items of (cos(p, c_i) / temperature),  p = sum of decay ** age(j) c_j, last events j

An item without an event gets the score log(weight q(i)), and the others have the logarithms of their probabilities: of
the generator's, or of the mixture with a guide. So new items are listed if the history is about them, and displace few
others if not. The generator searches the other items alone, and both lists are merged.

The cost is a product with the content of the whole catalogue for each request.

Shapes: B requests, N items, D content width, K returned.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.recommendations import Recommendations
from nextitem.core.top_items import top_items


class ContentSharesConfig(configs.Config):
    """Settings of the shares of items without a training event."""

    weight: float = Field(1.2, gt=0)
    """Factor on the shares; a higher one lists more items without an event."""
    temperature: float = Field(0.135, gt=0)
    """Temperature of the softmax over cosines: a lower one favours the most similar items more."""
    recent_items: int = Field(10, ge=1)
    """Number of most recent events of the history whose content is read."""
    recency_decay: float = Field(0.7, gt=0, le=1)
    """Factor on the weight of an event for each later event."""


class ContentShares(nn.Module):
    """Shares of the items without a training event; it has no weights of its own."""

    directions: Tensor

    def __init__(self, config: ContentSharesConfig, content: Tensor) -> None:
        """Scale `content [N + 1, D]` to length 1."""
        super().__init__()
        self.config = config
        self.register_buffer("directions", F.normalize(content, dim=1), persistent=False)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Return log q of all items for each request, [B, N + 1]; -inf for padding and excluded items.

        If the history has no content, all items have equal shares.
        """
        config, recent = self.config, batch.items.last(self.config.recent_items)
        age = recent.offsets[1:][recent.row_ids()] - 1 - torch.arange(len(recent.values), device=recent.values.device)
        read = self.directions[recent.values] * (config.recency_decay**age)[:, None]
        profiles = read.new_zeros(recent.num_rows, read.shape[1]).index_add_(0, recent.row_ids(), read)
        logits = F.normalize(profiles, dim=1) @ self.directions.T / config.temperature
        logits[:, 0] = -torch.inf
        if batch.excluded is not None:
            logits[batch.excluded.row_ids(), batch.excluded.values] = -torch.inf
        return logits.log_softmax(1)

    def merge(self, answer: Recommendations, batch: SequenceBatch, unseen: Tensor) -> Recommendations:
        """Return the best K items of `answer`, which contains seen items alone, and of `unseen` items, bool [N + 1].

        Only items that the request allows are returned. Equal scores: the smaller item number first.
        """
        k = answer.item_ids.shape[1]
        shares = (self(batch) + math.log(self.config.weight)).masked_fill(~unseen, -torch.inf)
        new = top_items(shares, batch, k)
        items, by_item = torch.cat([answer.item_ids, new.item_ids], dim=1).sort(dim=1, stable=True)
        scores = torch.cat([answer.scores, new.scores], dim=1).gather(1, by_item)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return replace(answer, item_ids=items.gather(1, order)[:, :k], scores=scores[:, :k])
