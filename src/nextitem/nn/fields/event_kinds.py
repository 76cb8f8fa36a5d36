"""Kinds of fields that read the events of a history: their actions, context and labels (Catalog.events)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ColumnEncoding
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.nn.fields.item_features import value_keys
from nextitem.nn.fields.kinds import Field, FieldInputs, bucket_codes, quantiles


class EventBag(Field):
    """Categorical column of the latest events, such as their actions or context, as a bag of codes."""

    scope: ClassVar[Literal["request", "candidate"]] = "request"
    is_bag: ClassVar[bool] = True

    def __init__(self, name: str, encoding: ColumnEncoding) -> None:
        super().__init__()
        self.name, self.encoding, self.size = name, encoding, encoding.num_codes

    def code_keys(self) -> Tensor:
        """Return the keys of the values as text, 0 for code 0; codes if values are hashed."""
        return super().code_keys() if self.encoding.values is None else value_keys(self.encoding.values)

    def forward(self, inputs: FieldInputs) -> Jagged:
        """Return B rows of codes; all codes are 0 if the requests have no such column."""
        column = inputs.event_column(self.name)
        return inputs.recent.with_values(torch.zeros_like(inputs.recent.values) if column is None else column.values)


class EventMean(Field):
    """Mean of a numeric column (prices, ratings) over the latest events, in buckets between quantiles of training."""

    scope: ClassVar[Literal["request", "candidate"]] = "request"
    borders: Tensor

    def __init__(self, name: str, buckets: int) -> None:
        super().__init__()
        self.name, self.size = name, buckets + 1
        self.register_buffer("borders", torch.zeros(buckets - 1))

    def fit(self, requests: SequenceBatch, log: Interactions) -> None:
        """Compute the quantiles of the means over training requests."""
        if self.name in requests.features and not bool(self.borders.any()):  # borders stay when a model learns on
            self.borders.copy_(quantiles(_means(requests.features[self.name]), self.size - 1))

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [B]; 0 if no event has a value."""
        column = inputs.event_column(self.name)
        if column is None:
            return torch.zeros_like(inputs.recent.lengths)
        return bucket_codes(_means(column), self.borders)


def _means(column: Jagged) -> Tensor:
    """Return the mean of the finite values of each row, [B] float32; NaN for a row without any."""
    is_finite = column.values.isfinite()
    rows = column.row_ids()[is_finite]
    sums = torch.zeros(column.num_rows, dtype=torch.float64, device=rows.device)
    counts = torch.bincount(rows, minlength=column.num_rows)
    return (sums.index_add(0, rows, column.values[is_finite].double()) / counts).float()
