"""GRU4Rec's losses: golden values, formulas, gradients, no overflow."""

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


def test_golden_values() -> None:
    assert float(bpr_max(ROW, regularisation=1.0)) == pytest.approx(0.5285811, abs=1e-7)
    assert float(top1_max(ROW)) == pytest.approx(0.7908118, abs=1e-7)


def test_formulas_worked_out_row_by_row() -> None:
    scores = matrix()
    found = dict.fromkeys(("bpr", "bpr-max", "top1", "top1-max", "softmax"), 0.0)
    for row in range(3):
        positive, negatives = naive(scores, row)
        total = sum(math.exp(x) for x in negatives)
        weights = [math.exp(x) / total for x in negatives]
        everything = scores[row].tolist()
        found["bpr"] += sum(-math.log(s(positive - x)) for x in everything) / 6
        found["top1"] += sum(s(x - positive) + s(x * x) for x in everything) / 6 - s(positive**2) / 6
        above = sum(w * s(positive - x) for w, x in zip(weights, negatives, strict=True))
        penalty = sum(w * x * x for w, x in zip(weights, negatives, strict=True))
        found["bpr-max"] += -math.log(above) + 0.7 * penalty
        found["top1-max"] += sum(w * (s(x - positive) + s(x * x)) for w, x in zip(weights, negatives, strict=True))
        found["softmax"] += math.log(sum(math.exp(x) for x in everything)) - positive
    mean = {name: value / 3 for name, value in found.items()}
    assert float(bpr(scores)) == pytest.approx(mean["bpr"])
    assert float(top1(scores)) == pytest.approx(mean["top1"])
    assert float(bpr_max(scores, regularisation=0.7)) == pytest.approx(mean["bpr-max"])
    assert float(top1_max(scores)) == pytest.approx(mean["top1-max"])
    assert float(in_batch_softmax(scores)) == pytest.approx(mean["softmax"])


def test_elu_comes_before_everything_else() -> None:
    scores = matrix()
    bent = torch.where(scores > 0, scores, 0.5 * (scores.exp() - 1))
    assert float(bpr_max(scores, elu=0.5)) == pytest.approx(float(bpr_max(bent)))
    assert float(bpr_max(scores, elu=0.5)) != pytest.approx(float(bpr_max(scores)))


def test_log_q_is_taken_from_the_scores() -> None:
    scores, log_q = matrix(), torch.arange(6, dtype=torch.float64)
    assert float(in_batch_softmax(scores, log_q=log_q)) == pytest.approx(float(in_batch_softmax(scores - log_q)))


@pytest.mark.parametrize("collisions", [True, False])
def test_items_scored_once_are_the_in_batch_softmax_over_their_columns(collisions: bool) -> None:
    place = torch.tensor([3, 0, 3, 0, 3, 4, 4, 0])  # three rows; two of them share a target; 1 and 2 have no column
    parts = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2), (5, 2), (5,))]
    hidden, vectors, biases = parts
    log_q = torch.randn(8, dtype=torch.float64)
    found = merged_softmax(hidden, vectors, biases, place, log_q, collisions=collisions)
    scores = hidden @ vectors[place].T + biases[place]
    if not collisions:
        again = (place[:3, None] == place).fill_diagonal_(False)
        scores = scores.masked_fill(again, -torch.inf)
    expected = torch.nn.functional.cross_entropy(scores - log_q, torch.arange(3))
    torch.testing.assert_close(found, expected)
    for own, other in zip(torch.autograd.grad(found, parts), torch.autograd.grad(expected, parts), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("loss", [bpr, bpr_max, top1, top1_max, in_batch_softmax])
def test_gradients_are_those_of_finite_differences(loss: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(loss, (matrix().requires_grad_(),))


@pytest.mark.parametrize("loss", [bpr, bpr_max, top1, top1_max, in_batch_softmax])
def test_a_positive_far_below_its_negatives_still_learns(loss: Callable[[Tensor], Tensor]) -> None:
    scores = torch.tensor([[-200.0, 100.0, 90.0]], requires_grad=True)
    value = loss(scores)
    value.backward()
    assert scores.grad is not None
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(scores.grad).all())
    if loss in (bpr, bpr_max, in_batch_softmax):  # the others level off
        assert float(scores.grad[0, 0]) < -0.1
