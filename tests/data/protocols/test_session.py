"""Protocol session: requests for each event of the latest sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
from support.optional import not_none
from support.protocol_logs import data, training_items, words

from nextitem.core.dataset import Dataset
from nextitem.data.protocols import default_protocol, make_split

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


def test_undated_sessions_split_in_the_order_of_the_file() -> None:
    names = [f"s{number}" for number in range(20)][::-1]
    dataset = data(
        session_id=[name for name in names for _ in "abc"],
        item_id=[*"abc"] * 20,
        position=[0, 1, 2] * 20,
    )
    assert default_protocol(dataset)[0] == "session"
    split = make_split(dataset)
    assert training_items(split.train) == ["abc"] * 16
    assert words(dataset, split.validation) == [("a", "b"), ("ab", "c")] * 2
    assert words(dataset, split.test) == [("a", "b"), ("ab", "c")] * 2
    assert split.test.user_ids is None
    assert split.test.excluded is None
    training_sessions = dataset.users.ids.decode(np.unique(split.train.interactions.user_ids)).to_list()
    assert training_sessions == names[:16]


def straddling_sessions(**columns: Any) -> Dataset:
    """Return 21 sessions of three events, one every ten seconds; s0 and s17 continue until the end of the log."""
    rows = [(f"s{session}", item, 10 * session + place) for session in range(21) for place, item in enumerate("abc")]
    rows += [("s0", "d", 1_000), ("s17", "e", 1_001)]
    session, item, time = zip(*rows, strict=True)
    return data(session_id=session, item_id=item, timestamp=time, **columns)


def test_sessions_that_continue_past_the_cut_are_training_data_up_to_it() -> None:
    dataset = straddling_sessions()
    split = make_split(dataset, "session")
    # Cuts at the start of s17 and of s19: s0 continues past both, s17 past the second.
    assert training_items(split.train) == ["abc"] * 17
    assert training_items(split.refit()) == ["abc"] * 19
    assert words(dataset, split.validation) == [("a", "b"), ("ab", "c"), ("abc", "e"), ("a", "b"), ("ab", "c")]
    assert split.notes == (
        "training: 1 sessions that continue past the cut end there",
        "refit: 2 sessions that continue past the cut end there",
    )
    # If sessions were ordered by their end, as is common, s0 would have a request at a time within the training data.
    assert split.test.request_times is not None
    assert split.test.request_times.min() > max(not_none(split.refit().interactions.timestamps).tolist())


def test_sessions_of_users_end_at_the_cut_too() -> None:
    dataset = straddling_sessions(user_id=[*(user for user in range(21) for _ in "abc"), 0, 17])
    assert not dataset.anonymous
    assert training_items(make_split(dataset, "session").train) == ["abc"] * 17
