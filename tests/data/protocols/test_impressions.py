"""Protocol impressions: requests with the items shown, cut by time."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from support.protocol_logs import impression_log, training_items

from nextitem.data.protocols import make_split
from nextitem.data.readers import dataset_from_frames

PURCHASES = {"interactions": {"positive_actions": ["purchase"]}}


def test_impressions_before_the_cut_are_training_data_and_later_ones_are_ranked() -> None:
    dataset = impression_log()
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
    assert split.train.users.numbers_of(split.test.user_ids.numpy()).tolist() == [2, 2]
    assert training_items(split.train) == ["a", "a"]


@pytest.mark.parametrize(("clicks", "has_note"), [([1, 0], False), ([1, 1], True), ([0, 0], True), ([1, None], True)])
def test_a_note_tells_if_gauc_is_not_possible(clicks: list[int | None], has_note: bool) -> None:
    impressions = pl.DataFrame(
        {
            "impression_id": np.repeat(np.arange(20), 2),
            "item_id": [*"ab"] * 20,
            "timestamp": np.repeat(np.arange(20), 2),
            "click": clicks * 20,
        }
    )
    dataset = dataset_from_frames({"impressions": impressions}, {"impressions": {"labels": ["click"]}})
    notes = make_split(dataset).notes
    assert any("GAUC" in note for note in notes) == has_note


def test_undated_events_are_not_in_histories_of_impressions() -> None:
    split = make_split(impression_log(has_event_times=False), "impressions")
    assert split.test.items.lengths.tolist() == [0, 0]
    assert len(split.train.interactions) == 0
    assert "undated" in split.notes[0]
