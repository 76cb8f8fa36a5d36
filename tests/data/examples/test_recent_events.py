"""Recent events: what is past, what is asked, and that what is asked never holds its target's future."""

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
    found = recent_events(dataset([1, 1, 1, 2, 2], [1, 2, 3, 2, 4], [10, 20, 90, 30, 80]), share=0.4, most=10, seed=0)
    assert found.past.interactions.item_ids.tolist() == [1, 2, 2]
    assert found.requests.targets is not None
    assert found.requests.targets.to_lists() == [[4], [3]]  # by time
    assert found.requests.items.to_lists() == [[2], [1, 2]]
    assert found.requests.request_times is not None
    assert found.requests.request_times.tolist() == [80, 90]


def test_an_undated_log_gives_the_last_three_targets_of_users_who_keep_one() -> None:
    users, items = [1] * 5 + [2] * 2 + [3], [1, 2, 3, 4, 5, 1, 2, 3]
    found = recent_events(dataset(users, items, None), share=0.2, most=10, seed=0)
    assert found.requests.targets is not None
    assert sorted(found.requests.targets.values.tolist()) == [2, 3, 4, 5]
    assert found.past.interactions.item_ids.tolist() == [1, 2, 1, 3]


def test_a_seen_target_is_not_asked_where_it_may_not_be_recommended() -> None:
    found = recent_events(
        dataset([1, 1, 1, 2, 2], [1, 2, 1, 2, 3], [1, 2, 9, 3, 8], repeats=False), share=0.4, most=10, seed=0
    )
    assert found.requests.targets is not None
    assert found.requests.targets.to_lists() == [[3]]
    assert found.requests.excluded is not None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_histories_are_all_that_came_before_and_no_more(seed: int, dated: bool) -> None:
    rng = np.random.default_rng(seed)
    users = np.sort(rng.integers(1, 6, 50)).tolist()
    items = rng.integers(1, 9, 50).tolist()
    times = None
    if dated:
        drawn = rng.integers(0, 1000, 50)
        times = np.concatenate([np.sort(drawn[np.array(users) == user]) for user in sorted(set(users))]).tolist()
    data = dataset(users, items, times)
    found = recent_events(data, share=0.3, most=20, seed=seed)
    assert found.requests.num_requests <= 20
    assert found.requests.user_ids is not None
    assert found.requests.targets is not None
    for history, target, user in zip(
        found.requests.items.to_lists(),
        found.requests.targets.values.tolist(),
        data.users.numbers_of(found.requests.user_ids.numpy()).tolist(),
        strict=True,
    ):
        whole = [item for item, owner in zip(items, users, strict=True) if owner == user]
        assert whole[: len(history) + 1] == [*history, target]
        assert history


def test_returns_are_first_events_after_evenly_spread_times() -> None:
    users, items = [1] * 6 + [2] * 2, [1, 2, 3, 4, 5, 6, 1, 2]
    times = [0, 100, 101, 102, 150, 199, 0, 160]
    found = recent_events(dataset(users, items, times), share=0.75, most=10, seed=0, returns=2)
    assert found.requests.targets is not None
    # Cuts at 100 and 149.5: user 1 returns with items 2 and 5, user 2 with item 2 both times.
    assert found.requests.targets.values.tolist() == [2, 5, 2]


def test_returns_are_asked_for_though_one_event_is_dated_a_century_ahead() -> None:
    day = 86_400_000
    users = [user for user in range(1, 11) for _ in range(20)]
    items = [number % 7 + 1 for number in range(len(users))]
    times = [day * (step + 1) for _ in range(10) for step in range(20)]
    plain = recent_events(dataset(users, items, times), share=0.5, most=1000, seed=0, returns=5).requests
    times[-1] = 36_500 * day
    stray = recent_events(dataset(users, items, times), share=0.5, most=1000, seed=0, returns=5).requests
    assert plain.num_requests == 10 * 5
    assert stray.num_requests >= plain.num_requests - 1
