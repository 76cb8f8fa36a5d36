"""Event requests contain what was known at the time of each event, and nothing of what came later."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch

from nextitem.core.dataset import Dataset
from nextitem.data.examples.event_requests import EventRequests
from nextitem.data.readers import dataset_from_frames


def log(items: list[str]) -> Dataset:
    """Return a data set of two users with five events each; `items` are the items of all events."""
    frame = pl.DataFrame(
        {
            "user_id": [1] * 5 + [2] * 5,
            "item_id": items,
            "timestamp": [3600 * hour for hour in range(1, 11)],
            "action": ["click", "click", "return", "click", "click"] * 2,
        }
    )
    users = pl.DataFrame({"user_id": [1, 2], "country": ["NL", "FR"]})
    settings = {
        "interactions": {"positive_actions": ["click"]},
        "users": {"features": {"country": "categorical"}},
    }
    all_items = pl.DataFrame({"item_id": list("abcdefgh")})
    return dataset_from_frames({"interactions": frame, "users": users, "items": all_items}, settings)


def test_requests_contain_history_time_and_user_features() -> None:
    requests = EventRequests(log(list("abcde") + list("fghab")), max_history_length=3)
    batch = requests.sample(99)
    assert batch.targets is not None
    assert batch.request_times is not None
    assert batch.targets.values.tolist() == [2, 4, 5, 7, 1, 2], "a user's first event and a return are no targets"
    assert batch.items.to_lists() == [[1], [1, 2, 3], [2, 3, 4], [6], [6, 7, 8], [7, 8, 1]]
    assert (batch.request_times // 3_600_000).tolist() == [2, 4, 5, 7, 9, 10]
    assert batch.context["user.country"].tolist() == [2, 2, 2, 1, 1, 1]


def test_later_events_do_not_change_a_request() -> None:
    items = list("abcde") + list("fghab")
    rng = np.random.default_rng(0)
    for cut in range(1, 5):
        other = [*items[:cut], *rng.choice(list("abcdefgh"), 5 - cut), *items[5:]]
        first, second = (EventRequests(log(item_list), max_history_length=9) for item_list in (items, other))
        rows = np.flatnonzero(first.places < cut)  # targets of the first user before the change
        assert len(rows) or cut == 1
        for row in rows:
            one, two = first.batch(np.array([row])), second.batch(np.array([row]))
            assert torch.equal(one.items.values, two.items.values)
            assert one.timestamps is not None
            assert two.timestamps is not None
            assert torch.equal(one.timestamps.values, two.timestamps.values)


def test_an_epoch_contains_every_target_once_and_can_start_at_any_batch() -> None:
    requests = EventRequests(log(list("abcde") + list("fghab")), max_history_length=3)
    whole = [batch.targets.values for batch in requests.batches(4, epoch=1, seed=5) if batch.targets is not None]
    assert sorted(torch.cat(whole).tolist()) == [1, 2, 2, 4, 5, 7]
    rest = [b.targets.values for b in requests.batches(4, epoch=1, seed=5, start=1) if b.targets is not None]
    assert [targets.tolist() for targets in rest] == [targets.tolist() for targets in whole[1:]]


def test_later_events_are_further_targets_up_to_the_end_of_the_user() -> None:
    requests = EventRequests(log(list("abcde") + list("fghab")), max_history_length=3, num_targets=3)
    batch = requests.sample(99)
    assert batch.targets is not None
    expected = [[2, 0, 4], [4, 5], [5], [7, 0, 1], [1, 2], [2]]  # 0: a return
    assert batch.targets.to_lists() == expected
    assert batch.items.to_lists() == [[1], [1, 2, 3], [2, 3, 4], [6], [6, 7, 8], [7, 8, 1]]
