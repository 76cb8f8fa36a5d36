"""Reader of impressions: rows that are one request, labels in every form, and rows that are copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.impression_requests import impression_requests
from nextitem.data.readers import dataset_from_frames

T0 = 1_700_000_000
DAY = 86_400
IMPRESSIONS: dict[str, list[Any]] = {
    "impression_id": ["a", "a", "b", "b"],
    "user_id": [1, 1, 2, 2],
    "item_id": [5, 6, 6, 7],
    "timestamp": [T0, T0, T0 + 60, T0 + 60],
}


def read(settings: dict[str, Any] | None = None, **columns: list[Any] | pl.Series) -> Dataset:
    return dataset_from_frames({"impressions": IMPRESSIONS | columns}, {"impressions": settings or {}})


def requests(dataset: Dataset) -> list[int]:
    assert dataset.impressions is not None
    return [int(number) for number in dataset.impressions.request_ids]


def labels(dataset: Dataset, name: str = "click") -> list[float | None]:
    assert dataset.impressions is not None
    return dataset.impressions.columns[name].cast(pl.Float64).to_list()


def refusal(settings: dict[str, Any], **columns: list[Any]) -> str:
    with pytest.raises(UserError) as caught:
        read(settings, **columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_that_count_from_0_for_each_user_are_different_requests() -> None:
    dataset = read(impression_id=[0, 1, 0, 1])
    assert requests(dataset) == [0, 1, 2, 3]
    assert any("2 impression_ids occur under several users" in note for note in dataset.notes)
    assert dataset.impressions is not None
    batch = impression_requests(dataset, np.zeros(4, np.int64), np.ones(4, np.bool_))
    assert batch.user_ids is not None
    assert batch.user_ids.tolist() == dataset.users.keys[[1, 1, 2, 2]].tolist()
    assert not read().notes


def test_rows_of_an_unknown_user_are_a_separate_request() -> None:
    dataset = read(impression_id=["a"] * 4, user_id=[1, None, 1, None])
    assert requests(dataset) == [0, 1, 0, 1]
    assert any("with and without one" in note for note in dataset.notes)
    text = read(user_id=["x", " ", "y", ""])
    assert text.impressions is not None
    assert text.impressions.user_ids.tolist() == [1, 0, 2, 0]


def test_an_id_that_occurs_again_on_another_day_is_another_request() -> None:
    dataset = read(
        impression_id=["a"] * 4, user_id=[1] * 4, timestamp=[T0, T0 + 3 * DAY, T0 + 600, T0 + 3 * DAY - 3600]
    )
    assert requests(dataset) == [0, 1, 0, 1]
    assert any("1 impression_ids occur again" in note for note in dataset.notes)
    # A page that is scrolled for hours, with the time at which each row is seen, is one request.
    long = read(impression_id=["a", "a", "a", "b"], user_id=[1] * 4, timestamp=[T0, T0 + DAY, T0 + 2 * DAY, T0])
    assert requests(long) == [0, 0, 0, 1]
    assert not long.notes


@pytest.mark.parametrize(
    "values",
    [
        [1, 0, None, 1],
        ["1", "0", "", "1"],
        ["1.0", "0.0", "nan", "1"],
        ["True", "False", None, "True"],
        ["yes", "NO", " ", "Yes"],
        ["t", "f", "", "y"],
        [True, False, None, True],
        [1.0, 0.0, float("nan"), 1.0],
    ],
)
def test_labels_are_yes_no_or_unknown(values: list[Any]) -> None:
    dataset = read({"labels": ["click"]}, click=values)
    assert labels(dataset) == [1.0, 0.0, None, 1.0]
    assert any("label 'click' is empty in 1 of 4 rows" in note for note in dataset.notes)
    batch = impression_requests(dataset, np.zeros(2, np.int64), np.ones(2, np.bool_))
    candidate_labels = batch.candidate_labels["click"].values
    assert candidate_labels.isnan().tolist() == [False, False, True, False]
    assert candidate_labels[~candidate_labels.isnan()].tolist() == [1.0, 0.0, 1.0]


def test_grades_are_noted_and_a_setting_can_divide_them() -> None:
    grades = {"grade": [0, 4, 2, None]}
    dataset = read({"labels": ["grade"]}, **grades)
    assert labels(dataset, "grade") == [0, 4, 2, None]
    assert any("grades from 0 to 4: above 0 counts as yes" in note for note in dataset.notes)
    cut = read({"labels": ["grade"], "positive": {"grade": ">= 3"}}, **grades)
    assert labels(cut, "grade") == [0, 1, 0, None]
    assert not any("grades" in note for note in cut.notes)
    stars = read({"labels": ["grade"]}, grade=[1, 1, 1, 1])
    assert any("is above 0 wherever it is known" in note for note in stars.notes)
    assert "no label; add it to labels" in refusal({"positive": {"grade": ">= 3"}}, **grades)


def test_slots_of_text_are_not_read_and_other_slots_are_checked() -> None:
    dataset = read(slot=["top", "left", "top", ""], propensity=["high", "low", "", ""])
    assert dataset.impressions is not None
    assert dataset.impressions.columns.columns == []
    assert any("'slot' contains no numbers" in note for note in dataset.notes)
    zero = read(slot=["0", "1", "0", "1"])
    assert any("'slot' is 0 in 2 rows" in note for note in zero.notes)
    for slots in ([1, -1, 1, 2], [1, 1.5, 1, 2]):
        assert "'slot', row 2" in refusal({}, slot=slots)
    assert "'propensity', row 2: '1.5'" in refusal({}, propensity=["0.5", "1.5", "", ""])


def test_rows_logged_twice_are_noted_and_can_be_dropped() -> None:
    copies = {name: values * 2 for name, values in (IMPRESSIONS | {"click": [0, 1, 0, 0]}).items()}
    settings = {"labels": ["click"]}
    dataset = dataset_from_frames({"impressions": copies}, {"impressions": settings})
    assert any("4 of 8 rows are copies" in note for note in dataset.notes)
    dropped = dataset_from_frames({"impressions": copies}, {"impressions": settings | {"duplicates": "drop"}})
    assert requests(dropped) == [0, 0, 1, 1]
    complete = dataset_from_frames({"impressions": copies}, {"impressions": settings | {"duplicates": "keep"}})
    assert len(requests(complete)) == 8
    assert not complete.notes


def test_the_number_of_users_without_events_is_noted() -> None:
    log = {"user_id": [1, 1, 3], "item_id": [5, 6, 7], "timestamp": [T0, T0 + 1, T0 + 2]}
    notes = dataset_from_frames({"interactions": log, "impressions": IMPRESSIONS}).notes
    assert notes == ("data/impressions: 1 of 2 users have no event in data/interactions, so their history is empty",)


def test_missing_labels_are_nan_and_missing_slots_are_zero() -> None:
    dataset = read({"labels": ["click", "buy"]}, click=[1, None, 0, 0], buy=[None] * 4, slot=[1, None, 1, 2])
    batch = impression_requests(dataset, np.zeros(2, np.int64), np.ones(2, np.bool_))
    assert batch.candidate_features["slot"].values.tolist() == [1, 0, 1, 2]
    assert bool(torch.isnan(batch.candidate_labels["buy"].values).all())
