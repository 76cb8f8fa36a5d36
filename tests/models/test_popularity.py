"""Tests of popularity: decayed counts computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged
from nextitem.models.popularity import Popularity, PopularityConfig
from nextitem.testing.known_answers import build

DAY = 86_400_000


def dated(times_days: list[int], items: list[int]) -> Dataset:
    dataset = build([[1], [2], [3]], ["a", "b", "c"], name="tiny")
    log = Interactions(
        np.ones(len(items), np.int32), np.array(items, np.int32), 3, 3, timestamps=np.array(times_days) * DAY
    )
    return dataset.with_interactions(log)


def fitted(half_life: float | None, dataset: Dataset) -> Popularity:
    model = Popularity(PopularityConfig(half_life_days=half_life), dataset.catalog)
    model.fit(dataset)
    return model


def test_an_event_counts_half_after_its_half_life() -> None:
    model = fitted(10, dated([0, 10, 20, 20], [1, 1, 2, 3]))
    assert model.decayed_counts.tolist() == pytest.approx([0, 0.25 + 0.5, 1, 1])
    answer = model.recommend(SequenceBatch(Jagged.from_rows([[1]])), 3)
    assert answer.item_ids.tolist() == [[2, 3, 1]]  # the tie goes to the smaller number


def test_one_date_in_the_future_does_not_change_the_order() -> None:
    rng = np.random.default_rng(0)
    items, times = rng.choice([1, 2], 300, p=[0.3, 0.7]).tolist(), np.sort(rng.integers(0, 300, 300)).tolist()
    plain, stray = (dated([*times, last], [*items, 3]) for last in (0, 100_000))
    assert fitted(30, plain).recommend(SequenceBatch(Jagged.from_rows([[1]])), 2).item_ids.tolist() == [[2, 1]]
    model = fitted(30, stray)
    assert model.recommend(SequenceBatch(Jagged.from_rows([[1]])), 3).item_ids.tolist() == [[2, 1, 3]]
    assert float(model.decayed_counts[3]) == 1


def test_items_whose_events_are_decades_old_keep_their_order() -> None:
    """In float32 the counts of items 1 and 2 would both be 0."""
    model = fitted(30, dated([0, 30, *range(18_000, 18_100)], [1, 2, *[3] * 100]))
    assert float(model.decayed_counts[1]) < 2.0**-590
    assert model.recommend(SequenceBatch(Jagged.from_rows([[1]])), 3).item_ids.tolist() == [[3, 2, 1]]


def test_without_decay_or_without_times_events_are_counted() -> None:
    dataset = dated([0, 10, 20], [1, 1, 2])
    assert fitted(None, dataset).decayed_counts.tolist() == [0, 2, 1, 0]
    log = dataset.interactions
    undated = dataset.with_interactions(Interactions(log.user_ids, log.item_ids, 3, 3))
    assert fitted(10, undated).decayed_counts.tolist() == [0, 2, 1, 0]


def test_context_events_do_not_count() -> None:
    dataset = dated([0, 0], [1, 2])
    log = dataset.interactions
    marked = Interactions(log.user_ids, log.item_ids, 3, 3, positive=np.array([True, False]))
    assert fitted(None, dataset.with_interactions(marked)).decayed_counts.tolist() == [0, 1, 0, 0]
