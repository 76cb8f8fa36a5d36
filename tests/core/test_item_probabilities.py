"""Tests of probabilities from scores: values computed by hand, one temperature for both transforms, refused scores."""

from __future__ import annotations

import math

import pytest
import torch

from nextitem.core.item_probabilities import Transform, default_transform, item_probabilities

TRANSFORMS: list[Transform] = ["share", "softmax"]


def random_scores(*, rows: int = 5, items: int = 30) -> torch.Tensor:
    return torch.rand(rows, items + 1, generator=torch.Generator().manual_seed(0)) * 4


def test_shares_are_scores_over_their_sum_and_column_0_has_no_part() -> None:
    scores = torch.tensor([[9.0, 1.0, 3.0, 0.0], [float("nan"), 0.0, 0.0, 5.0]])
    expected = torch.tensor([[0.0, 0.25, 0.75, 0.0], [0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(item_probabilities(scores, "share"), expected)


def test_softmax_is_that_of_the_items_alone() -> None:
    scores = torch.tensor([[float("inf"), 0.0, math.log(3.0), math.log(4.0)]])
    torch.testing.assert_close(item_probabilities(scores, "softmax"), torch.tensor([[0.0, 0.125, 0.375, 0.5]]))
    sharper = torch.tensor([[0.0, 1.0, 9.0, 16.0]]) / 26
    torch.testing.assert_close(item_probabilities(scores, "softmax", temperature=0.5), sharper)


def test_a_row_of_zeros_stays_a_row_of_zeros() -> None:
    scores = torch.tensor([[7.0, 0.0, 0.0], [0.0, 2.0, 2.0]])
    for temperature in (0.5, 1.0, 3.0):
        expected = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
        torch.testing.assert_close(item_probabilities(scores, "share", temperature=temperature), expected)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_is_a_power_of_the_probabilities(transform: Transform, temperature: float) -> None:
    scores = random_scores()
    expected = item_probabilities(scores, transform) ** (1 / temperature)
    expected /= expected.sum(1, keepdim=True)
    actual = item_probabilities(scores, transform, temperature=temperature)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual.sum(1), torch.ones(len(scores)))


def test_shares_are_the_softmax_of_the_logarithms() -> None:
    scores = random_scores()
    torch.testing.assert_close(
        item_probabilities(scores, "share", temperature=0.7),
        item_probabilities(scores.log(), "softmax", temperature=0.7),
    )


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_unseen_items_have_no_probability_and_the_others_share_it(transform: Transform) -> None:
    unseen = torch.tensor([False, False, True, False])
    scores = torch.tensor([[0.0, 1.0, -3.0, 1.0]])  # ranked last by a score below 0
    expected = torch.tensor([[0.0, 0.5, 0.0, 0.5]])
    torch.testing.assert_close(item_probabilities(scores, transform, unseen=unseen), expected)
    assert default_transform(scores, unseen=unseen) == "share"
    assert default_transform(scores) == "softmax"


@pytest.mark.parametrize("factor", [1e-38, 1e38])
def test_scores_of_any_size_have_finite_probabilities(factor: float) -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, 1.0]]) * factor
    expected = torch.tensor([[0.0, 1.0, 4.0, 1.0]]) / 6
    torch.testing.assert_close(item_probabilities(scores, "share", temperature=0.5), expected)
    assert bool(item_probabilities(scores, "softmax").isfinite().all())


def test_scores_are_not_changed_and_whole_numbers_are_scores_too() -> None:
    scores = torch.tensor([[5, 1, 3]])
    expected = torch.tensor([[0.0, 0.25, 0.75]])
    torch.testing.assert_close(item_probabilities(scores, "share"), expected)
    assert scores.tolist() == [[5, 1, 3]]
    double = scores.double()
    assert item_probabilities(double, "share").dtype == torch.float64
    assert double.tolist() == [[5, 1, 3]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_scores_that_are_not_finite_are_refused(transform: Transform, value: float) -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, value, 1.0]])
    with pytest.raises(ValueError, match="must be finite"):
        item_probabilities(scores, transform)
    with pytest.raises(ValueError, match="must be finite"):
        default_transform(scores)


def test_shares_of_negative_scores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 0, and one is -0.5; use 'softmax'"):
        item_probabilities(torch.tensor([[-9.0, 1.0, -0.5]]), "share")


def test_the_default_is_a_share_unless_a_score_is_negative() -> None:
    assert default_transform(torch.tensor([[-1.0, 0.0, 2.0]])) == "share"
    assert default_transform(torch.tensor([[0.0, 0.0, 2.0], [0.0, -1e-9, 2.0]])) == "softmax"
