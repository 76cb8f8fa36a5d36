"""Kinds of fields that compare a number of an item with those of similar items, such as prices within a category.

Shapes: B requests, P candidates of all requests, N items.
"""

from __future__ import annotations

import polars as pl
import torch
from torch import Tensor, nn

from nextitem.nn.fields.event_weights import EventWeights, Weighting
from nextitem.nn.fields.item_features import category_codes
from nextitem.nn.fields.kinds import Field, FieldInputs, ItemField

PRIOR_EVENTS = 1.0  # weight of the middle of the category, in events, beside a user's own events


class RelativeNumber(ItemField):
    """Quantile of a numeric column of the catalogue among the items that share a categorical value, in equal buckets.

    Attributes:
        positions: [N + 1] float64, the quantiles, 0 to 1; NaN without a number or without a category.

    """

    positions: Tensor

    def __init__(self, numbers: pl.Series, groups: pl.Series, buckets: int) -> None:
        super().__init__()
        self.size = buckets + 1
        values = torch.tensor(numbers.cast(pl.Float64).fill_null(float("nan")).to_list(), dtype=torch.float64)
        positions = quantiles_within(values, category_codes(groups)[0])
        self.register_buffer("positions", nn.functional.pad(positions, (1, 0), value=float("nan")), persistent=False)

    def of_items(self, item_ids: Tensor) -> Tensor:
        """Return the codes of any items [n]."""
        return equal_buckets(self.positions[item_ids], self.size - 1)


class RelativeToHistory(Field):
    """Difference between a candidate's quantile (RelativeNumber) and the weighted mean of those in the history.

    The mean includes the middle of the category, 0.5, with the weight of PRIOR_EVENTS events. So the mean of few events
    lies near the middle. Differences from -1 to 1 are in buckets of equal width.
    """

    def __init__(self, field: RelativeNumber, weighting: Weighting, buckets: int) -> None:
        super().__init__()
        self.field, self.weighting, self.size = field, weighting, buckets + 1

    def forward(self, inputs: FieldInputs) -> Tensor:
        """Return codes [P]; 0 without a quantile of the candidate, or of any event of the user."""
        events = EventWeights.of_history(inputs)
        positions = self.field.positions[events.items.values]
        weights = events.of(self.weighting) * positions.isfinite()
        sums = torch.stack([weights, weights * positions.nan_to_num(0)], 1)
        totals, means = sums.new_zeros(events.items.num_rows, 2).index_add(0, events.row_ids(), sums).T
        means = (means + PRIOR_EVENTS / 2) / (totals + PRIOR_EVENTS)
        differences: Tensor = self.field.positions[inputs.items] - means[inputs.rows]
        codes = equal_buckets((differences + 1) / 2, self.size - 1)
        return torch.where(totals[inputs.rows] > 0, codes, 0)


def quantiles_within(values: Tensor, groups: Tensor) -> Tensor:
    """Return the quantile of each value among the values of its group.

    It is the share of smaller values, plus half the share of equal ones (itself included).

    Args:
        values: numbers [N]; NaN: missing.
        groups: group of each number [N]; 0: no group.

    Returns:
        Quantiles between 0 and 1, [N] float64; NaN without a number or a group.

    """
    positions = torch.full(values.shape, float("nan"), dtype=torch.float64)
    rows = (values.isfinite() & (groups > 0)).nonzero()[:, 0]
    if not len(rows):
        return positions
    # Ranks of the numbers make (group, number) one sortable integer.
    distinct, ranks = torch.unique(values[rows], return_inverse=True)
    keys = groups[rows] * len(distinct) + ranks
    ordered = keys.sort().values
    first = torch.searchsorted(ordered, groups[rows] * len(distinct))
    after = torch.searchsorted(ordered, (groups[rows] + 1) * len(distinct))
    smaller, not_larger = (torch.searchsorted(ordered, keys, right=right) for right in (False, True))
    positions[rows] = ((smaller + not_larger) / 2 - first).double() / (after - first)
    return positions


def equal_buckets(shares: Tensor, buckets: int) -> Tensor:
    """Return 1 + the bucket of each number from 0 to 1, in buckets of equal width; 0 for NaN."""
    is_finite = shares.isfinite()
    steps = (shares.nan_to_num(0) * buckets + 1e-9).long().clamp(min=0, max=buckets - 1)
    return (1 + steps) * is_finite
