"""Event columns: what is known of an event besides its item, as numbers, so that several events have a mean.

age         logarithm of the hours from the event to a time that the caller names; 0 without times
count       logarithm of the number of events that the row is a mean of; 0 for a single event
<column>    1 or 0 for each value of a categorical column of the events (their actions, context), so that a mean is
            the share of each value
<column>    a number (watch time, price), as sign(x) log(1 + |x|), and 1 if there is one

Shapes: T events of all histories, F numbers of an event.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION, Catalog
from nextitem.core.errors import UserError
from nextitem.nn.fields.kinds import HOUR_MS

MAX_VALUES = 64  # codes of a categorical column with more values are not read
_AGE, _COUNT = 0, 1  # columns of the age and the count


class EventColumns(nn.Module):
    """Reader of the columns of events that a catalogue declares.

    Attributes:
        width: number of numbers of an event (F).

    """

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.sizes = {
            name: column.num_codes if column.kind == "categorical" else 2
            for name, column in catalog.events.items()
            if column.kind == "numeric" or (column.kind == "categorical" and column.num_codes <= MAX_VALUES)
        }
        self.is_category = {name: catalog.events[name].kind == "categorical" for name in self.sizes}
        self.width = 2 + sum(self.sizes.values())

    def forward(self, batch: SequenceBatch, until: Tensor | None) -> Tensor:
        """Return the numbers of the events of the histories, [T, F]; ages are times until `until [B]`, milliseconds.

        A column that the batch lacks has the code of a missing value in all events.
        """
        events, count = batch.items, len(batch.items.values)
        ages = torch.zeros(count, 2, device=events.offsets.device)
        if until is not None and batch.timestamps is not None:
            ages[:, _AGE] = (until[events.row_ids()] - batch.timestamps.values).clamp(min=0).div(HOUR_MS).log1p() / 8
        parts = [ages]
        for name, size in self.sizes.items():
            column = batch.actions if name == ACTION else batch.features.get(name)
            if self.is_category[name]:
                codes = torch.zeros_like(events.values) if column is None else column.values.clamp(0, size - 1)
                parts.append(F.one_hot(codes, size).float())
                continue
            numbers = ages.new_full((count,), torch.nan) if column is None else column.values.float()
            is_number = numbers.isfinite()
            numbers = torch.where(is_number, numbers, 0.0)
            parts.append(torch.stack([numbers.sign() * numbers.abs().log1p(), is_number.float()], 1))
        return torch.cat(parts, dim=1)

    def with_counts(self, columns: Tensor, counts: Tensor) -> Tensor:
        """Return the numbers of rows that are means over `counts [T]` events each."""
        columns = columns.clone()
        columns[:, _COUNT] = counts.to(columns).log()
        return columns


class PositiveEvents(nn.Module):
    """Which events of a history are positive: those with one of the named actions, or with a named label above 0.

    Raises:
        UserError: a name is neither an action nor a numeric column of the events.

    """

    def __init__(self, catalog: Catalog, names: tuple[str, ...]) -> None:
        super().__init__()
        encoding = catalog.events.get(ACTION)
        actions = [] if encoding is None or encoding.values is None else encoding.values.to_list()
        labels = [name for name, column in catalog.events.items() if column.kind == "numeric"]
        for name in names:
            if name not in actions and name not in labels:
                there_are = ", ".join([*actions, *labels]) or "none: the events have neither"
                raise UserError(
                    f"positive = {list(names)}: {name!r} is neither an action nor a numeric column of the events; "
                    f"there are {there_are}"
                )
        self.labels = tuple(name for name in names if name in labels)
        self.actions = tuple(actions.index(name) + 1 for name in names if name in actions)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Return which events are positive, bool [T]; none if the batch lacks the columns."""
        is_positive = torch.zeros_like(batch.items.values, dtype=torch.bool)
        if batch.actions is not None:
            for action in self.actions:
                is_positive |= batch.actions.values == action
        for name in self.labels:
            if name in batch.features:
                is_positive |= batch.features[name].values > 0
        return is_positive
