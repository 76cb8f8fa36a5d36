"""Protocol session: the latest sessions are asked about, event by event."""

from __future__ import annotations

import numpy as np
from protocol_logs import data, learnt, words

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
    assert learnt(split.train) == ["abc"] * 16
    assert words(dataset, split.validation) == [("a", "b"), ("ab", "c")] * 2
    assert words(dataset, split.test) == [("a", "b"), ("ab", "c")] * 2
    assert split.test.user_ids is None
    assert split.test.excluded is None
    trained = dataset.users.ids.decode(np.unique(split.train.interactions.user_ids)).to_list()
    assert trained == names[:16]
