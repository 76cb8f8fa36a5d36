"""Protocol time: a date cuts the log, and no time occurs on both sides of it."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from support.protocol_logs import data, impression_log, logs_with_impressions, training_items, words

from nextitem.data.protocols import make_split

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


def test_users_with_earlier_events_have_a_request_after_the_cut() -> None:
    # Ten times: train below 8, validation at 8, test at 9; user 3 has no event before the cut, so no request.
    dataset = data(
        user_id=[1, 2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 3],
        item_id=[*"aabbccddefgf"],
        timestamp=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9],
    )
    split = make_split(dataset, "time")
    assert training_items(split.train) == ["abcd", "abcd"]
    assert words(dataset, split.validation) == [("abcd", "e")]
    assert words(dataset, split.test) == [("abcde", "f")]
    assert split.test_later is not None
    assert words(dataset, split.test_later) == [("abcde", "fg")]
    assert training_items(split.refit()) == ["abcde", "abcd"]
    assert any("test: left out 1 users" in note for note in split.notes)


def test_target_sets_contain_each_positive_item_once() -> None:
    dataset = data(
        PURCHASES,
        user_id=[1] * 24 + [2],
        item_id=[*"abcdefghijklmnopqr", *"xyxzxx", "a"],
        timestamp=[*range(24), 0],
        action=["purchase"] * 18 + ["view"] + ["purchase"] * 5 + ["view"],
    )
    split = make_split(dataset, "time")
    assert split.test_later is not None
    # Cuts at 19 (20 of 25 events) and 21: the history contains the view of x, the set contains x once.
    assert words(dataset, split.validation) == [("abcdefghijklmnopqrx", "y")]
    assert words(dataset, split.test_later) == [("abcdefghijklmnopqrxyx", "zx")]


@pytest.mark.parametrize("times", [[0, 0, 1, 9, 9, 9, 9], [0, 0, 0, 0, 0, 1, 2], [0, 0, 1, 1, 1, 1, 2]])
def test_ties_leave_three_parts(times: list[int]) -> None:
    split = make_split(data(user_id=[2, *[1] * 6], item_id=[*"abcdefg"], timestamp=times), "time")
    assert len(split.train.interactions)
    assert split.validation.num_requests == split.test.num_requests == 1


def test_training_data_contain_only_earlier_impressions() -> None:
    split = make_split(impression_log(), "time")
    assert split.train.impressions is not None
    assert split.validation.request_times is not None
    assert split.train.impressions.timestamps is not None
    assert split.train.impressions.timestamps.max() < split.validation.request_times.min()
    # The table of impressions may have no column but the ids and the time.
    bare = impression_log()
    assert bare.impressions is not None
    bare = replace(bare, impressions=replace(bare.impressions, columns=pl.DataFrame(), labels=(), context={}))
    earlier = make_split(bare, "time").train.impressions
    assert earlier is not None
    assert len(earlier.item_ids) == len(split.train.impressions.item_ids)
    without_impressions = make_split(logs_with_impressions(), "leave-one-out")
    assert without_impressions.train.impressions is None
    assert any("training ignores impressions" in note for note in without_impressions.notes)
