"""Losses of GRU4Rec: golden values, formulas, gradients, no overflow."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nextitem.losses.bpr import bpr
from nextitem.losses.bpr_max import bpr_max
from nextitem.losses.in_batch_softmax import in_batch_softmax
from nextitem.losses.merged_softmax import merged_softmax
from nextitem.losses.top1 import top1
from nextitem.losses.top1_max import top1_max

ROW = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)  # the positive, then two negatives


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def matrix() -> Tensor:
    return torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def naive(scores: Tensor, row: int) -> tuple[float, list[float]]:
    values = scores[row].tolist()
    return values[row], [value for column, value in enumerate(values) if column != row]


def test_losses_equal_golden_values() -> None:
    assert float(bpr_max(ROW, regularisation=1.0)) == pytest.approx(0.5285811, abs=1e-7)
    assert float(top1_max(ROW)) == pytest.approx(0.7908118, abs=1e-7)


def test_losses_equal_formulas_computed_row_by_row() -> None:
    scores = matrix()
    sums = dict.fromkeys(("bpr", "bpr-max", "top1", "top1-max", "softmax"), 0.0)
    for row in range(3):
        positive, negatives = naive(scores, row)
        total = sum(math.exp(x) for x in negatives)
        weights = [math.exp(x) / total for x in negatives]
        everything = scores[row].tolist()
        sums["bpr"] += sum(-math.log(s(positive - x)) for x in everything) / 6
        sums["top1"] += sum(s(x - positive) + s(x * x) for x in everything) / 6 - s(positive**2) / 6
        above = sum(w * s(positive - x) for w, x in zip(weights, negatives, strict=True))
        penalty = sum(w * x * x for w, x in zip(weights, negatives, strict=True))
        sums["bpr-max"] += -math.log(above) + 0.7 * penalty
        sums["top1-max"] += sum(w * (s(x - positive) + s(x * x)) for w, x in zip(weights, negatives, strict=True))
        sums["softmax"] += math.log(sum(math.exp(x) for x in everything)) - positive
    mean = {name: value / 3 for name, value in sums.items()}
    assert float(bpr(scores)) == pytest.approx(mean["bpr"])
    assert float(top1(scores)) == pytest.approx(mean["top1"])
    assert float(bpr_max(scores, regularisation=0.7)) == pytest.approx(mean["bpr-max"])
    assert float(top1_max(scores)) == pytest.approx(mean["top1-max"])
    assert float(in_batch_softmax(scores)) == pytest.approx(mean["softmax"])


def test_elu_is_applied_to_the_scores_first() -> None:
    scores = matrix()
    activated = torch.where(scores > 0, scores, 0.5 * (scores.exp() - 1))
    assert float(bpr_max(scores, elu=0.5)) == pytest.approx(float(bpr_max(activated)))
    assert float(bpr_max(scores, elu=0.5)) != pytest.approx(float(bpr_max(scores)))


def test_log_q_is_subtracted_from_the_scores() -> None:
    scores, log_q = matrix(), torch.arange(6, dtype=torch.float64)
    assert float(in_batch_softmax(scores, log_q=log_q)) == pytest.approx(float(in_batch_softmax(scores - log_q)))


@pytest.mark.parametrize("collisions", [True, False])
def test_merged_softmax_equals_in_batch_softmax_over_all_columns(collisions: bool) -> None:
    # Three rows, two with the same target; items 1 and 2 have no column.
    column_items = torch.tensor([3, 0, 3, 0, 3, 4, 4, 0])
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2), (5, 2), (5,))]
    hidden, vectors, biases = parts
    log_q = torch.randn(8, dtype=torch.float64)
    actual = merged_softmax(hidden, vectors, biases, column_items, log_q, collisions=collisions)
    scores = hidden @ vectors[column_items].T + biases[column_items]
    if not collisions:
        is_repeated = (column_items[:3, None] == column_items).fill_diagonal_(False)
        scores = scores.masked_fill(is_repeated, -torch.inf)
    expected = torch.nn.functional.cross_entropy(scores - log_q, torch.arange(3))
    torch.testing.assert_close(actual, expected)
    gradients, expected_gradients = torch.autograd.grad(actual, parts), torch.autograd.grad(expected, parts)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("loss", [bpr, bpr_max, top1, top1_max, in_batch_softmax])
def test_gradients_equal_finite_differences(loss: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(loss, (matrix().requires_grad_(),))


@pytest.mark.parametrize("loss", [bpr, bpr_max, top1, top1_max, in_batch_softmax])
def test_a_positive_far_below_its_negatives_has_a_finite_gradient(loss: Callable[[Tensor], Tensor]) -> None:
    scores = torch.tensor([[-200.0, 100.0, 90.0]], requires_grad=True)
    value = loss(scores)
    value.backward()
    assert scores.grad is not None
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(scores.grad).all())
    if loss in (bpr, bpr_max, in_batch_softmax):  # the gradients of the others vanish
        assert float(scores.grad[0, 0]) < -0.1
