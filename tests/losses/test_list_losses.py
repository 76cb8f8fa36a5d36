"""Losses over the candidates of requests, compared with results by hand, also with unknown labels; their gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nextitem.core.jagged import Jagged
from nextitem.losses.label_shares import label_shares
from nextitem.losses.listwise_softmax import listwise_softmax
from nextitem.losses.mean_by_request import mean_by_request

NAN = float("nan")
LISTS = Jagged.from_rows([[1, 2, 3], [4, 5], [6]])
LOGITS = [2.0, -1.0, 0.5, 1.0, 3.0, 0.0]


def listwise(logits: Tensor, labels: list[float]) -> Tensor:
    return listwise_softmax(logits, torch.tensor(labels), LISTS.row_ids(), num_requests=3)


def test_listwise_softmax_equals_the_result_by_hand() -> None:
    actual = listwise(torch.tensor(LOGITS), [0, 1, 1, 0, 0, 1])
    first = torch.tensor(LOGITS[:3]).log_softmax(0)
    expected = torch.stack([torch.tensor(0.0), -3 * first[1], -3 * first[2], *[torch.tensor(0.0)] * 3])
    torch.testing.assert_close(actual, expected)


def test_listwise_softmax_ignores_candidates_with_unknown_labels() -> None:
    actual = listwise(torch.tensor([2.0, -1.0, 500.0, 1.0, 3.0, 0.0]), [0, 1, NAN, 1, NAN, NAN])
    expected = -2 * torch.tensor([2.0, -1.0]).log_softmax(0)[1]
    torch.testing.assert_close(actual, torch.tensor([0.0, float(expected), 0.0, 0.0, 0.0, 0.0]))


def test_label_shares_equals_the_result_by_hand() -> None:
    actual = label_shares(torch.tensor(LOGITS), torch.tensor([1.0, 3.0, 0.0, 0.0, -1.0, 2.0]), LISTS)
    first = torch.tensor(LOGITS[:3]).log_softmax(0)
    torch.testing.assert_close(actual, -(0.25 * first[0] + 0.75 * first[1]) / 3)


def test_label_shares_ignores_candidates_with_unknown_labels() -> None:
    actual = label_shares(torch.tensor(LOGITS), torch.tensor([1.0, 1.0, NAN, NAN, 1.0, NAN]), LISTS)
    first = torch.tensor(LOGITS[:2]).log_softmax(0)
    torch.testing.assert_close(actual, -first.mean() / 3)


def test_mean_by_request_weighs_every_request_equally() -> None:
    values = torch.tensor([1.0, 3.0, 100.0, 5.0, 7.0, 9.0])
    is_known = torch.tensor([True, True, False, True, True, False])
    actual = mean_by_request(values, LISTS.row_ids(), num_requests=3, is_known=is_known)
    assert float(actual) == pytest.approx((2 + 6 + 0) / 3)


@pytest.mark.parametrize("labels", [[NAN] * 6, [0, NAN, 1, NAN, NAN, 0], [0.0] * 6])
def test_gradients_are_finite_and_zero_for_unknown_labels(labels: list[float]) -> None:
    losses: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda logits: listwise(logits, labels).sum(),
        lambda logits: label_shares(logits, torch.tensor(labels), LISTS),
    )
    for loss in losses:
        logits = torch.tensor(LOGITS, requires_grad=True)
        loss(logits).backward()
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())
        assert bool((logits.grad[torch.tensor(labels).isnan()] == 0).all())
