"""Recent events: the past, the requests, and that no request contains events after its target."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset, Users
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.data.examples.recent_events import recent_events


def dataset(users: list[int], items: list[int], times: list[int] | None, *, repeats: bool = True) -> Dataset:
    log = Interactions(
        np.array(users, np.int32),
        np.array(items, np.int32),
        max(users),
        max(items),
        timestamps=None if times is None else np.array(times),
    )
    ids = pl.Series("item_id", range(1, max(items) + 1))
    people = Users(IdMap(pl.Series("user_id", range(1, max(users) + 1))))
    return Dataset("d", log, Catalog(IdMap(ids), pl.DataFrame({"item_id": ids})), people, repeats=repeats)


def test_a_dated_log_is_cut_between_times() -> None:
    recent = recent_events(
        dataset([1, 1, 1, 2, 2], [1, 2, 3, 2, 4], [10, 20, 90, 30, 80]), share=0.4, max_requests=10, seed=0
    )
    assert recent.past.interactions.item_ids.tolist() == [1, 2, 2]
    assert recent.requests.targets is not None
    assert recent.requests.targets.to_lists() == [[4], [3]]  # by time
    assert recent.requests.items.to_lists() == [[2], [1, 2]]
    assert recent.requests.request_times is not None
    assert recent.requests.request_times.tolist() == [80, 90]


def test_recent_events_of_an_undated_log_are_the_last_three_targets_of_users() -> None:
    users, items = [1] * 5 + [2] * 2 + [3], [1, 2, 3, 4, 5, 1, 2, 3]
    recent = recent_events(dataset(users, items, None), share=0.2, max_requests=10, seed=0)
    assert recent.requests.targets is not None
    assert sorted(recent.requests.targets.values.tolist()) == [2, 3, 4, 5]
    assert recent.past.interactions.item_ids.tolist() == [1, 2, 1, 3]


def test_a_seen_target_is_not_requested_if_seen_items_may_not_be_recommended() -> None:
    recent = recent_events(
        dataset([1, 1, 1, 2, 2], [1, 2, 1, 2, 3], [1, 2, 9, 3, 8], repeats=False), share=0.4, max_requests=10, seed=0
    )
    assert recent.requests.targets is not None
    assert recent.requests.targets.to_lists() == [[3]]
    assert recent.requests.excluded is not None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_histories_contain_all_earlier_events_and_no_others(seed: int, is_dated: bool) -> None:
    rng = np.random.default_rng(seed)
    users = np.sort(rng.integers(1, 6, 50)).tolist()
    items = rng.integers(1, 9, 50).tolist()
    times = None
    if is_dated:
        sampled_times = rng.integers(0, 1000, 50)
        times = np.concatenate(
            [np.sort(sampled_times[np.array(users) == user]) for user in sorted(set(users))]
        ).tolist()
    data = dataset(users, items, times)
    recent = recent_events(data, share=0.3, max_requests=20, seed=seed)
    assert recent.requests.num_requests <= 20
    assert recent.requests.user_ids is not None
    assert recent.requests.targets is not None
    for history, target, user in zip(
        recent.requests.items.to_lists(),
        recent.requests.targets.values.tolist(),
        data.users.numbers_of(recent.requests.user_ids.numpy()).tolist(),
        strict=True,
    ):
        whole = [item for item, owner in zip(items, users, strict=True) if owner == user]
        assert whole[: len(history) + 1] == [*history, target]
        assert history


def test_return_requests_are_first_events_after_evenly_spaced_times() -> None:
    users, items = [1] * 6 + [2] * 2, [1, 2, 3, 4, 5, 6, 1, 2]
    times = [0, 100, 101, 102, 150, 199, 0, 160]
    recent = recent_events(dataset(users, items, times), share=0.75, max_requests=10, seed=0, num_return_times=2)
    assert recent.requests.targets is not None
    # Cuts at 100 and 149.5: user 1 returns with items 2 and 5, user 2 with item 2 both times.
    assert recent.requests.targets.values.tolist() == [2, 5, 2]


def test_a_date_a_century_ahead_does_not_reduce_return_requests() -> None:
    day = 86_400_000
    users = [user for user in range(1, 11) for _ in range(20)]
    items = [number % 7 + 1 for number in range(len(users))]
    times = [day * (step + 1) for _ in range(10) for step in range(20)]
    plain = recent_events(
        dataset(users, items, times), share=0.5, max_requests=1000, seed=0, num_return_times=5
    ).requests
    times[-1] = 36_500 * day
    with_stray_date = recent_events(
        dataset(users, items, times), share=0.5, max_requests=1000, seed=0, num_return_times=5
    ).requests
    assert plain.num_requests == 10 * 5
    assert with_stray_date.num_requests >= plain.num_requests - 1
