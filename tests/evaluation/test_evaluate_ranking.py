"""Figures of scored impressions: by hand, against scikit-learn, and on a real log."""

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


def shown(labels: Sequence[Sequence[float]], users: list[int] | None) -> SequenceBatch:
    """One request a row of labels; candidates are items 1, 2, ..."""
    candidates = Jagged.from_rows([list(range(1, len(row) + 1)) for row in labels])
    return SequenceBatch(
        Jagged.from_rows([[]] * len(labels)),
        user_ids=None if users is None else torch.tensor(users),
        candidates=candidates,
        candidate_labels={"click": scored(labels)},
    )


def scored(rows: Sequence[Sequence[float]]) -> Jagged:
    lengths = torch.tensor([len(row) for row in rows])
    return Jagged.from_lengths(torch.tensor([score for row in rows for score in row], dtype=torch.float32), lengths)


LABELS = [[1, 0], [0, 0], [0, 1, 0], [1]]
SCORES = [[0.9, 0.2], [0.5, 0.1], [0.3, 0.2, 0.1], [0.4]]


def test_gauc_is_over_users_and_weighs_them_by_what_they_were_shown() -> None:
    found = evaluate_ranking(scored(SCORES), shown(LABELS, [1, 1, 2, 3]), label="click", model_name="m")
    # User 1: .9 is above .2, .5 and .1: 1, four rows. User 2: .2 is above .1, below .3: 1/2, three rows.
    assert found.metrics["gauc"] == pytest.approx((4 * 1 + 3 * 0.5) / 7)
    assert found.slices == {"judged by gauc": {"groups": 2}, "left out of gauc": {"groups": 1}}
    flat = [label for row in LABELS for label in row], [score for row in SCORES for score in row]
    assert found.metrics["auc"] == pytest.approx(roc_auc_score(*flat))
    assert found.metrics["log_loss"] == pytest.approx(log_loss(*flat), abs=1e-6)
    base = log_loss(flat[0], [sum(flat[0]) / len(flat[0])] * len(flat[0]))
    assert found.metrics["normalised_entropy"] == pytest.approx(log_loss(*flat) / base, abs=1e-6)
    assert (found.model, found.protocol, found.requests) == ("m", "impressions", 4)


def test_without_users_gauc_is_over_requests() -> None:
    for users in (None, [0, 0, 0, 0]):
        found = evaluate_ranking(scored(SCORES), shown(LABELS, users), label="click")
        assert found.metrics["gauc"] == pytest.approx((2 * 1 + 3 * 0.5) / 5)
        assert found.slices["left out of gauc"]["groups"] == 2


def test_candidates_without_a_known_label_are_left_out_of_every_figure() -> None:
    nan = float("nan")
    requests = shown([[nan, 1, 0], [nan, 0], [0, 1, nan, 0], [1], [nan]], [1, 1, 2, 3, 4])
    scores = scored([[0.7, 0.9, 0.2], [0.95, 0.5], [0.3, 0.2, 0.8, 0.1], [0.4], [0.6]])
    found = evaluate_ranking(scores, requests, label="click")
    known = evaluate_ranking(
        scored([[0.9, 0.2], [0.5], [0.3, 0.2, 0.1], [0.4]]),
        shown([[1, 0], [0], [0, 1, 0], [1]], [1, 1, 2, 3]),
        label="click",
    )
    assert found.metrics == pytest.approx(known.metrics)
    assert found.intervals == known.intervals
    assert (found.requests, found.slices) == (known.requests, known.slices)
    assert found.requests == 4
    unknown = shown([[nan], [nan]], None)
    with pytest.raises(UserError, match="label 'click' is not known of any candidate"):
        evaluate_ranking(scored([[0.1], [0.2]]), unknown, label="click")


def test_the_figure_for_choosing_an_epoch_reads_known_labels_only() -> None:
    class Fixed:
        def score(self, batch: SequenceBatch) -> dict[str, torch.Tensor]:
            return {"target": scored([[0.7, 0.9, 0.2], [0.3, 0.2, 0.8]]).to_padded(fill=-torch.inf)}

    nan = float("nan")
    # .9 is above .2 and .3, .2 ties with .2 and is below .3.
    assert quick_auc(Fixed(), shown([[nan, 1, 0], [0, 1, nan]], None)) == 2.5 / 4


def test_unknown_users_stand_for_themselves_beside_known_ones() -> None:
    assert ranking_groups(shown(LABELS, [7, 0, 7, 0])).tolist() == [7, 7, -2, -2, 7, 7, 7, -4]


def test_scores_that_are_no_probabilities_have_no_log_loss() -> None:
    found = evaluate_ranking(scored([[3.0, -1.0]]), shown([[1, 0]], None), label="click")
    assert found.metrics == {"auc": 1.0, "gauc": 1.0}


def test_one_label_only_is_said_and_is_null_in_json() -> None:
    found = evaluate_ranking(scored([[0.1], [0.2]]), shown([[0], [0]], None), label="click").to_json()
    assert (found["metrics"]["auc"], found["metrics"]["gauc"]) == (None, None)
    assert found["slices"]["left out of gauc"]["groups"] == 2
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("scores", "label", "words"),
    [(SCORES, "buy", "they have|the candidates have: click"), ([[0.1, 0.2]] * 4, "click", "offsets: 8 scores, got 8")],
)
def test_mistakes_are_named(scores: list[list[float]], label: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluate_ranking(scored(scores), shown(LABELS, None), label=label)


def test_scores_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        evaluate_ranking(scored([[float("nan"), 0.0]]), shown([[1, 0]], None), label="click")


def test_on_a_real_log_smoothed_click_rates_beat_chance(real_data: Path) -> None:
    split = make_split(load_dataset(real_data / "obd-men"), "impressions")
    learnt, requests = split.train.impressions, split.test
    assert learnt is not None
    assert requests.candidates is not None
    clicks = learnt.columns["click"].cast(float).fill_null(0).to_numpy()
    size = split.train.catalog.num_items + 1
    views = np.bincount(learnt.item_ids, minlength=size)
    prior = clicks.mean()
    rate = (np.bincount(learnt.item_ids, weights=clicks, minlength=size) + 100 * prior) / (views + 100)
    by_item = torch.from_numpy(rate)[requests.candidates.values]
    found = evaluate_ranking(requests.candidates.with_values(by_item), requests, label="click")
    flat = evaluate_ranking(requests.candidates.with_values(torch.full_like(by_item, prior)), requests, label="click")
    labels = requests.candidate_labels["click"].values.numpy()
    assert found.metrics["auc"] == pytest.approx(roc_auc_score(labels, by_item.numpy()))
    assert found.metrics["log_loss"] == pytest.approx(log_loss(labels, by_item.numpy()), abs=1e-6)
    assert found.metrics["auc"] > 0.5
    assert flat.metrics["auc"] == 0.5
    groups = len(torch.unique(ranking_groups(requests)))
    assert sum(int(part["groups"]) for part in found.slices.values()) == groups
