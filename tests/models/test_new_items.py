"""Tests of new items against their definition, item by item."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.memory import largest_tensor_bytes

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.models.new_items import NewItems, NewItemsConfig
from nextitem.testing.known_answers import build

DAY = 86_400_000
START = 1_600_000_000_000
ITEMS = 12
EVENTS = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5], [1, 2, 3], [1, 2, 3], [1, 2]]
COUNTS = {1: 5, 2: 5, 3: 4, 4: 2, 5: 2, 6: 1}
# Days at which items are released; the log ends on day 0. Items 9 and 10 are released later.
RELEASED = [-300, -300, -5, -200, -20, -300, -10, -400, 4, 40, -1, -31]


def fitted(*, dated: bool = True, **settings: object) -> NewItems:
    dataset = build(EVENTS, [f"t{number}" for number in range(ITEMS)], name="new")
    content = torch.randn(ITEMS + 1, 5, generator=torch.Generator().manual_seed(1))
    catalog = dataset.catalog.with_content(content)
    if dated:
        catalog = replace(catalog, released_ms=np.array([START + day * DAY for day in RELEASED]))
    model = NewItems(NewItemsConfig(**settings), catalog)
    model.set_popularity(torch.from_numpy(dataset.interactions.item_counts()).float())
    model.fit(dataset.with_catalog(catalog))
    return model


def item_numbers(mask: torch.Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def test_new_items_depend_on_the_time_of_the_request() -> None:
    model = fitted(days=30, few_events=1)
    times = torch.tensor([START, START + 5 * DAY, START + 50 * DAY])
    new = model.new_items(SequenceBatch(Jagged.from_rows([[1], [1, 7], [1]]), request_times=times))
    assert item_numbers(new[0]) == [3, 5, 6, 7, 8, 11, 12]  # 3, 5, 7, 11 by date; 6, 8, 12 by few events
    assert item_numbers(new[1]) == [3, 5, 6, 8, 9, 11, 12]  # 7 is in the history, 9 has been released
    assert item_numbers(new[2]) == [6, 7, 8, 9, 10, 11, 12]
    undated = model.new_items(SequenceBatch(Jagged.from_rows([[1]])))
    assert item_numbers(undated[0]) == item_numbers(new[0])  # the log ends on the day of the first request


def test_an_event_dated_a_century_ahead_does_not_change_new_items() -> None:
    model, dataset = fitted(days=30, few_events=1), build(EVENTS, [f"t{n}" for n in range(ITEMS)], name="new")
    log = dataset.interactions
    assert log.timestamps is not None
    times = log.timestamps.copy()
    times[-1] += 36_500 * DAY
    model.fit(dataset.with_interactions(replace(log, timestamps=times)))
    assert item_numbers(model.new_items(SequenceBatch(Jagged.from_rows([[1]])))[0]) == [3, 5, 6, 7, 8, 11, 12]


def test_no_time_is_stored_for_every_request_and_item() -> None:
    dataset = build([[1, 2]], [str(number) for number in range(3000)], name="many")
    catalog = dataset.catalog.with_content(torch.ones(3001, 2))
    released = np.full(3000, START) - np.arange(3000) * DAY
    model = NewItems(NewItemsConfig(), replace(catalog, released_ms=released))
    model.set_popularity(torch.from_numpy(dataset.interactions.item_counts()).float())
    model.fit(dataset.with_catalog(model.catalog))
    batch = SequenceBatch(Jagged.from_rows([[1]] * 100), request_times=torch.full((100,), START))
    # The result is a bool for each request and item, 0.3 MB; a time for each would need 2.4 MB.
    assert largest_tensor_bytes(lambda: model.new_items(batch)) < 0.4e6


def test_without_release_dates_few_events_decide() -> None:
    model = fitted(dated=False, few_events=2)
    assert item_numbers(model.new_items(SequenceBatch(Jagged.from_rows([[1]])))[0]) == [4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_scores_equal_the_formula_and_other_items_follow_by_popularity() -> None:
    model = fitted(days=30, few_events=1, exploration=0.5, recency_decay=0.5)
    content = model.catalog.content
    assert content is not None
    unit = torch.nn.functional.normalize(content, dim=1)
    profile = torch.nn.functional.normalize(0.5 * unit[2] + unit[1], dim=0)
    expected = {
        item: 1 + float(profile @ unit[item]) + 0.5 / math.sqrt(1 + COUNTS.get(item, 0))
        for item in (3, 5, 6, 7, 8, 11, 12)
    }
    best = sorted(expected, key=lambda item: -expected[item])
    batch = SequenceBatch(Jagged.from_rows([[2, 1]]), request_times=torch.tensor([START]))
    answer = model.recommend(batch, ITEMS)
    assert answer.item_ids[0].tolist() == [*best, 1, 2, 4, 9, 10]
    assert answer.scores[0, :7].tolist() == pytest.approx([expected[item] for item in best], abs=1e-5)
    assert bool((answer.scores[0, 7:] <= 0).all())
    assert model.recommend(batch, 3).item_ids[0].tolist() == best[:3]


def test_no_more_new_items_than_the_quota() -> None:
    model = fitted(quota=2)
    batch = SequenceBatch(Jagged.from_rows([[2]]), request_times=torch.tensor([START]))
    answer = model.recommend(batch, 5)
    assert (answer.scores[0] > 0).tolist() == [True, True, False, False, False]
    assert len(set(answer.item_ids[0].tolist())) == 5


def test_exploration_prefers_items_without_events() -> None:
    model = fitted(days=10_000, few_events=10, exploration=100.0)
    batch = SequenceBatch(Jagged.from_rows([[1]]), request_times=torch.tensor([START]))
    assert set(model.recommend(batch, 4).item_ids[0].tolist()) == {7, 8, 11, 12}
