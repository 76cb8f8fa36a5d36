"""Protocol user-split: some users are learned from, others are asked about."""

from __future__ import annotations

import numpy as np
from support.optional import not_none
from support.protocol_logs import learnt, logs, words

from nextitem.data.protocols import make_split

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


def test_user_split_halves_the_events_of_held_out_users() -> None:
    dataset = logs(*["abcdefg"] * 20)
    split = make_split(dataset, "user-split", seed=3)
    assert learnt(split.train) == ["abcdefg"] * 16
    assert words(dataset, split.test) == [("abc", "defg")] * 2
    assert words(dataset, split.validation) == [("abc", "defg")] * 2
    groups = [set(np.unique(split.train.interactions.user_ids).tolist())]
    numbers = dataset.users.numbers_of
    groups += [set(numbers(not_none(part.user_ids).numpy()).tolist()) for part in (split.validation, split.test)]
    assert sum(len(group) for group in groups) == len(set.union(*groups)) == 20


def test_user_split_is_drawn_by_the_seed() -> None:
    dataset = logs(*["abcdefg"] * 40)
    asked = [not_none(make_split(dataset, "user-split", seed=seed).test.user_ids) for seed in (1, 1, 2)]
    assert asked[0].tolist() == asked[1].tolist()
    assert asked[0].tolist() != asked[2].tolist()
