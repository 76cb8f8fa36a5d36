"""Protocol leave-one-out: the last two events of each user are not training data."""

from __future__ import annotations

import polars as pl
from support.protocol_logs import data, logs, training_items, words

from nextitem.data.protocols import make_split
from nextitem.data.readers import dataset_from_frames

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


def test_the_last_two_events_are_the_targets_of_validation_and_test() -> None:
    dataset = logs("abcd", "xyz")
    split = make_split(dataset, "leave-one-out")
    assert training_items(split.train) == ["ab", "x"]
    assert words(dataset, split.validation) == [("ab", "c"), ("x", "y")]
    assert words(dataset, split.test) == [("abc", "d"), ("xy", "z")]
    assert training_items(split.refit()) == ["abc", "xy"]


def test_last_training_item_is_not_the_validation_target() -> None:
    split = make_split(logs("abcd", "dcba"), "leave-one-out")
    assert split.validation.targets is not None
    assert split.test.targets is not None
    last = split.train.interactions.histories().last(1).values
    assert (last != split.validation.targets.values).all()
    assert split.validation.targets.values.tolist() != split.test.targets.values.tolist()


def test_users_with_few_events_are_in_training_only_and_are_noted() -> None:
    dataset = logs("abc", "xy", "z")
    split = make_split(dataset, "leave-one-out")
    assert training_items(split.train) == ["a", "xy", "z"]
    assert split.test.user_ids is not None
    assert dataset.users.numbers_of(split.test.user_ids.numpy()).tolist() == [1]
    assert "2 users with fewer than three" in split.notes[0]


def test_context_events_are_in_histories_and_are_never_targets() -> None:
    actions = ["purchase", "purchase", "view", "purchase", "view", "purchase", "view"]
    dataset = data(
        PURCHASES,
        user_id=[1] * 7 + [2],
        item_id=[*"abcdefg", "h"],
        timestamp=range(8),
        action=[*actions, "view"],
    )
    split = make_split(dataset, "leave-one-out")
    assert training_items(split.train) == ["abc", "h"]
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
    assert training_items(split.train) == ["a?", "d"]
    assert words(dataset, split.test) == [("ab", "c")]


def test_seen_items_are_excluded_if_they_may_not_recur() -> None:
    dataset = logs("abca", "xyzx", settings={"repeats": False})
    split = make_split(dataset, "leave-one-out")
    assert split.test.excluded is split.test.items
    assert any("2 targets were seen before" in note for note in split.notes)
    assert make_split(logs("abc", "xyz"), "leave-one-out").test.excluded is None
