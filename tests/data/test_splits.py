"""The six protocols: who learns from what, who is asked what, and that the future never leaks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.readers import dataset_from_frames
from nextitem.data.requests import event_values
from nextitem.data.splits import default_protocol, make_split, time_cut

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


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
    assert dataset.users.numbers_of(split.test.user_ids.numpy()).tolist() == [1]
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


# --- user-split


def test_user_split_halves_the_events_of_held_out_users() -> None:
    dataset = logs(*["abcdefg"] * 20)
    split = make_split(dataset, "user-split", seed=3)
    assert learnt(split.train) == ["abcdefg"] * 16
    assert words(dataset, split.test) == [("abc", "defg")] * 2
    assert words(dataset, split.validation) == [("abc", "defg")] * 2
    groups = [set(np.unique(split.train.interactions.user_ids).tolist())]
    numbers = dataset.users.numbers_of
    groups += [set(numbers(part.user_ids.numpy()).tolist()) for part in (split.validation, split.test)]  # type: ignore[union-attr]
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
    assert dataset.users.numbers_of(split.test.user_ids.numpy()).tolist() == [2, 2]
    assert learnt(split.train) == ["a", "a"]


@pytest.mark.parametrize(("clicks", "told"), [([1, 0], False), ([1, 1], True), ([0, 0], True), ([1, None], True)])
def test_impressions_say_where_gauc_is_not_possible(clicks: list[int | None], told: bool) -> None:
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
    assert test.features["price"].values.tolist()[0] == 1.5
    assert test.features["price"].values.isnan().tolist() == [False, True]
    assert test.features["shop"].to_lists() == [[2, 0]]
    values = event_values(dataset.interactions, dataset.catalog)
    assert values["shop"].tolist() == [2, 0, 1, 2]
    assert test.context == {}  # the target's own price would tell the target
