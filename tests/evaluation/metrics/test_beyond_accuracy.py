"""Tests of metrics beyond accuracy, against figures computed by hand and plain definitions."""

from __future__ import annotations

from itertools import combinations
from math import log2

import pytest
import torch

from nextitem.core.jagged import Jagged
from nextitem.evaluation.metrics.beyond_accuracy import coverage, diversity, gini, novelty, popularity_bias, serendipity

NAN = float("nan")


def test_coverage_counts_each_item_once_and_no_padding() -> None:
    assert coverage(torch.tensor([[1, 2], [2, 0]]), num_items=8) == 0.25
    assert coverage(torch.zeros(2, 3, dtype=torch.int64), num_items=8) == 0


def test_gini_is_0_for_even_exposure_and_near_1_for_a_single_item() -> None:
    assert gini(torch.tensor([[1, 2], [3, 4]]), num_items=4) == pytest.approx(0)
    assert gini(torch.tensor([[1], [1], [1]]), num_items=4) == pytest.approx(3 / 4)
    assert gini(torch.zeros(2, 2, dtype=torch.int64), num_items=4) == 0
    exposure = [3, 1, 1, 0, 0]  # mean difference of all pairs over twice the mean
    lists = torch.tensor([[1], [1], [1], [2], [3]])
    expected = sum(abs(a - b) for a in exposure for b in exposure) / (2 * 25 * 1)
    assert gini(lists, num_items=5) == pytest.approx(expected)


def test_novelty_is_the_mean_self_information_in_bits() -> None:
    popularity = torch.tensor([0.0, 1, 5, 0])  # with one event added to each of three items: 2, 6, 1 of 9
    values = novelty(torch.tensor([[1, 2], [3, 0], [0, 0]]), popularity)
    assert values.tolist() == pytest.approx([(log2(9 / 2) + log2(9 / 6)) / 2, log2(9), NAN], nan_ok=True)
    assert popularity[0] == 0


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    lists = torch.tensor([[1, 2, 3, 4], [8, 5, 0, 0], [3, 0, 0, 0]])
    unit = features / features.norm(dim=1, keepdim=True)
    expected = []
    for row in lists.tolist():
        pairs = [1 - float(unit[a] @ unit[b]) for a, b in combinations([item for item in row if item], 2)]
        expected.append(sum(pairs) / len(pairs) if pairs else NAN)
    assert diversity(lists, features).tolist() == pytest.approx(expected, nan_ok=True, abs=1e-6)


def test_diversity_of_categories_is_the_share_of_pairs_that_differ() -> None:
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 1])).float()
    assert diversity(torch.tensor([[1, 2, 3]]), one_hot).item() == pytest.approx(2 / 3)


def test_an_item_without_content_is_at_distance_1_from_all_others() -> None:
    features = torch.tensor([[0.0, 0], [1, 0], [1, 0], [0, 0]])
    assert diversity(torch.tensor([[1, 2, 3]]), features).item() == pytest.approx(2 / 3)


def test_serendipity_does_not_count_the_most_popular_items() -> None:
    popularity = torch.tensor([0.0, 9, 8, 1, 1])
    lists = torch.tensor([[1, 3], [3, 4], [2, 1]])
    targets = Jagged.from_rows([[1, 3], [3], []])
    assert serendipity(lists, targets, popularity, 2).tolist() == pytest.approx([1 / 2, 1 / 2, NAN], nan_ok=True)
    assert serendipity(lists, targets, popularity, 1).tolist() == pytest.approx([0, 1, NAN], nan_ok=True)


def test_popularity_bias_is_the_ratio_of_mean_popularities() -> None:
    popularity = torch.tensor([0.0, 4, 2, 0])
    lists = torch.tensor([[1, 2], [2, 0], [1, 2], [0, 0]])
    histories = Jagged.from_rows([[1, 2], [1], [], [1]])
    values = popularity_bias(lists, histories, popularity)
    assert values.tolist() == pytest.approx([1, 0.5, NAN, NAN], nan_ok=True)
