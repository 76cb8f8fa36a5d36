"""Tests of figures of scored impressions: by hand, against scikit-learn, and on a real log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.evaluation.evaluate_ranking import evaluate_ranking, quick_auc, ranking_groups


def impressions(labels: Sequence[Sequence[float]], users: list[int] | None) -> SequenceBatch:
    """Return one request for each row of labels; candidates are items 1, 2, ..."""
    candidates = Jagged.from_rows([list(range(1, len(row) + 1)) for row in labels])
    return SequenceBatch(
        Jagged.from_rows([[]] * len(labels)),
        user_ids=None if users is None else torch.tensor(users),
        candidates=candidates,
        candidate_labels={"click": jagged_scores(labels)},
    )


def jagged_scores(rows: Sequence[Sequence[float]]) -> Jagged:
    lengths = torch.tensor([len(row) for row in rows])
    return Jagged.from_lengths(torch.tensor([score for row in rows for score in row], dtype=torch.float32), lengths)


LABELS = [[1, 0], [0, 0], [0, 1, 0], [1]]
SCORES = [[0.9, 0.2], [0.5, 0.1], [0.3, 0.2, 0.1], [0.4]]


def test_gauc_weighs_users_by_their_impressions() -> None:
    evaluation = evaluate_ranking(
        jagged_scores(SCORES), impressions(LABELS, [1, 1, 2, 3]), label="click", model_name="m"
    )
    # User 1: 0.9 is above 0.2, 0.5 and 0.1: AUC 1, four rows. User 2: 0.2 is above 0.1, below 0.3: 1/2, three rows.
    assert evaluation.metrics["gauc"] == pytest.approx((4 * 1 + 3 * 0.5) / 7)
    assert evaluation.slices == {"judged by gauc": {"groups": 2}, "left out of gauc": {"groups": 1}}
    flat_pair = [label for row in LABELS for label in row], [score for row in SCORES for score in row]
    assert evaluation.metrics["auc"] == pytest.approx(roc_auc_score(*flat_pair))
    assert evaluation.metrics["log_loss"] == pytest.approx(log_loss(*flat_pair), abs=1e-6)
    base = log_loss(flat_pair[0], [sum(flat_pair[0]) / len(flat_pair[0])] * len(flat_pair[0]))
    assert evaluation.metrics["normalised_entropy"] == pytest.approx(log_loss(*flat_pair) / base, abs=1e-6)
    assert (evaluation.model, evaluation.protocol, evaluation.requests) == ("m", "impressions", 4)


def test_groups_can_be_paired_and_probabilities_have_calibration_bins() -> None:
    evaluation = evaluate_ranking(jagged_scores(SCORES), impressions(LABELS, [1, 1, 2, 3]), label="click")
    assert float(evaluation.values["gauc"].nanmean()) == pytest.approx(evaluation.metrics["gauc"])
    low, high = evaluation.intervals["gauc"]
    assert low <= evaluation.metrics["gauc"] <= high
    bins = evaluation.calibration["click"]
    assert [part["predicted"] for part in bins[-2:]] == pytest.approx([0.5, 0.9])
    assert [(part["observed"], part["count"]) for part in bins[-2:]] == [(0, 1), (1, 1)]
    assert evaluation.to_json()["calibration"] == evaluation.calibration


def test_without_users_gauc_is_over_requests() -> None:
    for users in (None, [0, 0, 0, 0]):
        evaluation = evaluate_ranking(jagged_scores(SCORES), impressions(LABELS, users), label="click")
        assert evaluation.metrics["gauc"] == pytest.approx((2 * 1 + 3 * 0.5) / 5)
        assert evaluation.slices["left out of gauc"]["groups"] == 2


def test_candidates_without_a_label_are_skipped_in_every_figure() -> None:
    nan = float("nan")
    requests = impressions([[nan, 1, 0], [nan, 0], [0, 1, nan, 0], [1], [nan]], [1, 1, 2, 3, 4])
    scores = jagged_scores([[0.7, 0.9, 0.2], [0.95, 0.5], [0.3, 0.2, 0.8, 0.1], [0.4], [0.6]])
    evaluation = evaluate_ranking(scores, requests, label="click")
    expected = evaluate_ranking(
        jagged_scores([[0.9, 0.2], [0.5], [0.3, 0.2, 0.1], [0.4]]),
        impressions([[1, 0], [0], [0, 1, 0], [1]], [1, 1, 2, 3]),
        label="click",
    )
    assert evaluation.metrics == pytest.approx(expected.metrics)
    assert evaluation.intervals == expected.intervals
    assert (evaluation.requests, evaluation.slices) == (expected.requests, expected.slices)
    assert evaluation.requests == 4
    unknown = impressions([[nan], [nan]], None)
    with pytest.raises(UserError, match="no candidate has a known label 'click'"):
        evaluate_ranking(jagged_scores([[0.1], [0.2]]), unknown, label="click")


def test_quick_auc_skips_candidates_without_a_label() -> None:
    class Fixed:
        def score(self, batch: SequenceBatch) -> dict[str, torch.Tensor]:
            return {"target": jagged_scores([[0.7, 0.9, 0.2], [0.3, 0.2, 0.8]]).to_padded(fill=-torch.inf)}

    nan = float("nan")
    # 0.9 is above 0.2 and 0.3, 0.2 ties with 0.2 and is below 0.3.
    assert quick_auc(Fixed(), impressions([[nan, 1, 0], [0, 1, nan]], None)) == 2.5 / 4


def test_each_request_of_an_unknown_user_is_a_group() -> None:
    assert ranking_groups(impressions(LABELS, [7, 0, 7, 0])).tolist() == [7, 7, -2, -2, 7, 7, 7, -4]


def test_scores_outside_0_to_1_have_no_log_loss() -> None:
    evaluation = evaluate_ranking(jagged_scores([[3.0, -1.0]]), impressions([[1, 0]], None), label="click")
    assert evaluation.metrics == {"auc": 1.0, "gauc": 1.0}
    assert "calibration" not in evaluation.to_json()


def test_with_one_label_only_auc_and_gauc_are_null_in_json() -> None:
    figures = evaluate_ranking(jagged_scores([[0.1], [0.2]]), impressions([[0], [0]], None), label="click").to_json()
    assert (figures["metrics"]["auc"], figures["metrics"]["gauc"]) == (None, None)
    assert figures["slices"]["left out of gauc"]["groups"] == 2
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize(
    ("scores", "label", "message"),
    [(SCORES, "buy", "they have|the candidates have: click"), ([[0.1, 0.2]] * 4, "click", "offsets: 8 scores, got 8")],
)
def test_wrong_labels_and_offsets_are_named_in_the_error(scores: list[list[float]], label: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_ranking(jagged_scores(scores), impressions(LABELS, None), label=label)


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        evaluate_ranking(jagged_scores([[float("nan"), 0.0]]), impressions([[1, 0]], None), label="click")


def test_on_a_real_log_smoothed_click_rates_beat_chance(real_data: Path) -> None:
    split = make_split(load_dataset(real_data / "obd-men"), "impressions")
    train_impressions, requests = split.train.impressions, split.test
    assert train_impressions is not None
    assert requests.candidates is not None
    clicks = train_impressions.columns["click"].cast(float).fill_null(0).to_numpy()
    size = split.train.catalog.num_items + 1
    views = np.bincount(train_impressions.item_ids, minlength=size)
    prior = clicks.mean()
    rate = (np.bincount(train_impressions.item_ids, weights=clicks, minlength=size) + 100 * prior) / (views + 100)
    by_item = torch.from_numpy(rate)[requests.candidates.values]
    evaluation = evaluate_ranking(requests.candidates.with_values(by_item), requests, label="click")
    constant = evaluate_ranking(
        requests.candidates.with_values(torch.full_like(by_item, prior)), requests, label="click"
    )
    labels = requests.candidate_labels["click"].values.numpy()
    assert evaluation.metrics["auc"] == pytest.approx(roc_auc_score(labels, by_item.numpy()))
    assert evaluation.metrics["log_loss"] == pytest.approx(log_loss(labels, by_item.numpy()), abs=1e-6)
    assert evaluation.metrics["auc"] > 0.5
    assert constant.metrics["auc"] == 0.5
    groups = len(torch.unique(ranking_groups(requests)))
    assert sum(int(part["groups"]) for part in evaluation.slices.values()) == groups
