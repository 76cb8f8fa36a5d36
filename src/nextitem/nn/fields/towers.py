"""Towers: networks that compute vectors of requests and of items from their fields (nn/fields/fields.py).

Shapes: B requests, L events of a history, T events of all histories, D width of the vectors that the towers return,
E width of a field's vector, H heads.
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
from nextitem.nn.fields.kinds import HOUR_MS, NUM_LOG_CODES, Field, ItemField, ItemId, logarithmic
from nextitem.nn.fields.relative_kinds import RelativeNumber
from nextitem.nn.tables.kinds import TableConfig

MASKED_LOGIT = -1e9  # far below any other logit, but finite, so that the softmax of an empty history is not NaN


@dataclass(frozen=True)
class TowerSizes:
    """Sizes that both towers share.

    Attributes:
        width: width of the vectors that they return (D).
        field_width: width of the vector of a field (E).
        hidden: number of units of each hidden layer.
        dropout: dropout rate of the hidden layers.
        table: kind of the table of the fields' vectors.

    """

    width: int
    field_width: int
    hidden: tuple[int, ...]
    dropout: float
    table: TableConfig

    def layers(self, inputs: int) -> nn.Sequential:
        """Return the layers of a tower, from `inputs` numbers to D."""
        units = (inputs, *self.hidden)
        hidden = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(self.dropout)) for a, b in pairwise(units)]
        return nn.Sequential(*chain(*hidden), nn.Linear(units[-1], self.width))


class ItemTower(nn.Module):
    """Network that computes the vectors of items from fields that depend on the item alone.

    Args:
        catalog: catalogue with the items.
        names: names of the fields, and "content" for content vectors; without a name of a field all fields are read.
        sizes: sizes that both towers share.
        buckets: number of buckets of a numeric column.
        id_dropout: fraction of items whose id is masked in training, so that the other fields learn to do without it.

    Raises:
        UserError: one of `names` is no field of items.

    """

    def __init__(
        self, catalog: Catalog, names: Sequence[str], sizes: TowerSizes, *, buckets: int, id_dropout: float
    ) -> None:
        super().__init__()
        available = _field_names(
            catalog, lambda part: isinstance(part, ItemField) and not isinstance(part, RelativeNumber)
        )
        selected = [name for name in names if name != CONTENT]
        self.fields = Fields(catalog, _checked_names(available, selected, owners="items"), buckets=buckets)
        self.table = FieldVectors(self.fields, sizes.field_width, sizes.table)
        self.content = None
        inputs = self.table.item_width
        if CONTENT in names:
            assert catalog.content is not None, "the pipeline computes content vectors if a model needs them"
            self.register_buffer("vectors", catalog.content, persistent=False)
            self.content = nn.Linear(catalog.content.shape[1], sizes.field_width)
            inputs += sizes.field_width
        ids = [index for index, (_, part) in enumerate(self.fields.items()) if isinstance(part, ItemId)]
        self.id_columns = [slice(index * sizes.field_width, (index + 1) * sizes.field_width) for index in ids]
        self.id_dropout = id_dropout
        self.layers = sizes.layers(inputs)
        self.reading = nn.Linear(inputs, sizes.width)

    def forward(self, item_ids: Tensor) -> Tensor:
        """Return the unit vectors of items as candidates [n, D]."""
        return F.normalize(self.layers(self._inputs(item_ids)), dim=1)

    def read(self, item_ids: Tensor) -> Tensor:
        """Return the vectors of items as events of a history [n, D]."""
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
    """Network that computes the vectors of requests from their own fields and the items of their histories.

    Each head weights the L latest events by their item, by the number of later events and by their age.

    Args:
        catalog: catalogue, which decides what fields there are.
        names: names of the fields of requests; empty for all.
        sizes: sizes that both towers share.
        buckets: number of buckets of a numeric column.
        heads: number of weighted means of the history (H).
        max_history_length: number of latest events that are read (L).

    Raises:
        UserError: one of `names` is no field of requests.

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
        available = _field_names(catalog, lambda part: part.scope == "request")
        selected = _checked_names(available, names, owners="requests")
        self.fields = Fields(catalog, selected, max_history_length=max_history_length, buckets=buckets)
        self.table = FieldVectors(self.fields, sizes.field_width, sizes.table)
        self.weigh = nn.Linear(sizes.width, heads)
        # The first head starts as a plain mean, each further one with a steeper preference for the latest events.
        slopes = torch.arange(heads) / 2
        self.by_place = nn.Parameter(-slopes * torch.arange(max_history_length)[:, None])  # 0: the last event
        self.by_age = nn.Embedding(NUM_LOG_CODES, heads)
        nn.init.zeros_(self.by_age.weight)
        self.dropout = nn.Dropout(sizes.dropout)  # of the means: for each event it would cost as much as the rest
        self.layers = sizes.layers(len(self.fields) * sizes.field_width + (heads + 1) * sizes.width)

    def forward(self, batch: SequenceBatch, event_vectors_TD: Tensor) -> Tensor:
        """Return the unit vectors [B, D] of requests with at most L events each.

        `event_vectors_TD` are the vectors of the items of all events (ItemTower.read).
        """
        no_candidates = Jagged.from_lengths(batch.items.values[:0], torch.zeros_like(batch.items.lengths))
        codes = self.fields(replace(batch, candidates=no_candidates, candidate_features={}))
        request_vectors = self.table.of_requests(codes).flatten(1)
        length = max(1, int(batch.items.lengths.max()))
        events_BLD = batch.items.with_values(event_vectors_TD).to_padded(length, align="right")
        place = torch.arange(length - 1, -1, -1, device=event_vectors_TD.device)  # number of later events
        logits_BLH = self.weigh(events_BLD) + self.by_place[place] + self.by_age(self._ages(batch, length))
        is_padding = place >= batch.items.lengths[:, None]
        weights_BLH = logits_BLH.masked_fill(is_padding[..., None], MASKED_LOGIT).softmax(1)
        pooled = (weights_BLH.transpose(1, 2) @ events_BLD).flatten(1)
        history_vectors = self.dropout(torch.cat([pooled, events_BLD[:, -1]], dim=1))
        return F.normalize(self.layers(torch.cat([request_vectors, history_vectors], dim=1)), dim=1)

    def _ages(self, batch: SequenceBatch, length: int) -> Tensor:
        """Return the time from each event to the request, as codes on a logarithmic scale of hours [B, L].

        All codes are 0 if events or requests have no times.
        """
        if batch.timestamps is None or batch.request_times is None:
            return batch.items.values.new_zeros(batch.num_requests, length)
        age = batch.request_times[batch.items.row_ids()] - batch.timestamps.values
        return batch.items.with_values(logarithmic(age.clamp(min=0) / HOUR_MS + 1)).to_padded(length, align="right")


def _field_names(catalog: Catalog, is_selected: Callable[[Field], bool]) -> list[str]:
    """Return the names of the fields of a catalogue that satisfy a condition."""
    fields = Fields(catalog)
    return [name for name, part in zip(fields.names, fields.parts, strict=True) if is_selected(cast(Field, part))]


def _checked_names(available: list[str], names: Sequence[str], *, owners: str) -> Sequence[str]:
    """Return `names`, or all `available` names if it is empty; raise UserError for an unknown name."""
    for name in names:
        if name not in available:
            raise UserError(f"{name!r} is no field of {owners}; there are {', '.join(available)}")
    return names or available
