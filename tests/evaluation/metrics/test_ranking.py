"""Metrics of scored candidates against scikit-learn and the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss as their_log_loss
from sklearn.metrics import roc_auc_score

from nextitem.evaluation.metrics.ranking import auc, calibration_error, gauc, log_loss, normalised_entropy

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_auc_and_gauc_as_scikit_learn_says(rows: list[tuple[int, int, int]]) -> None:
    scores, labels, groups = (torch.tensor(column) for column in zip(*rows, strict=True))
    if len(set(labels.tolist())) == 2:
        assert auc(scores.float(), labels) == pytest.approx(roc_auc_score(labels, scores))
    else:
        assert auc(scores.float(), labels) != auc(scores.float(), labels)
    total, weight, left = 0.0, 0, 0
    for group in set(groups.tolist()):
        own = groups == group
        if len(set(labels[own].tolist())) == 2:
            total += float(roc_auc_score(labels[own], scores[own])) * int(own.sum())
            weight += int(own.sum())
        else:
            left += 1
    mean, left_out = gauc(scores.float(), labels, groups)
    assert left_out == left
    assert mean == pytest.approx(total / weight if weight else float("nan"), nan_ok=True)


def test_ties_count_half() -> None:
    assert auc(torch.tensor([0.5, 0.5]), torch.tensor([1, 0])) == 0.5
    assert auc(torch.zeros(9), torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 0])) == 0.5


def test_nothing_to_judge() -> None:
    none = torch.zeros(0)
    assert auc(none, none) != auc(none, none)
    mean, left_out = gauc(none, none, none.long())
    assert (mean != mean, left_out) == (True, 0)
    assert log_loss(none, none) != log_loss(none, none)


def test_log_loss_as_scikit_learn_says() -> None:
    draw = torch.Generator().manual_seed(0)
    probabilities = torch.rand(200, generator=draw, dtype=torch.float64)
    labels = (torch.rand(200, generator=draw) < 0.3).long()
    assert log_loss(probabilities, labels) == pytest.approx(their_log_loss(labels, probabilities))
    assert log_loss(torch.tensor([0.0]), torch.tensor([1])) == pytest.approx(16.118, abs=1e-3)  # -ln 1e-7


def drawn(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(count, generator=draw, dtype=torch.float64)
    return probabilities, (torch.rand(count, generator=draw) < probabilities).long()


def test_normalised_entropy_by_hand_and_as_scikit_learn_says() -> None:
    # Always the mean: 1. Quarters for one positive of four: ln 4 / 4 + 3 ln(4/3) / 4 below and above.
    labels = torch.tensor([1, 0, 0, 0])
    assert normalised_entropy(torch.full((4,), 0.25), labels) == pytest.approx(1)
    found = normalised_entropy(torch.tensor([0.5, 0.5, 0.2, 0.2]), labels)
    assert found == pytest.approx((2 * 0.693147 + 2 * 0.223144) / (1.386294 + 3 * 0.287682), abs=1e-5)
    probabilities, labels = drawn(500)
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


def test_calibration_error_as_scikit_learns_curve_says() -> None:
    probabilities, labels = drawn(1000)
    shifted = probabilities**2
    share, mean = calibration_curve(labels, shifted, n_bins=10, strategy="quantile")
    assert calibration_error(shifted, labels) == pytest.approx(abs(share - mean).mean(), abs=1e-3)
    assert calibration_error(*drawn(200_000)) < 0.005


def test_the_order_of_equal_scores_does_not_matter() -> None:
    labels = torch.tensor([1] * 30 + [0] * 70)
    mixed = labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    for probability in (0.3, 0.5):
        found = [calibration_error(torch.full((100,), probability), each) for each in (labels, mixed)]
        assert found == pytest.approx([abs(probability - 0.3)] * 2, abs=1e-6)
