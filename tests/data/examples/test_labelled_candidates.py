"""Labelled candidates: impressions, sampled candidates, labels that are final, and examination of slots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from support.optional import not_none

from nextitem.core.batch import OWN_EVENTS, SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.data.examples.labelled_candidates import (
    TARGET,
    LabelledRequests,
    SampledCandidates,
    examination,
    impression_examples,
    require_both_labels,
)
from nextitem.data.readers import dataset_from_frames

HOUR_S = 3600


def shop() -> Dataset:
    log = pl.DataFrame(
        {
            "user_id": [1, 1, 1, 2, 2],
            "item_id": ["a", "b", "c", "b", "a"],
            "timestamp": [hour * HOUR_S for hour in (1, 2, 9, 3, 4)],
            "action": ["click", "click", "click", "click", "return"],
        }
    )
    users = pl.DataFrame({"user_id": [1, 2], "country": ["NL", "FR"]})
    impressions = pl.DataFrame(
        {
            "impression_id": [7, 7, 8, 8],
            "item_id": ["a", "c", "b", "c"],
            "timestamp": [5 * HOUR_S, 5 * HOUR_S, 10 * HOUR_S, 10 * HOUR_S],
            "user_id": [1, 1, 2, 2],
            "slot": [1, 2, 1, 2],
            "click": [0, 1, 1, 0],
        }
    )
    settings = {
        "interactions": {"positive_actions": ["click"]},
        "users": {"features": {"country": "categorical"}},
        "impressions": {"labels": ["click"]},
    }
    return dataset_from_frames({"interactions": log, "users": users, "impressions": impressions}, settings)


def test_requests_of_impressions_contain_the_history_before_them() -> None:
    requests = impression_examples(shop())
    assert requests.items.to_lists() == [[1, 2], [2, 1]]
    assert requests.candidates is not None
    assert requests.candidates.to_lists() == [[1, 3], [2, 3]]
    assert requests.candidate_labels["click"].values.tolist() == [0, 1, 1, 0]
    assert requests.context["user.country"].tolist() == [2, 1]


def with_labels(labels: list[float | None]) -> Dataset:
    data = shop()
    assert data.impressions is not None
    columns = data.impressions.columns.with_columns(pl.Series("click", labels, dtype=pl.Float64))
    return replace(data, impressions=replace(data.impressions, columns=columns))


def test_unknown_labels_are_nan_and_requests_without_a_label_are_left_out() -> None:
    requests = impression_examples(with_labels([None, 1, None, 0]))
    assert requests.candidate_labels["click"].values.isnan().tolist() == [True, False, True, False]
    labelled_requests = impression_examples(with_labels([None, None, 1, 0]))
    assert labelled_requests.candidates is not None
    assert labelled_requests.candidates.to_lists() == [[2, 3]]
    with pytest.raises(UserError, match="no label of the impressions to learn from is known"):
        impression_examples(with_labels([None] * 4))


def test_examination_of_slots_is_computed_from_known_labels() -> None:
    whole = impression_examples(with_labels([1, 1, 1, 0]))
    assert examination(whole, "click").tolist() == [1, 1, 0.5]
    assert examination(impression_examples(with_labels([1, 1, 1, None])), "click").tolist() == [1, 1, 1]
    without_slots = replace(
        whole, candidate_features={"slot": whole.candidate_features["slot"].with_values(torch.zeros(4))}
    )
    assert examination(without_slots, "click").tolist() == [1, 1]  # no slot is known


def test_labels_that_may_still_arrive_are_left_out() -> None:
    assert impression_examples(shop(), delay_hours=4).num_requests == 1
    data_set = shop()
    assert data_set.impressions is not None
    with pytest.raises(UserError, match="there are no impressions"):
        impression_examples(replace(data_set, impressions=None))
    last = data_set.impressions.select(np.array([False, False, True, True]))
    with pytest.raises(UserError, match="leaves no impressions to learn from"):
        impression_examples(replace(data_set, impressions=last), delay_hours=1)


def test_a_page_dated_a_century_ahead_makes_no_label_final() -> None:
    data = shop()
    assert data.impressions is not None
    hours = np.repeat(np.arange(1, 201), 2)
    rows = np.tile([0, 1, 2, 3], 100)
    impressions = replace(
        data.impressions,
        request_ids=hours.astype(np.int64),
        item_ids=data.impressions.item_ids[rows],
        user_ids=data.impressions.user_ids[rows],
        timestamps=hours * HOUR_S * 1000,
        columns=data.impressions.columns[rows],
    )
    assert impression_examples(replace(data, impressions=impressions), delay_hours=48).num_requests == 152
    assert impressions.timestamps is not None
    times = impressions.timestamps.copy()
    times[-2:] += 876_000 * HOUR_S * 1000
    impressions = replace(impressions, timestamps=times)
    # The end of the log is now hour 199; the stray page itself is later than that, so its labels are not final.
    assert impression_examples(replace(data, impressions=impressions), delay_hours=48).num_requests == 151


def test_a_label_with_a_single_value_is_refused() -> None:
    requests = impression_examples(shop())
    require_both_labels(requests, "click")
    with pytest.raises(UserError, match="none of the 2 candidates to learn from has the label 'click'"):
        require_both_labels(
            replace(requests.select(torch.tensor([0])), candidate_labels={"click": Jagged.from_rows([[0, 0]])}), "click"
        )


def test_sampled_candidates_begin_with_the_target_and_contain_no_later_event() -> None:
    examples = SampledCandidates(shop(), num_negatives=5, power=0.5, max_history_length=2)
    batches = list(examples.batches(2, epoch=0, seed=3))
    assert sum(batch.num_requests for batch in batches) == 2  # b and c of user 1; a return is no target
    examples_by_target = {}
    for batch in batches:
        assert batch.candidates is not None
        assert batch.request_times is not None
        for row, candidates in enumerate(batch.candidates.to_lists()):
            labels = batch.candidate_labels[TARGET].to_lists()[row]
            assert [float(item == candidates[0]) for item in candidates] == labels
            examples_by_target[candidates[0]] = (batch.items.to_lists()[row], int(batch.request_times[row]))
    assert examples_by_target == {2: ([1], 2 * HOUR_S * 1000), 3: ([1, 2], 9 * HOUR_S * 1000)}


@pytest.mark.parametrize("is_dated", [True, False])
def test_undated_examples_mark_their_own_event(is_dated: bool) -> None:
    dataset = shop()
    if not is_dated:
        dataset = dataset.with_interactions(replace(dataset.interactions, timestamps=None))
    for batch in SampledCandidates(dataset, num_negatives=5, power=0.5, max_history_length=2).batches(
        2, epoch=0, seed=3
    ):
        assert (OWN_EVENTS in batch.candidate_features) == (not is_dated)
        if not is_dated:
            assert torch.equal(batch.candidate_features[OWN_EVENTS].values, batch.candidate_labels[TARGET].values)


def test_batches_are_a_function_of_seed_epoch_and_index() -> None:
    examples = SampledCandidates(shop(), num_negatives=3, power=0.0, max_history_length=5)
    whole = list(examples.batches(1, epoch=2, seed=1))
    rest = list(examples.batches(1, epoch=2, seed=1, start=1))
    assert torch.equal(not_none(whole[1].candidates).values, not_none(rest[0].candidates).values)


def test_precomputed_requests_all_occur_once_an_epoch() -> None:
    requests = SequenceBatch(Jagged.from_rows([[1] * n for n in range(1, 12)]), user_ids=torch.arange(1, 12))

    def users(epoch: int) -> list[list[int]]:
        batches = list(LabelledRequests(requests).batches(3, epoch=epoch, seed=0))
        return [not_none(batch.user_ids).tolist() for batch in batches]

    first = users(0)
    assert sorted(user for batch in first for user in batch) == list(range(1, 12))
    assert users(1) != first


def test_examination_is_the_label_rate_of_a_slot_relative_to_slot_1() -> None:
    rows = 400
    slots = torch.tensor([1.0, 2.0]).repeat(rows)
    labels = torch.stack([torch.ones(rows), (torch.arange(rows) % 4 == 0).float()], 1).flatten()
    offsets = torch.arange(rows + 1) * 2
    batch = SequenceBatch(
        Jagged.from_rows([[1]] * rows),
        candidates=Jagged(torch.ones(2 * rows, dtype=torch.int64), offsets),
        candidate_features={"slot": Jagged(slots, offsets)},
        candidate_labels={"click": Jagged(labels, offsets)},
    )
    assert examination(batch, "click").tolist() == [1.0, 1.0, 0.25]
