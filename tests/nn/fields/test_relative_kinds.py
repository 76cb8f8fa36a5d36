"""Fields that compare an item with its category: hand-computed quantiles and codes, equality with plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.batch import OWN_EVENTS, SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.nn.fields.event_weights import DAY_MS
from nextitem.nn.fields.fields import Fields
from nextitem.nn.fields.item_popularity import RATIO_SCALE
from nextitem.nn.fields.kinds import logarithmic
from nextitem.nn.fields.relative_kinds import PRIOR_EVENTS, equal_buckets, quantiles_within

NOW = 100 * DAY_MS
NAN = float("nan")
POSITIONS = (NAN, 0.25, 0.75, 0.5, NAN, NAN)  # of padding and the items; the third is alone in its category


def catalog() -> Catalog:
    ids = pl.Series("item_id", ["a", "b", "c", "d", "e"])
    table = pl.DataFrame(
        {
            "item_id": ids,
            "colour": ["red", "red", "blue", "red", None],
            "price": [10.0, 20.0, 5.0, None, 7.0],
        }
    )
    return Catalog(IdMap(ids), table, features={"colour": "categorical", "price": "numeric"})


def requests(items: list[list[int]], ages: list[list[float]], candidates: list[list[int]]) -> SequenceBatch:
    """Return requests at NOW; `ages` are those of the events in days."""
    history = Jagged.from_rows(items)
    times = torch.tensor([NOW - int(age * DAY_MS) for row in ages for age in row], dtype=torch.int64)
    return SequenceBatch(
        history,
        timestamps=history.with_values(times),
        request_times=torch.full((len(items),), NOW),
        candidates=Jagged.from_rows(candidates),
    )


def codes_of(name: str, batch: SequenceBatch, log: Interactions | None = None) -> list[int]:
    """Return the codes of one field of candidates."""
    fields = Fields(catalog(), (name,), buckets=8)
    if log is not None:
        fields.fit(batch, log)
    codes: list[int] = fields(batch).candidate[:, 0].tolist()
    return codes


def test_quantile_within_a_category_ignores_other_categories_and_missing_numbers() -> None:
    batch = requests([[]], [[]], [[1, 2, 3, 4, 5]])
    assert codes_of("item.price.in.colour", batch) == [1 + 2, 1 + 6, 1 + 4, 0, 0]


@given(st.lists(st.tuples(st.one_of(st.integers(0, 5), st.just(NAN)), st.integers(0, 3)), max_size=30))
def test_quantiles_within_equal_a_plain_loop(rows: list[tuple[float, int]]) -> None:
    values = torch.tensor([value for value, _ in rows], dtype=torch.float64)
    groups = torch.tensor([group for _, group in rows], dtype=torch.int64)
    expected = []
    for value, group in rows:
        members = [other for other, its_group in rows if its_group == group and not math.isnan(other)]
        smaller, equal = sum(other < value for other in members), sum(other == value for other in members)
        is_missing = math.isnan(value) or not group
        expected.append(NAN if is_missing else (smaller + equal / 2) / len(members))
    torch.testing.assert_close(
        quantiles_within(values, groups), torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=0, atol=0
    )


def test_difference_from_the_history_is_recency_weighted_and_starts_in_the_middle() -> None:
    # The half-life is 30 days: weight 1/2 for the cheap item, 1/4 for the dear one, none for the item without price.
    batch = requests([[2, 1, 4], [], [4]], [[60, 30, 1], [], [1]], [[1, 2, 4], [1], [1]])
    mean = (0.5 * 0.25 + 0.25 * 0.75 + PRIOR_EVENTS * 0.5) / (0.75 + PRIOR_EVENTS)
    expected = [1 + int((0.25 - mean + 1) / 2 * 8), 1 + int((0.75 - mean + 1) / 2 * 8), 0]
    assert codes_of("cross.price.in.colour", batch) == [*expected, 0, 0]


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 90)), max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_difference_equals_a_plain_loop(rows: list[list[tuple[int, int]]], candidates: list[int]) -> None:
    ordered = [sorted(row, key=lambda event: -event[1]) for row in rows]
    batch = requests(
        [[item for item, _ in row] for row in ordered],
        [[float(age) for _, age in row] for row in ordered],
        [candidates for _ in rows],
    )
    expected = []
    for row in ordered:
        weights = [
            (0.5 ** (age / 30), POSITIONS[item]) for item, age in row if age > 0 and not math.isnan(POSITIONS[item])
        ]
        total = sum(weight for weight, _ in weights)
        mean = (sum(weight * place for weight, place in weights) + PRIOR_EVENTS / 2) / (total + PRIOR_EVENTS)
        for item in candidates:
            difference = (POSITIONS[item] - mean + 1) / 2 if total else NAN
            expected.append(int(equal_buckets(torch.tensor(difference, dtype=torch.float64), 8)))
    assert codes_of("cross.price.in.colour", batch) == expected


def log(times: list[int] | None) -> Interactions:
    """Return events of items a, a, a, b and c."""
    items = np.array([1, 1, 1, 2, 3], np.int32)
    return Interactions(np.arange(1, 6, dtype=np.int32), items, 5, 5, None if times is None else np.array(times))


def ratio_code(count: int, mean: float) -> int:
    """Return the code of an item's number of events and the mean of its category."""
    return int(logarithmic(torch.tensor((count + 1) / (mean + 1) * RATIO_SCALE, dtype=torch.float64)))


def test_popularity_within_a_category_counts_events_before_the_request() -> None:
    batch = requests([[]], [[]], [[1, 2, 4, 3, 5]])
    days = [NOW - DAY_MS, NOW - 1, NOW, NOW - DAY_MS, NOW + DAY_MS]  # the third event of item a is too late
    reds = 3 / 3  # events of items a, b and d
    assert codes_of("item.popularity.in.colour", batch, log(days)) == [
        ratio_code(2, reds),
        ratio_code(1, reds),
        ratio_code(0, reds),
        ratio_code(0, 0),
        0,
    ]


def test_popularity_within_a_category_does_not_count_the_example_itself() -> None:
    batch = replace(requests([[]], [[]], [[1, 2]]), request_times=None, timestamps=None)
    assert batch.candidates is not None
    own = batch.candidates.with_values(torch.tensor([1.0, 0.0]))
    batch = replace(batch, candidate_features={OWN_EVENTS: own})
    assert codes_of("item.popularity.in.colour", batch, log(None)) == [ratio_code(2, 3 / 3), ratio_code(1, 4 / 3)]
