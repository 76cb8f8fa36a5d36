"""Protocol user-split: some users are training data, others have requests."""

from __future__ import annotations

import numpy as np
from support.optional import not_none
from support.protocol_logs import logs, training_items, words

from nextitem.data.protocols import make_split

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


def test_user_split_halves_the_events_of_held_out_users() -> None:
    dataset = logs(*["abcdefg"] * 20)
    split = make_split(dataset, "user-split", seed=3)
    assert training_items(split.train) == ["abcdefg"] * 16
    assert words(dataset, split.test) == [("abc", "defg")] * 2
    assert words(dataset, split.validation) == [("abc", "defg")] * 2
    groups = [set(np.unique(split.train.interactions.user_ids).tolist())]
    numbers = dataset.users.numbers_of
    groups += [set(numbers(not_none(part.user_ids).numpy()).tolist()) for part in (split.validation, split.test)]
    assert sum(len(group) for group in groups) == len(set.union(*groups)) == 20


def test_the_seed_decides_the_sample_of_users() -> None:
    dataset = logs(*["abcdefg"] * 40)
    test_users = [not_none(make_split(dataset, "user-split", seed=seed).test.user_ids) for seed in (1, 1, 2)]
    assert test_users[0].tolist() == test_users[1].tolist()
    assert test_users[0].tolist() != test_users[2].tolist()
