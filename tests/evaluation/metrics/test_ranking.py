"""Tests of metrics of scored candidates, against scikit-learn and their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss as their_log_loss
from sklearn.metrics import roc_auc_score

from nextitem.evaluation.metrics.ranking import (
    auc,
    calibration_bins,
    calibration_error,
    gauc,
    gauc_terms,
    log_loss,
    normalised_entropy,
)

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_auc_and_gauc_equal_those_of_scikit_learn(rows: list[tuple[int, int, int]]) -> None:
    scores, labels, groups = (torch.tensor(column) for column in zip(*rows, strict=True))
    if len(set(labels.tolist())) == 2:
        assert auc(scores.float(), labels) == pytest.approx(roc_auc_score(labels, scores))
    else:
        assert auc(scores.float(), labels) != auc(scores.float(), labels)
    weighted_sum, num_candidates, num_skipped = 0.0, 0, 0
    for group in set(groups.tolist()):
        in_group = groups == group
        if len(set(labels[in_group].tolist())) == 2:
            weighted_sum += float(roc_auc_score(labels[in_group], scores[in_group])) * int(in_group.sum())
            num_candidates += int(in_group.sum())
        else:
            num_skipped += 1
    mean, skipped = gauc(scores.float(), labels, groups)
    assert skipped == num_skipped
    assert mean == pytest.approx(weighted_sum / num_candidates if num_candidates else float("nan"), nan_ok=True)


def test_ties_count_half_in_auc() -> None:
    assert auc(torch.tensor([0.5, 0.5]), torch.tensor([1, 0])) == 0.5
    assert auc(torch.zeros(9), torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 0])) == 0.5


def test_metrics_of_no_candidates_are_nan() -> None:
    empty = torch.zeros(0)
    assert auc(empty, empty) != auc(empty, empty)
    mean, num_skipped = gauc(empty, empty, empty.long())
    assert (mean != mean, num_skipped) == (True, 0)
    assert log_loss(empty, empty) != log_loss(empty, empty)


def test_log_loss_equals_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(200, generator=generator, dtype=torch.float64)
    labels = (torch.rand(200, generator=generator) < 0.3).long()
    assert log_loss(probabilities, labels) == pytest.approx(their_log_loss(labels, probabilities))
    assert log_loss(torch.tensor([0.0]), torch.tensor([1])) == pytest.approx(16.118, abs=1e-3)  # -ln 1e-7


def calibrated_sample(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `count` probabilities, and labels that are sampled with them."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(count, generator=generator, dtype=torch.float64)
    return probabilities, (torch.rand(count, generator=generator) < probabilities).long()


def test_normalised_entropy_by_hand_and_by_scikit_learn() -> None:
    # A constant prediction of the mean has entropy 1: ln 4 / 4 + 3 ln(4/3) / 4 in numerator and denominator.
    labels = torch.tensor([1, 0, 0, 0])
    assert normalised_entropy(torch.full((4,), 0.25), labels) == pytest.approx(1)
    entropy = normalised_entropy(torch.tensor([0.5, 0.5, 0.2, 0.2]), labels)
    assert entropy == pytest.approx((2 * 0.693147 + 2 * 0.223144) / (1.386294 + 3 * 0.287682), abs=1e-5)
    probabilities, labels = calibrated_sample(500)
    base = their_log_loss(labels, [float(labels.double().mean())] * 500)
    assert normalised_entropy(probabilities, labels) == pytest.approx(their_log_loss(labels, probabilities) / base)
    assert normalised_entropy(probabilities, torch.ones(500)) != normalised_entropy(probabilities, torch.ones(500))


def test_calibration_error_by_hand() -> None:
    probabilities, labels = torch.tensor([0.1, 0.2, 0.6, 0.8]), torch.tensor([0, 1, 1, 0])
    # Two bins: |.15 - .5| and |.7 - .5|.
    assert calibration_error(probabilities, labels, bins=2) == pytest.approx((0.35 + 0.2) / 2)
    assert calibration_error(probabilities, labels, bins=1) == pytest.approx(0.5 - 0.425)
    # More bins than scores: each score is a bin.
    assert calibration_error(probabilities, labels, bins=9) == pytest.approx((0.1 + 0.8 + 0.4 + 0.8) / 4)
    assert calibration_error(torch.zeros(0), torch.zeros(0)) != calibration_error(torch.zeros(0), torch.zeros(0))


def test_calibration_error_equals_the_calibration_curve_of_scikit_learn() -> None:
    probabilities, labels = calibrated_sample(1000)
    shifted = probabilities**2
    share, mean = calibration_curve(labels, shifted, n_bins=10, strategy="quantile")
    assert calibration_error(shifted, labels) == pytest.approx(abs(share - mean).mean(), abs=1e-3)
    assert calibration_error(*calibrated_sample(200_000)) < 0.005


def test_calibration_error_ignores_the_order_of_equal_scores() -> None:
    labels = torch.tensor([1] * 30 + [0] * 70)
    shuffled = labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    for probability in (0.3, 0.5):
        errors = [calibration_error(torch.full((100,), probability), order) for order in (labels, shuffled)]
        assert errors == pytest.approx([abs(probability - 0.3)] * 2, abs=1e-6)


def test_calibration_bins_by_hand() -> None:
    probabilities, labels = torch.tensor([0.8, 0.1, 0.6, 0.2]), torch.tensor([0, 0, 1, 1])
    predicted, observed, counts = calibration_bins(probabilities, labels, bins=2)
    assert predicted.tolist() == pytest.approx([0.15, 0.7])
    assert observed.tolist() == [0.5, 0.5]
    assert counts.tolist() == [2, 2]
    assert len(calibration_bins(probabilities, labels)[0]) == 4
    assert len(calibration_bins(torch.zeros(0), torch.zeros(0))[0]) == 0


def test_the_mean_of_the_terms_of_groups_is_gauc() -> None:
    scores = torch.tensor([0.9, 0.1, 0.5, 0.4, 0.3, 0.2, 0.7])
    labels, groups = torch.tensor([1, 0, 0, 1, 1, 0, 1]), torch.tensor([2, 2, 2, 5, 5, 5, 9])
    terms = gauc_terms(scores, labels, groups)
    assert terms[:2].tolist() == pytest.approx([1.0, 1.0])  # both groups have three impressions
    assert terms[2].isnan()
    assert float(terms.nanmean()) == pytest.approx(gauc(scores, labels, groups)[0])
