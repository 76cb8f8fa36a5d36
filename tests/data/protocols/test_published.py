"""Protocol published: the marks of the column split decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.protocol_logs import data, learnt, logs, words

from nextitem.data.protocols import make_split

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


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


def test_published_sessions_that_continue_past_the_cut_are_learnt_from_up_to_it() -> None:
    rows = [(f"s{session}", item, 10 * session + place) for session in range(22) for place, item in enumerate("abc")]
    session, item, time = zip(*rows, ("s0", "d", 1_000), ("s1", "e", 1_001), strict=True)
    # The owner's mark takes the last event of s1 out of training already.
    dataset = data(
        session_id=session, item_id=item, timestamp=time, split=["train"] * 60 + ["test"] * 6 + ["train", "test"]
    )
    split = make_split(dataset, "published")
    assert learnt(split.train) == ["abc"] * 18
    assert split.notes[0] == "training: 1 sessions that continue past the cut end there"
    assert learnt(split.refit()) == ["abcd", *["abc"] * 19]  # the marks say what a refit learns from
