"""Properties of splits of random logs: disjoint, independent of the order of rows, without future events."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.data.protocols import PROTOCOLS, make_split
from nextitem.data.readers import dataset_from_frames, load_dataset
from nextitem.data.requests import action_codes

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}
LOG_PROTOCOLS = [name for name in PROTOCOLS if name != "impressions"]
Event = tuple[Any, ...]


def random_log(seed: int, *, distinct_times: bool, users: int = 15, events: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    times = rng.permutation(events * 3)[:events] if distinct_times else rng.integers(0, events // 4, events)
    return pl.DataFrame(
        {
            "user_id": rng.integers(0, users, events),
            "session_id": times * 5 // (times.max() + 1),  # sessions with enough events for requests
            "item_id": rng.integers(100, 130, events),
            "timestamp": times,
            "action": rng.choice(["view", "purchase"], events),
            "split": rng.choice(["train", "valid", "test"], events, p=[0.8, 0.1, 0.1]),
        }
    )


def parts(split: Split) -> list[SequenceBatch]:
    return [part for part in (split.validation, split.test, split.test_later) if part is not None]


def identity(dataset: Dataset, split: Split) -> list[Any]:
    """Return a split in the owner's ids, so that splits with different numberings can be compared."""
    users, items = dataset.users.ids, dataset.catalog.ids
    log = split.train.interactions
    columns: list[Any] = [users.decode(log.user_ids).to_list(), items.decode(log.item_ids).to_list()]
    for requests in parts(split):
        assert requests.targets is not None
        columns.append([items.decode(np.array(h)).to_list() for h in requests.items.to_lists()])
        columns.append([items.decode(np.array(t)).to_list() for t in requests.targets.to_lists()])
        columns.append(None if requests.user_ids is None else requests.user_ids.tolist())
    return columns


@pytest.mark.parametrize("protocol", LOG_PROTOCOLS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_shuffled_rows_with_distinct_times_have_the_same_split(protocol: str, seed: int) -> None:
    frame = random_log(seed, distinct_times=True)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=seed)
    first, second = (dataset_from_frames({"interactions": f}, PURCHASES) for f in (frame, shuffled))
    assert identity(first, make_split(first, protocol)) == identity(second, make_split(second, protocol))


def events_of(dataset: Dataset) -> dict[int, list[Event]]:
    """Return each user's events in order: (time, item, action code)."""
    log = dataset.interactions
    assert log.timestamps is not None
    actions = action_codes(dataset)
    assert actions is not None
    rows: dict[int, list[Event]] = defaultdict(list)
    for user, *event in zip(
        log.user_ids.tolist(), log.timestamps.tolist(), log.item_ids.tolist(), actions.tolist(), strict=True
    ):
        rows[user].append(tuple(event))
    return rows


@pytest.mark.parametrize("protocol", ["time", "leave-one-out", "user-split", "published"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), is_distinct=st.booleans())
def test_history_and_target_are_a_prefix_of_the_log(protocol: str, seed: int, is_distinct: bool) -> None:
    dataset = dataset_from_frames({"interactions": random_log(seed, distinct_times=is_distinct)}, PURCHASES)
    split, log = make_split(dataset, protocol), events_of(dataset)
    for requests in (split.validation, split.test):
        assert requests.targets is not None
        assert requests.timestamps is not None
        assert requests.actions is not None
        assert requests.user_ids is not None
        histories = zip(
            requests.timestamps.to_lists(), requests.items.to_lists(), requests.actions.to_lists(), strict=True
        )
        users = dataset.users.numbers_of(requests.user_ids.numpy()).tolist()
        for user, history, targets in zip(users, histories, requests.targets.to_lists(), strict=True):
            events = list(zip(*history, strict=True))
            user_events = log[user]
            assert user_events[: len(events)] == events
            assert events
            if protocol != "user-split":
                assert user_events[len(events)][1:] == (targets[0], 1)


def anonymous(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the log with users as anonymous sessions: nearly all of them continue past any cut."""
    return frame.drop("session_id").rename({"user_id": "session_id"})


def without_valid_rows(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(split=pl.col("split").replace({"valid": "train"}))


@pytest.mark.parametrize("protocol", LOG_PROTOCOLS)
@pytest.mark.parametrize("form", [pl.DataFrame, anonymous, without_valid_rows])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), is_distinct=st.booleans())
def test_no_target_is_training_data(
    form: Callable[..., pl.DataFrame], protocol: str, seed: int, is_distinct: bool
) -> None:
    # Every event has a different item, so that an item identifies the event.
    frame = form(random_log(seed, distinct_times=is_distinct).with_columns(item_id=pl.int_range(pl.len())))
    dataset = dataset_from_frames({"interactions": frame}, PURCHASES)
    split = make_split(dataset, protocol)
    assert split.validation.targets is not None
    assert split.test.targets is not None
    last = split.refit().interactions
    train = set(split.train.interactions.item_ids.tolist())
    refit = set(last.item_ids.tolist())
    validation, test = (set(part.values.tolist()) for part in (split.validation.targets, split.test.targets))
    assert not train & (validation | test)
    assert not validation & test
    assert not refit & test
    assert train < refit
    if protocol != "user-split":
        assert last.timestamps is not None
        assert dataset.interactions.timestamps is not None
        # Sessions that validate may continue past the cut at which a refit ends.
        late = dataset.interactions.timestamps > last.timestamps.max()
        assert validation - set(dataset.interactions.item_ids[late].tolist()) <= refit
        assert protocol == "session" or validation <= refit


@pytest.mark.parametrize(
    ("form", "protocol"),
    [
        (pl.DataFrame, "time"),
        (pl.DataFrame, "session"),
        (anonymous, "time"),
        (anonymous, "session"),
        (lambda frame: without_valid_rows(anonymous(frame)), "published"),
    ],
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), is_distinct=st.booleans())
def test_no_training_event_is_as_late_as_a_request(
    form: Callable[..., pl.DataFrame], protocol: str, seed: int, is_distinct: bool
) -> None:
    frame = random_log(seed, distinct_times=is_distinct)
    impressions = frame.select("item_id", "timestamp", impression_id=pl.int_range(pl.len()))
    split = make_split(
        dataset_from_frames({"interactions": form(frame), "impressions": impressions}, PURCHASES), protocol
    )
    stages = [(split.train, split.validation)]
    if protocol != "published":  # in which the owner's marks decide what a refit and a test are
        stages.append((split.refit(), split.test))
    for train, requests in stages:
        assert requests.request_times is not None
        assert train.interactions.timestamps is not None
        first = int(requests.request_times.min())
        assert train.interactions.timestamps.max() < first
        if train.impressions is not None:
            assert train.impressions.timestamps is not None
            assert train.impressions.timestamps.max() < first


@pytest.mark.parametrize("protocol", ["time", "leave-one-out", "session"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_later_events_do_not_change_a_history(protocol: str, seed: int) -> None:
    frame = random_log(seed, distinct_times=True)
    dataset = dataset_from_frames({"interactions": frame})
    before = make_split(dataset, protocol).test
    assert before.request_times is not None
    moment = int(before.request_times.max()) // 1000
    changed = frame.with_columns(
        item_id=pl.when(pl.col("timestamp") > moment).then(pl.lit(100)).otherwise(pl.col("item_id"))
    )
    # All items stay in the catalogue, so the numbering does not change.
    catalog = pl.DataFrame({"item_id": dataset.catalog.ids.external})
    later = dataset_from_frames({"interactions": changed, "items": catalog})
    after = make_split(later, protocol).test
    assert before.items.to_lists() == after.items.to_lists()
    assert before.targets is not None
    assert after.targets is not None
    assert before.targets.to_lists() == after.targets.to_lists()


def test_no_time_is_on_both_sides_of_a_cut() -> None:
    for seed in range(20):
        dataset = dataset_from_frames({"interactions": random_log(seed, distinct_times=False)})
        split = make_split(dataset, "time")
        train, refit = split.train.interactions.timestamps, split.refit().interactions.timestamps
        assert train is not None
        assert refit is not None
        assert split.validation.request_times is not None
        assert split.test.request_times is not None
        assert train.max() < split.validation.request_times.min()
        assert split.validation.request_times.max() < split.test.request_times.min()
        assert refit.max() < split.test.request_times.min()


def test_histories_of_sessions_contain_only_their_own_events() -> None:
    for seed in range(10):
        frame = random_log(seed, distinct_times=True)
        dataset = dataset_from_frames({"interactions": frame}, PURCHASES)
        split = make_split(dataset, "session")
        by_time = {row["timestamp"] * 1000: row for row in frame.iter_rows(named=True)}
        for requests in (split.validation, split.test):
            assert requests.timestamps is not None
            assert requests.request_times is not None
            for times, now in zip(requests.timestamps.to_lists(), requests.request_times.tolist(), strict=True):
                target = by_time[now]
                session_times = [
                    time
                    for time, row in sorted(by_time.items())
                    if (row["user_id"], row["session_id"]) == (target["user_id"], target["session_id"])
                ]
                assert target["action"] == "purchase"
                assert times == session_times[: session_times.index(now)]
                assert times


def test_dated_sessions_split_by_their_start() -> None:
    frame = random_log(3, distinct_times=True)
    dataset = dataset_from_frames({"interactions": frame})
    split = make_split(dataset, "session")
    starts = frame.group_by("user_id", "session_id").agg(pl.col("timestamp").min())
    assert split.test.timestamps is not None
    assert split.validation.timestamps is not None
    first_test_start = min(times[0] for times in split.test.timestamps.to_lists()) // 1000
    last_validation_start = max(times[0] for times in split.validation.timestamps.to_lists()) // 1000
    training_times = split.train.interactions.timestamps
    assert training_times is not None
    training_starts = set(starts["timestamp"].to_list()) & set((training_times // 1000).tolist())
    validation_starts = [times[0] // 1000 for times in split.validation.timestamps.to_lists()]
    assert max(training_starts) < min(validation_starts)
    assert last_validation_start < first_test_start
    assert abs(len(training_starts) - 0.81 * len(starts)) <= 1


# --- real data


def real(name: str) -> Dataset:
    root = os.environ.get("NEXTITEM_DATA")
    if not root or not (Path(root) / name).is_dir():
        pytest.skip(f"set NEXTITEM_DATA to a folder with {name}")
    return load_dataset(Path(root) / name)


def test_tmall_has_its_published_prefixes() -> None:
    split = make_split(real("tmall-sessions"), "published")
    train = split.refit().interactions
    assert split.test.num_requests == 25_898
    assert len(train) - len(np.unique(train.user_ids)) == 351_268


@pytest.mark.parametrize("name", ["amazon14-beauty", "amazon14-sports", "amazon18-office"])
def test_every_user_of_amazon_has_a_request(name: str) -> None:
    dataset = real(name)
    split = make_split(dataset)
    users = len(dataset.users.ids)
    assert split.protocol == "leave-one-out"
    assert split.test.num_requests == split.validation.num_requests == users
    assert len(split.train.interactions) == len(dataset.interactions) - 2 * users


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("online-retail", "time"),
        ("amazon14-tools", "time"),
        ("tmall-sessions", "session"),
        ("obd-men", "impressions"),
    ],
)
def test_default_split_of_real_data(name: str, protocol: str) -> None:
    dataset = real(name)
    split = make_split(dataset)
    assert split.protocol == protocol
    if protocol == "impressions":
        assert split.train.impressions is not None
        num_rows = len(split.train.impressions.item_ids)
        assert split.test.candidates is not None
        assert abs(num_rows / 20_000 - 0.8) < 0.01
        assert abs(split.test.num_requests / 20_000 - 0.1) < 0.01
    else:
        assert 0.65 < len(split.train.interactions) / len(dataset.interactions) < 0.85
        assert split.test.num_requests > 500
