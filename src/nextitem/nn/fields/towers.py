"""Towers: vectors of requests and of items from their fields (nn/fields/fields.py).

Shapes: B requests, L events of a history, D width of the vectors that meet, E width of a field's vector, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.nn.fields.fields import Fields, FieldVectors
from nextitem.nn.fields.item_features import CONTENT
from nextitem.nn.fields.kinds import HOUR_MS, MOST, Field, ItemField, ItemId, logarithmic

NEVER = -1e9  # a logit that no other is as low as, and that adds up


@dataclass(frozen=True)
class TowerSizes:
    """What both towers have alike: D, E, the hidden layers' units, and the share of these that is dropped."""

    width: int
    field_width: int
    hidden: tuple[int, ...]
    dropout: float

    def layers(self, inputs: int) -> nn.Sequential:
        """From what a tower reads to D."""
        units = (inputs, *self.hidden)
        hidden = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(self.dropout)) for a, b in pairwise(units)]
        return nn.Sequential(*chain(*hidden), nn.Linear(units[-1], self.width))


class ItemTower(nn.Module):
    """Vectors of items from fields that items alone decide (none named: all), and, where named, "content".

    `id_dropout`: share of items whose id is hidden in training, so that the others learn to stand alone.
    """

    def __init__(
        self, catalog: Catalog, names: Sequence[str], sizes: TowerSizes, *, buckets: int, id_dropout: float
    ) -> None:
        super().__init__()
        there = _names(catalog, lambda part: isinstance(part, ItemField))
        named = [name for name in names if name != CONTENT]
        self.fields = Fields(catalog, _among(there, named, what="items"), buckets=buckets)
        self.table = FieldVectors(self.fields, sizes.field_width)
        self.content = None
        inputs = self.table.item_width
        if CONTENT in names:
            assert catalog.content is not None, "the recipe makes content vectors where a model needs them"
            self.register_buffer("vectors", catalog.content, persistent=False)
            self.content = nn.Linear(catalog.content.shape[1], sizes.field_width)
            inputs += sizes.field_width
        ids = [place for place, (_, part) in enumerate(self.fields.items()) if isinstance(part, ItemId)]
        self.id_columns = [slice(place * sizes.field_width, (place + 1) * sizes.field_width) for place in ids]
        self.id_dropout = id_dropout
        self.layers = sizes.layers(inputs)
        self.reading = nn.Linear(inputs, sizes.width)

    def forward(self, item_ids: Tensor) -> Tensor:
        """The vectors of items as candidates, of length 1 [n, D]."""
        return F.normalize(self.layers(self._inputs(item_ids)), dim=1)

    def read(self, item_ids: Tensor) -> Tensor:
        """The vectors of items as parts of a history [n, D]."""
        out: Tensor = self.reading(self._inputs(item_ids))
        return out

    def _inputs(self, item_ids: Tensor) -> Tensor:
        inputs = self.table.of_items(item_ids)
        if self.training and self.id_dropout:
            for columns in self.id_columns:
                inputs[:, columns] *= torch.rand(len(inputs), 1, device=inputs.device) >= self.id_dropout
        if self.content is not None:
            inputs = torch.cat([inputs, self.content(self.vectors[item_ids])], dim=1)  # type: ignore[index]
        return inputs


class UserTower(nn.Module):
    """Vectors of requests from their own fields (none named: all) and the items that they hold.

    Each of `heads` weighs the L latest events by what they are, how many events and how long ago.
    """

    def __init__(
        self,
        catalog: Catalog,
        names: Sequence[str],
        sizes: TowerSizes,
        *,
        buckets: int,
        heads: int,
        max_history_length: int,
    ) -> None:
        super().__init__()
        there = _names(catalog, lambda part: part.of == "request")
        self.fields = Fields(
            catalog, _among(there, names, what="requests"), max_history_length=max_history_length, buckets=buckets
        )
        self.table = FieldVectors(self.fields, sizes.field_width)
        self.weigh = nn.Linear(sizes.width, heads)
        # Heads begin with a mean, and with ever steeper preferences for the latest events.
        slopes = torch.arange(heads) / 2
        self.by_place = nn.Parameter(-slopes * torch.arange(max_history_length)[:, None])  # 0: the last event
        self.by_age = nn.Embedding(MOST, heads)
        nn.init.zeros_(self.by_age.weight)
        self.dropout = nn.Dropout(sizes.dropout)  # of sums: of each event it would cost as much as the rest
        self.layers = sizes.layers(len(self.fields) * sizes.field_width + (heads + 1) * sizes.width)

    def forward(self, batch: SequenceBatch, read: Tensor) -> Tensor:
        """[B, D] of length 1, of requests with at most L events, whose items have the vectors `read [T, D]`."""
        nothing = Jagged.from_lengths(batch.items.values[:0], torch.zeros_like(batch.items.lengths))
        codes = self.fields(replace(batch, candidates=nothing, candidate_features={}))
        known = self.table.of_requests(codes).flatten(1)
        length = max(1, int(batch.items.lengths.max()))
        read_BLD = batch.items.with_values(read).to_padded(length, align="right")
        place = torch.arange(length - 1, -1, -1, device=read.device)
        logits_BLH = self.weigh(read_BLD) + self.by_place[place] + self.by_age(self._ages(batch, length))
        nobody = place >= batch.items.lengths[:, None]
        weights_BLH = logits_BLH.masked_fill(nobody[..., None], NEVER).softmax(1)
        pooled = (weights_BLH.transpose(1, 2) @ read_BLD).flatten(1)
        held = self.dropout(torch.cat([pooled, read_BLD[:, -1]], dim=1))
        return F.normalize(self.layers(torch.cat([known, held], dim=1)), dim=1)

    def _ages(self, batch: SequenceBatch, length: int) -> Tensor:
        """How long before the request each event was, a code on a logarithmic scale [B, L]; 0: not known."""
        if batch.timestamps is None or batch.request_times is None:
            return batch.items.values.new_zeros(batch.num_requests, length)
        age = batch.request_times[batch.items.row_ids()] - batch.timestamps.values
        return batch.items.with_values(logarithmic(age.clamp(min=0) / HOUR_MS + 1)).to_padded(length, align="right")


def _names(catalog: Catalog, wanted: Callable[[Field], bool]) -> list[str]:
    every = Fields(catalog)
    return [name for name, part in zip(every.names, every.parts, strict=True) if wanted(cast(Field, part))]


def _among(there: list[str], named: Sequence[str], *, what: str) -> Sequence[str]:
    for name in named:
        if name not in there:
            raise UserError(f"{name!r} is no field of {what}; there are {', '.join(there)}")
    return named or there
