"""Protocol published: the column split assigns rows to training, validation and test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.protocol_logs import data, logs, training_items, words

from nextitem.data.protocols import make_split

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


def test_marked_rows_are_the_targets() -> None:
    dataset = logs("abcd", "xyz", split=["train", "train", "valid", "test", "test", "test", "test"])
    split = make_split(dataset, "published")
    assert training_items(split.train) == ["ab"]
    assert words(dataset, split.validation) == [("ab", "c")]
    assert words(dataset, split.test) == [("abc", "d"), ("x", "y"), ("xy", "z")]
    assert training_items(split.refit()) == ["abc"]


def test_without_valid_rows_the_last_training_events_validate() -> None:
    dataset = logs("abcd", "xyz", split=["train", "train", "train", "test", "train", "train", "test"])
    split = make_split(dataset, "published")
    assert training_items(split.train) == ["ab", "x"]
    assert words(dataset, split.validation) == [("ab", "c"), ("x", "y")]
    assert words(dataset, split.test) == [("abc", "d"), ("xy", "z")]
    assert training_items(split.refit()) == ["abc", "xy"]


@pytest.mark.parametrize("is_dated", [False, True])
def test_without_valid_rows_the_last_tenth_of_the_sessions_validates(is_dated: bool) -> None:
    names = [f"s{number}" for number in range(22)][::-1]
    columns: dict[str, Any] = {
        "session_id": [name for name in names for _ in "abc"],
        "item_id": [*"abc"] * 22,
        "split": ["train"] * 60 + ["test"] * 6,
    }
    order = {"timestamp": range(66)} if is_dated else {"position": [0, 1, 2] * 22}
    dataset = data(**columns, **order)
    split = make_split(dataset, "published")
    training_sessions = dataset.users.ids.decode(np.unique(split.train.interactions.user_ids))
    assert sorted(training_sessions) == sorted(names[:18])
    assert training_items(split.train) == ["abc"] * 18
    assert words(dataset, split.validation) == [("a", "b"), ("ab", "c")] * 2
    assert words(dataset, split.test) == [("a", "b"), ("ab", "c")] * 2
    assert len(split.refit().interactions) == 60


def test_sessions_that_continue_past_the_cut_are_training_data_up_to_it() -> None:
    rows = [(f"s{session}", item, 10 * session + place) for session in range(22) for place, item in enumerate("abc")]
    session, item, time = zip(*rows, ("s0", "d", 1_000), ("s1", "e", 1_001), strict=True)
    # By the owner's mark the last event of s1 is not training data anyway.
    dataset = data(
        session_id=session, item_id=item, timestamp=time, split=["train"] * 60 + ["test"] * 6 + ["train", "test"]
    )
    split = make_split(dataset, "published")
    assert training_items(split.train) == ["abc"] * 18
    assert split.notes[0] == "training: 1 sessions that continue past the cut end there"
    assert training_items(split.refit()) == ["abcd", *["abc"] * 19]  # the marks decide the training data of a refit
