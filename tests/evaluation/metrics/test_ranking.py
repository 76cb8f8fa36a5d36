"""AUC, GAUC and log-loss against scikit-learn and the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as their_log_loss
from sklearn.metrics import roc_auc_score

from nextitem.evaluation.metrics.ranking import auc, gauc, log_loss

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
