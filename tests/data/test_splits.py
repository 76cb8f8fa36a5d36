"""The six protocols: who learns from what, who is asked what, and that the future never leaks."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.data.readers import dataset_from_frames, load_dataset
from nextitem.data.requests import action_codes, context_values
from nextitem.data.splits import PROTOCOLS, default_protocol, make_split, time_cut

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}
Event = tuple[Any, ...]


def data(settings: dict[str, Any] | None = None, **columns: Any) -> Dataset:
    return dataset_from_frames({"interactions": pl.DataFrame(columns)}, settings)


def logs(*users: str, **more: Any) -> Dataset:
    """One user for each text, an item for each letter; undated."""
    rows = [(user, letter, place) for user, text in enumerate(users) for place, letter in enumerate(text)]
    user, item, position = zip(*rows, strict=True)
    return data(more.pop("settings", None), user_id=user, item_id=item, position=position, **more)


def words(dataset: Dataset, requests: SequenceBatch) -> list[tuple[str, str]]:
    """(history, targets) of every request, as letters."""
    assert requests.targets is not None
    return [
        ("".join(dataset.catalog.ids.decode(np.array(h))), "".join(dataset.catalog.ids.decode(np.array(t))))
        for h, t in zip(requests.items.to_lists(), requests.targets.to_lists(), strict=True)
    ]


def learnt(dataset: Dataset) -> list[str]:
    """What each user leaves to learn from, as letters; users without events left out."""
    parts: dict[int, str] = defaultdict(str)
    log = dataset.interactions
    for user, item in zip(log.user_ids.tolist(), dataset.catalog.ids.decode(log.item_ids), strict=True):
        parts[user] += item or "?"
    return [parts[user] for user in sorted(parts)]


def random_log(seed: int, *, distinct_times: bool, users: int = 30, events: int = 1_000) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    times = draw.permutation(events * 3)[:events] if distinct_times else draw.integers(0, events // 4, events)
    return pl.DataFrame(
        {
            "user_id": draw.integers(0, users, events),
            "session_id": times // (times.max() // 5),
            "item_id": draw.integers(100, 130, events),
            "timestamp": times,
            "action": draw.choice(["view", "purchase"], events),
            "split": draw.choice(["train", "valid", "test"], events, p=[0.8, 0.1, 0.1]),
        }
    )


LOG_PROTOCOLS = [name for name in PROTOCOLS if name != "impressions"]


def parts(split: Split) -> list[SequenceBatch]:
    return [part for part in (split.validation, split.test, split.test_later) if part is not None]


# --- leave-one-out


def test_leave_one_out_takes_the_last_two() -> None:
    dataset = logs("abcd", "xyz")
    split = make_split(dataset, "leave-one-out")
    assert learnt(split.train) == ["ab", "x"]
    assert words(dataset, split.validation) == [("ab", "c"), ("x", "y")]
    assert words(dataset, split.test) == [("abc", "d"), ("xy", "z")]
    assert learnt(split.refit()) == ["abc", "xy"]


def test_last_training_item_is_not_the_validation_target() -> None:
    split = make_split(logs("abcd", "dcba"), "leave-one-out")
    assert split.validation.targets is not None
    last = split.train.interactions.histories().last(1).values
    assert (last != split.validation.targets.values).all()
    assert split.validation.targets.values.tolist() != split.test.targets.values.tolist()  # type: ignore[union-attr]


def test_leave_one_out_keeps_short_users_for_learning_and_says_so() -> None:
    dataset = logs("abc", "xy", "z")
    split = make_split(dataset, "leave-one-out")
    assert learnt(split.train) == ["a", "xy", "z"]
    assert split.test.user_ids is not None
    assert split.test.user_ids.tolist() == [1]
    assert "2 users with fewer than three" in split.notes[0]


def test_context_stays_in_histories_and_never_becomes_a_target() -> None:
    actions = ["purchase", "purchase", "view", "purchase", "view", "purchase", "view"]
    dataset = data(
        PURCHASES,
        user_id=[1] * 7 + [2],
        item_id=[*"abcdefg", "h"],
        timestamp=range(8),
        action=[*actions, "view"],
    )
    split = make_split(dataset, "leave-one-out")
    assert learnt(split.train) == ["abc", "h"]
    assert words(dataset, split.validation) == [("abc", "d")]
    assert words(dataset, split.test) == [("abcde", "f")]
    assert split.test.actions is not None
    # Codes in ascending order of names: purchase 1, view 2.
    assert split.test.actions.to_lists() == [[1, 1, 2, 1, 2]]
    assert split.test.timestamps is not None
    assert split.test.timestamps.to_lists() == [[0, 1000, 2000, 3000, 4000]]
    assert split.test.request_times is not None
    assert split.test.request_times.tolist() == [5000]


def test_searches_are_left_out_of_histories_but_not_of_training() -> None:
    frame = pl.DataFrame(
        {
            "user_id": [1] * 5 + [2],
            "item_id": ["a", None, "b", None, "c", "d"],
            "position": range(6),
            "action": ["view", "search", "view", "search", "view", "view"],
            "query": ["", "lamp", "", "chair", "", ""],
        }
    )
    dataset = dataset_from_frames({"interactions": frame})
    split = make_split(dataset, "leave-one-out")
    assert learnt(split.train) == ["a?", "d"]
    assert words(dataset, split.test) == [("ab", "c")]


def test_seen_items_are_excluded_where_they_may_not_recur() -> None:
    dataset = logs("abca", "xyzx", settings={"repeats": False})
    split = make_split(dataset, "leave-one-out")
    assert split.test.excluded is split.test.items
    assert any("2 targets were seen before" in note for note in split.notes)
    assert make_split(logs("abc", "xyz"), "leave-one-out").test.excluded is None


# --- time


def test_time_cuts_the_log_and_asks_users_with_earlier_events() -> None:
    # Ten times: train below 8, validation at 8, test at 9; user 3 comes too late to be asked.
    dataset = data(
        user_id=[1, 2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 3],
        item_id=[*"aabbccddefgf"],
        timestamp=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9],
    )
    split = make_split(dataset, "time")
    assert learnt(split.train) == ["abcd", "abcd"]
    assert words(dataset, split.validation) == [("abcd", "e")]
    assert words(dataset, split.test) == [("abcde", "f")]
    assert split.test_later is not None
    assert words(dataset, split.test_later) == [("abcde", "fg")]
    assert learnt(split.refit()) == ["abcde", "abcd"]
    assert any("test: left out 1 users" in note for note in split.notes)


def test_time_sets_hold_each_item_once_and_only_positives() -> None:
    dataset = data(
        PURCHASES,
        user_id=[1] * 24 + [2],
        item_id=[*"abcdefghijklmnopqr", *"xyxzxx", "a"],
        timestamp=[*range(24), 0],
        action=["purchase"] * 18 + ["view"] + ["purchase"] * 5 + ["view"],
    )
    split = make_split(dataset, "time")
    assert split.test_later is not None
    # Cuts at 19 (20 of 25 events) and 21: the history holds the view of x, the set holds x once.
    assert words(dataset, split.validation) == [("abcdefghijklmnopqrx", "y")]
    assert words(dataset, split.test_later) == [("abcdefghijklmnopqrxyx", "zx")]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.sampled_from([0.5, 0.8, 0.9]))
def test_time_cut_is_the_nearest_border(values: list[int], share: float) -> None:
    array = np.array(values, dtype=np.int64)
    if len(set(values)) == 1:
        with pytest.raises(UserError, match="one timestamp"):
            time_cut(array, share)
        return
    cut = time_cut(array, share)
    goal = min(max(round(share * len(values)), 1), len(values) - 1)
    distances = {border: abs((array < border).sum() - goal) for border in sorted(set(values))[1:]}
    assert cut in distances
    assert distances[cut] == min(distances.values())


@pytest.mark.parametrize("times", [[0, 0, 1, 9, 9, 9, 9], [0, 0, 0, 0, 0, 1, 2], [0, 0, 1, 1, 1, 1, 2]])
def test_ties_leave_three_parts(times: list[int]) -> None:
    split = make_split(data(user_id=[2, *[1] * 6], item_id=[*"abcdefg"], timestamp=times), "time")
    assert len(split.train.interactions)
    assert split.validation.num_requests == split.test.num_requests == 1


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


# --- session


def test_undated_sessions_split_in_the_order_of_the_file() -> None:
    names = [f"s{number}" for number in range(20)][::-1]
    dataset = data(
        session_id=[name for name in names for _ in "abc"],
        item_id=[*"abc"] * 20,
        position=[0, 1, 2] * 20,
    )
    assert default_protocol(dataset)[0] == "session"
    split = make_split(dataset)
    assert learnt(split.train) == ["abc"] * 16
    assert words(dataset, split.validation) == [("a", "b"), ("ab", "c")] * 2
    assert words(dataset, split.test) == [("a", "b"), ("ab", "c")] * 2
    assert split.test.user_ids is None
    assert split.test.excluded is None
    trained = dataset.users.ids.decode(np.unique(split.train.interactions.user_ids)).to_list()
    assert trained == names[:16]


def test_histories_of_sessions_hold_only_their_own_events() -> None:
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
                own = [
                    time
                    for time, row in sorted(by_time.items())
                    if (row["user_id"], row["session_id"]) == (target["user_id"], target["session_id"])
                ]
                assert target["action"] == "purchase"
                assert times == own[: own.index(now)]
                assert times


def test_dated_sessions_split_by_their_start() -> None:
    frame = random_log(3, distinct_times=True)
    dataset = dataset_from_frames({"interactions": frame})
    split = make_split(dataset, "session")
    starts = frame.group_by("user_id", "session_id").agg(pl.col("timestamp").min())
    assert split.test.timestamps is not None
    first_asked = min(times[0] for times in split.test.timestamps.to_lists()) // 1000
    last_asked = max(times[0] for times in split.validation.timestamps.to_lists()) // 1000  # type: ignore[union-attr]
    trained = split.train.interactions.timestamps
    assert trained is not None
    begun = set(starts["timestamp"].to_list()) & set((trained // 1000).tolist())
    asked = [times[0] // 1000 for times in split.validation.timestamps.to_lists()]  # type: ignore[union-attr]
    assert max(begun) < min(asked)
    assert last_asked < first_asked
    assert abs(len(begun) - 0.81 * len(starts)) <= 1


# --- user-split


def test_user_split_halves_the_events_of_held_out_users() -> None:
    dataset = logs(*["abcdefg"] * 20)
    split = make_split(dataset, "user-split", seed=3)
    assert learnt(split.train) == ["abcdefg"] * 16
    assert words(dataset, split.test) == [("abc", "defg")] * 2
    assert words(dataset, split.validation) == [("abc", "defg")] * 2
    groups = [set(np.unique(split.train.interactions.user_ids).tolist())]
    groups += [set(requests.user_ids.tolist()) for requests in (split.validation, split.test)]  # type: ignore[union-attr]
    assert sum(len(group) for group in groups) == len(set.union(*groups)) == 20


def test_user_split_is_drawn_by_the_seed() -> None:
    dataset = logs(*["abcdefg"] * 40)
    asked = [make_split(dataset, "user-split", seed=seed).test.user_ids for seed in (1, 1, 2)]
    assert asked[0].tolist() == asked[1].tolist()  # type: ignore[union-attr]
    assert asked[0].tolist() != asked[2].tolist()  # type: ignore[union-attr]


# --- published


def test_published_takes_the_marked_rows() -> None:
    dataset = logs("abcd", "xyz", split=["train", "train", "valid", "test", "test", "test", "test"])
    split = make_split(dataset, "published")
    assert learnt(split.train) == ["ab"]
    assert words(dataset, split.validation) == [("ab", "c")]
    assert words(dataset, split.test) == [("abc", "d"), ("x", "y"), ("xy", "z")]
    assert learnt(split.refit()) == ["abc"]


def test_published_without_valid_rows_takes_the_last_training_events() -> None:
    dataset = logs("abcd", "xyz", split=["train", "train", "train", "test", "train", "train", "test"])
    split = make_split(dataset, "published")
    assert learnt(split.train) == ["ab", "x"]
    assert words(dataset, split.validation) == [("ab", "c"), ("x", "y")]
    assert words(dataset, split.test) == [("abc", "d"), ("xy", "z")]
    assert learnt(split.refit()) == ["abc", "xy"]


@pytest.mark.parametrize("dated", [False, True])
def test_published_sessions_without_valid_rows_hold_the_last_tenth_back(dated: bool) -> None:
    names = [f"s{number}" for number in range(22)][::-1]
    columns: dict[str, Any] = {
        "session_id": [name for name in names for _ in "abc"],
        "item_id": [*"abc"] * 22,
        "split": ["train"] * 60 + ["test"] * 6,
    }
    order = {"timestamp": range(66)} if dated else {"position": [0, 1, 2] * 22}
    dataset = data(**columns, **order)
    split = make_split(dataset, "published")
    trained = dataset.users.ids.decode(np.unique(split.train.interactions.user_ids))
    assert sorted(trained) == sorted(names[:18])
    assert learnt(split.train) == ["abc"] * 18
    assert words(dataset, split.validation) == [("a", "b"), ("ab", "c")] * 2
    assert words(dataset, split.test) == [("a", "b"), ("ab", "c")] * 2
    assert len(split.refit().interactions) == 60


# --- impressions


def shop(events_dated: bool = True) -> Dataset:
    shown = pl.DataFrame(
        {
            "impression_id": np.repeat(np.arange(20), 2),
            "item_id": [*"ab"] * 20,
            # The second row of a request comes a little later: it belongs to the request all the same.
            "timestamp": np.repeat(np.arange(20) * 10, 2) + np.tile([0, 9], 20) + 1_000,
            "user_id": np.repeat([1, 2], 20),
            "click": [1, 0] * 20,
            "slot": [1, 2] * 20,
            "device": ["web", "app"] * 20,
        }
    )
    order = {"timestamp": [900, 1_175, 1_190, 1_191, 900]} if events_dated else {"position": [0, 1, 2, 3, 0]}
    log = pl.DataFrame({"user_id": [2, 2, 2, 2, 1], "item_id": [*"abaca"], **order})
    chosen = {"impressions": {"labels": ["click"], "context": {"device": "categorical"}}}
    return dataset_from_frames({"interactions": log, "impressions": shown}, chosen)


def test_impressions_learn_before_the_cut_and_rank_after_it() -> None:
    dataset = shop()
    split = make_split(dataset, "impressions")
    assert split.train.impressions is not None
    assert np.unique(split.train.impressions.request_ids).tolist() == list(range(16))
    assert split.validation.num_requests == split.test.num_requests == 2
    assert split.test.candidates is not None
    assert split.test.candidates.to_lists() == [[1, 2], [1, 2]]
    assert split.test.candidate_labels["click"].to_lists() == [[1, 0], [1, 0]]
    assert split.test.candidate_features["slot"].to_lists() == [[1, 2], [1, 2]]
    assert split.test.context["device"].tolist() == [2, 2]
    # Requests at 1180 and 1190: an event at the same time is not yet history.
    assert split.test.items.to_lists() == [[1, 2], [1, 2]]
    assert split.test.user_ids is not None
    assert split.test.user_ids.tolist() == [2, 2]
    assert learnt(split.train) == ["a", "a"]


@pytest.mark.parametrize(("clicks", "told"), [([1, 0], False), ([1, 1], True), ([0, 0], True)])
def test_impressions_say_where_gauc_is_not_possible(clicks: list[int], told: bool) -> None:
    shown = pl.DataFrame(
        {
            "impression_id": np.repeat(np.arange(20), 2),
            "item_id": [*"ab"] * 20,
            "timestamp": np.repeat(np.arange(20), 2),
            "click": clicks * 20,
        }
    )
    dataset = dataset_from_frames({"impressions": shown}, {"impressions": {"labels": ["click"]}})
    notes = make_split(dataset).notes
    assert any("GAUC" in note for note in notes) == told


def test_undated_events_are_no_history_of_impressions() -> None:
    split = make_split(shop(events_dated=False), "impressions")
    assert split.test.items.lengths.tolist() == [0, 0]
    assert len(split.train.interactions) == 0
    assert "undated" in split.notes[0]


def test_time_learns_from_earlier_impressions_only() -> None:
    split = make_split(shop(), "time")
    assert split.train.impressions is not None
    assert split.validation.request_times is not None
    assert split.train.impressions.timestamps is not None
    assert split.train.impressions.timestamps.max() < split.validation.request_times.min()
    # The table of impressions may have no column but the ids and the time.
    bare = shop()
    assert bare.impressions is not None
    bare = replace(bare, impressions=replace(bare.impressions, columns=pl.DataFrame(), labels=(), context={}))
    earlier = make_split(bare, "time").train.impressions
    assert earlier is not None
    assert len(earlier.item_ids) == len(split.train.impressions.item_ids)
    left_out = make_split(logs_with_impressions(), "leave-one-out")
    assert left_out.train.impressions is None
    assert any("impressions are not learnt from" in note for note in left_out.notes)


def logs_with_impressions() -> Dataset:
    log = pl.DataFrame({"user_id": [1, 1, 1, 2], "item_id": [*"abcd"], "position": [0, 1, 2, 0]})
    shown = pl.DataFrame({"impression_id": [1, 2], "item_id": [*"ab"], "timestamp": [1, 2], "user_id": [1, 2]})
    return dataset_from_frames({"interactions": log, "impressions": shown})


# --- what holds for every protocol


def identity(dataset: Dataset, split: Split) -> list[Any]:
    """A split in the owner's ids, comparable between numberings."""
    users, items = dataset.users.ids, dataset.catalog.ids
    log = split.train.interactions
    seen: list[Any] = [users.decode(log.user_ids).to_list(), items.decode(log.item_ids).to_list()]
    for requests in parts(split):
        assert requests.targets is not None
        seen.append([items.decode(np.array(h)).to_list() for h in requests.items.to_lists()])
        seen.append([items.decode(np.array(t)).to_list() for t in requests.targets.to_lists()])
        seen.append(None if requests.user_ids is None else users.decode(requests.user_ids.numpy()).to_list())
    return seen


@pytest.mark.parametrize("protocol", LOG_PROTOCOLS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_shuffled_rows_with_distinct_times_give_the_same_split(protocol: str, seed: int) -> None:
    frame = random_log(seed, distinct_times=True)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=seed)
    first, second = (dataset_from_frames({"interactions": f}, PURCHASES) for f in (frame, shuffled))
    assert identity(first, make_split(first, protocol)) == identity(second, make_split(second, protocol))


def events_of(dataset: Dataset) -> dict[int, list[Event]]:
    """Each user's events in order: (time, item, action code)."""
    log = dataset.interactions
    assert log.timestamps is not None
    actions = action_codes(log)
    assert actions is not None
    rows: dict[int, list[Event]] = defaultdict(list)
    for user, *event in zip(
        log.user_ids.tolist(), log.timestamps.tolist(), log.item_ids.tolist(), actions.tolist(), strict=True
    ):
        rows[user].append(tuple(event))
    return rows


@pytest.mark.parametrize("protocol", ["time", "leave-one-out", "user-split", "published"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), distinct=st.booleans())
def test_history_and_target_are_a_prefix_of_the_log(protocol: str, seed: int, distinct: bool) -> None:
    dataset = dataset_from_frames({"interactions": random_log(seed, distinct_times=distinct)}, PURCHASES)
    split, log = make_split(dataset, protocol), events_of(dataset)
    for requests in (split.validation, split.test):
        assert requests.targets is not None
        assert requests.timestamps is not None
        assert requests.actions is not None
        assert requests.user_ids is not None
        histories = zip(
            requests.timestamps.to_lists(), requests.items.to_lists(), requests.actions.to_lists(), strict=True
        )
        for user, history, targets in zip(
            requests.user_ids.tolist(), histories, requests.targets.to_lists(), strict=True
        ):
            events = list(zip(*history, strict=True))
            own = log[user]
            assert own[: len(events)] == events
            assert events
            if protocol != "user-split":
                assert own[len(events)][1:] == (targets[0], 1)


@pytest.mark.parametrize("protocol", LOG_PROTOCOLS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), distinct=st.booleans())
def test_no_target_is_learnt_from(protocol: str, seed: int, distinct: bool) -> None:
    # Every event has an item of its own, so that an item tells the event.
    frame = random_log(seed, distinct_times=distinct).with_columns(item_id=pl.int_range(pl.len()))
    split = make_split(dataset_from_frames({"interactions": frame}, PURCHASES), protocol)
    assert split.validation.targets is not None
    assert split.test.targets is not None
    train = set(split.train.interactions.item_ids.tolist())
    refit = set(split.refit().interactions.item_ids.tolist())
    validation, test = (set(p.targets.values.tolist()) for p in (split.validation, split.test))  # type: ignore[union-attr]
    assert not train & (validation | test)
    assert not validation & test
    assert not refit & test
    assert train < refit
    if protocol != "user-split":
        assert validation <= refit


@pytest.mark.parametrize("protocol", ["time", "leave-one-out", "session"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 10_000))
def test_what_happens_later_changes_no_history(protocol: str, seed: int) -> None:
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


def test_default_protocols() -> None:
    assert default_protocol(logs("abc", "abd"))[0] == "leave-one-out"
    assert default_protocol(data(user_id=[1, 2], item_id=[1, 2], timestamp=[1, 2]))[0] == "time"
    assert default_protocol(data(session_id=[1, 2], item_id=[1, 2], timestamp=[1, 2]))[0] == "session"
    dataset = shop()
    only = dataset.with_interactions(dataset.interactions.select(np.zeros(5, dtype=np.bool_)))
    assert default_protocol(only)[0] == "impressions"


@pytest.mark.parametrize(
    ("dataset", "protocol", "told"),
    [
        (logs("abc", "abd"), "random", "choose one of time, leave-one-out"),
        (logs("abc", "abd"), "time", "timestamp for every event"),
        (logs("abc", "abd"), "session", "session_id"),
        (logs("abc", "abd"), "published", "column split"),
        (logs("abc", "abd"), "impressions", "impressions"),
        (logs("ab", "ba"), "leave-one-out", "no validation requests"),
        (logs("abc", "abd"), "user-split", "no validation requests"),
        (data(user_id=[1, 2], item_id=[1, 2], timestamp=[5, 5]), "time", "one timestamp"),
        (data(session_id=[1, 2], item_id=[1, 2], position=[0, 0]), "session", "three sessions"),
        (logs_with_impressions(), "impressions", "labels"),
    ],
)
def test_protocols_say_what_they_need(dataset: Dataset, protocol: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make_split(dataset, protocol)


def test_context_columns_travel_with_histories() -> None:
    dataset = data(
        {"interactions": {"context": {"price": "numeric", "shop": "categorical"}}},
        user_id=[1, 1, 1, 2],
        item_id=[*"abcd"],
        position=[0, 1, 2, 0],
        price=[1.5, None, 3.0, 4.0],
        shop=["b", None, "a", "b"],
    )
    test = make_split(dataset, "leave-one-out").test
    assert test.features["price"].to_lists() == [[1.5, 0.0]]
    assert test.features["shop"].to_lists() == [[2, 0]]
    values = context_values(dataset.interactions.columns, dataset.context)
    assert values["shop"].tolist() == [2, 0, 1, 2]
    assert test.context == {}  # the target's own price would tell the target


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
def test_amazon_asks_every_user(name: str) -> None:
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
        shown = len(split.train.impressions.item_ids)
        assert split.test.candidates is not None
        assert abs(shown / 20_000 - 0.8) < 0.01
        assert abs(split.test.num_requests / 20_000 - 0.1) < 0.01
    else:
        assert 0.65 < len(split.train.interactions) / len(dataset.interactions) < 0.85
        assert split.test.num_requests > 500
