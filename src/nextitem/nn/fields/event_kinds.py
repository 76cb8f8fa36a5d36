"""Fields of the events of a history: their actions, context and labels (Catalog.events)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ColumnEncoding
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.nn.fields.kinds import Field, FieldInputs, bucket_codes, quantiles


class EventBag(Field):
    """A categorical column of the latest events: their actions, their context."""

    of: ClassVar[Literal["request", "candidate"]] = "request"
    is_bag: ClassVar[bool] = True

    def __init__(self, name: str, encoding: ColumnEncoding) -> None:
        super().__init__()
        self.name, self.size = name, encoding.num_codes

    def forward(self, asked: FieldInputs) -> Jagged:
        """B rows."""
        column = asked.event_column(self.name)
        return asked.recent.with_values(torch.zeros_like(asked.recent.values) if column is None else column.values)


class EventMean(Field):
    """The mean of a numeric column over the latest events, by quantiles of training: prices, ratings."""

    of: ClassVar[Literal["request", "candidate"]] = "request"
    borders: Tensor

    def __init__(self, name: str, buckets: int) -> None:
        super().__init__()
        self.name, self.size = name, buckets + 1
        self.register_buffer("borders", torch.zeros(buckets - 1))

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Take the quantiles of the means of training requests."""
        if self.name in requests.features:
            self.borders.copy_(quantiles(_means(requests.features[self.name]), self.size - 1))

    def forward(self, asked: FieldInputs) -> Tensor:
        """[B]; 0 if no event has a value."""
        column = asked.event_column(self.name)
        if column is None:
            return torch.zeros_like(asked.recent.lengths)
        return bucket_codes(_means(column), self.borders)


def _means(column: Jagged) -> Tensor:
    """Mean of the known values of each row, [B] float32; NaN for a row without any."""
    known = column.values.isfinite()
    rows = column.row_ids()[known]
    sums = torch.zeros(column.num_rows, dtype=torch.float64, device=rows.device)
    counts = torch.bincount(rows, minlength=column.num_rows)
    return (sums.index_add(0, rows, column.values[known].double()) / counts).float()
