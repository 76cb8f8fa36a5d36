"""Session reward: how good a whole list is, learned from the lists that were shown and what was done with them.

OneRec (arXiv 2502.18965, section 3.2): the vector of each item of the list, aware of the user by target attention;
self-attention over the list, so that items can help or hurt each other; their sum; and a tower for each behaviour with
a sigmoid. The paper does not say how the towers become one number: here it is their sum with declared weights.

Notable
- A tower predicts the share of the list's items with its behaviour. The cross-entropy of that share is the mean of the
  cross-entropies of the items, if all of them have the list's logit; so a list is trained as a request whose candidates
  are its items, and the model is a ranker whose candidates all have the score of their list.
- Each place of a list has a vector, as customers look at the first places more often.

Shapes: B lists, K items of a list, P items of all lists, X width of an item, D width of the attention, S behaviours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from nextitem.alignment.rewards.reward import Reward
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.jagged import Jagged
from nextitem.models.rankers.deep import DeepConfig, history_width
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.nn.attention.target_attention import TargetAttention
from nextitem.nn.fields.fields import FieldCodes, FieldVectors
from nextitem.nn.ranking.mlp import mlp


class ListModelConfig(DeepConfig):
    """Settings of ListModel; `hidden` are the widths of the layers of each tower."""

    attention_width: int = Field(32, ge=1)
    """Width of the self-attention over the list (D)."""
    heads: int = Field(2, ge=1)
    """Number of heads of the self-attention; must divide attention_width."""
    max_list_length: int = Field(20, ge=1)
    """Number of places of a list that have a vector of their own; later ones share the last."""
    unit: tuple[int, int] = (32, 16)
    """Widths of the hidden layers of the activation unit, which weighs history items."""


class ListModel(RankingModel):
    """Model of the behaviours that a whole list leads to; every item has the logits of its list."""

    Config = ListModelConfig
    config: ListModelConfig

    def __init__(self, config: ListModelConfig, catalog: Catalog) -> None:
        super().__init__(config, catalog)
        if config.attention_width % config.heads:
            raise ValueError(f"heads = {config.heads} must divide attention_width = {config.attention_width}")
        self.vectors = FieldVectors(self.fields, config.width, config.table)
        width = history_width(self.vectors)
        self.target_attention = TargetAttention(width, hidden=config.unit)
        self.project = nn.Linear(len(self.fields) * config.width + width, config.attention_width)
        self.places = nn.Embedding(config.max_list_length, config.attention_width)
        self.norm = nn.LayerNorm(config.attention_width)
        self.attention = nn.MultiheadAttention(config.attention_width, config.heads, batch_first=True)
        self.feed = mlp(config.attention_width, (2 * config.attention_width,), out=config.attention_width)
        self.towers = nn.ModuleList(
            mlp(config.attention_width, config.hidden, activation=config.activation, dropout=config.dropout, out=1)
            for _ in self.tasks
        )

    def logits(self, batch: SequenceBatch, codes: FieldCodes) -> Tensor:
        """Return the logits [P, S] of the lists, one row for each of their items."""
        assert batch.candidates is not None
        recent = batch.items.last(self.config.max_history_length)
        queries = self.vectors.of_items(batch.candidates.values)
        keys = self.vectors.of_items(recent.to_padded())
        interest = self.target_attention(queries, keys, recent.lengths, codes.rows)
        vectors_PD = self.project(torch.cat([self.vectors(codes).flatten(1), interest], 1))
        lengths, rows = batch.candidates.lengths, batch.candidates.row_ids()
        places = torch.arange(len(rows), device=rows.device) - batch.candidates.offsets[rows]
        vectors_PD = vectors_PD + self.places(places.clamp(max=self.config.max_list_length - 1))
        hidden_BKD = Jagged.from_lengths(vectors_PD, lengths).to_padded()
        is_padding = torch.arange(hidden_BKD.shape[1], device=rows.device) >= lengths[:, None]
        normed = self.norm(hidden_BKD)
        # An empty list has no key to attend to; its first place is read, and the sum leaves it out.
        hidden_BKD = (
            hidden_BKD
            + self.attention(
                normed, normed, normed, key_padding_mask=is_padding & (lengths > 0)[:, None], need_weights=False
            )[0]
        )
        hidden_BKD = hidden_BKD + self.feed(hidden_BKD)
        pooled_BD = hidden_BKD.masked_fill(is_padding[..., None], 0).sum(1)
        return torch.cat([tower(pooled_BD) for tower in self.towers], 1)[rows]


class SessionReward(Reward):
    """Sum with weights of the shares of a list's items that a ListModel predicts each behaviour for."""

    def __init__(self, model: ListModel, weights: dict[str, float], *, name: str) -> None:
        self.model, self.weights, self.name = model.eval(), dict(weights), name

    @torch.no_grad()
    def score(self, batch: SequenceBatch, item_ids: Tensor) -> Tensor:
        """Return the rewards [B, G]."""
        num_requests, num_lists, _ = item_ids.shape
        rows = torch.arange(num_requests, device=item_ids.device).repeat_interleave(num_lists)
        lists = item_ids.flatten(0, 1)
        lengths = (lists > 0).sum(1)
        candidates = Jagged.from_lengths(lists[lists > 0], lengths)
        empty: dict[str, Any] = {"candidate_features": {}, "candidate_labels": {}}
        scores = self.model.score(replace(batch.select(rows), candidates=candidates, **empty))
        first = torch.stack([weight * scores[task][:, :1] for task, weight in self.weights.items()]).sum(0)
        values = first[:, 0] if first.shape[1] else lists.new_zeros(len(lists)).float()
        return values.masked_fill(lengths == 0, 0).view(num_requests, num_lists)

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device."""
        self.model.to(device)
        return self
