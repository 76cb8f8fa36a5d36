"""Tests of accuracy metrics, against figures computed by hand and against torchmetrics."""

from __future__ import annotations

from collections.abc import Callable
from math import log2

import pytest
import torch
from torch import Tensor
from torchmetrics.functional import retrieval

from nextitem.core.jagged import Jagged
from nextitem.evaluation.metrics import accuracy
from nextitem.evaluation.metrics.accuracy import average_precision, hit_rate, hits, mrr, ndcg, precision, recall

# Hits in slots 2 and 4; a hit in slot 1; no hit; no targets.
LISTS = torch.tensor([[9, 1, 8, 2, 7], [3, 1, 2, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])
TARGETS = Jagged.from_rows([[1, 2, 6], [3], [9], []])
NAN = float("nan")
Metric = Callable[[Tensor, Jagged, int], Tensor]
BY_HAND: dict[tuple[Metric, int], list[float]] = {
    (recall, 4): [2 / 3, 1, 0, NAN],
    (recall, 3): [1 / 3, 1, 0, NAN],
    (hit_rate, 1): [0, 1, 0, NAN],
    (hit_rate, 2): [1, 1, 0, NAN],
    (precision, 5): [2 / 5, 1 / 5, 0, NAN],
    (mrr, 5): [1 / 2, 1, 0, NAN],
    (mrr, 1): [0, 1, 0, NAN],
    (average_precision, 5): [(1 / 2 + 2 / 4) / 3, 1, 0, NAN],
    (average_precision, 2): [(1 / 2) / 2, 1, 0, NAN],
    (ndcg, 5): [(1 / log2(3) + 1 / log2(5)) / (1 + 1 / log2(3) + 1 / log2(4)), 1, 0, NAN],
    (ndcg, 2): [(1 / log2(3)) / (1 + 1 / log2(3)), 1, 0, NAN],
}


@pytest.mark.parametrize(("metric", "k"), BY_HAND, ids=lambda part: getattr(part, "__name__", part))
def test_metrics_equal_values_computed_by_hand(metric: Metric, k: int) -> None:
    values = metric(LISTS, TARGETS, k)
    assert values.dtype == torch.float64
    torch.testing.assert_close(
        values, torch.tensor(BY_HAND[metric, k], dtype=torch.float64), rtol=1e-12, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_metrics_equal_those_of_torchmetrics(k: int, count: int) -> None:
    generator = torch.Generator().manual_seed(100 * k + count)
    lists = torch.stack([torch.randperm(20, generator=generator)[:10] + 1 for _ in range(30)])
    targets = Jagged.from_rows([(torch.randperm(20, generator=generator)[:count] + 1).tolist() for _ in range(30)])
    pairs = {
        "recall": retrieval.retrieval_recall,
        "hit_rate": retrieval.retrieval_hit_rate,
        "precision": retrieval.retrieval_precision,
        "ndcg": retrieval.retrieval_normalized_dcg,
        "mrr": retrieval.retrieval_reciprocal_rank,
    }
    for name, theirs in pairs.items():
        expected = []
        for row in range(30):
            scores = torch.zeros(20)
            scores[lists[row] - 1] = torch.arange(10, 0, -1).float()
            relevance = torch.zeros(20, dtype=torch.long)
            relevance[targets.select(torch.tensor([row])).values - 1] = 1
            # Ties below the list are arbitrary in torchmetrics: only the items of the list are judged.
            order = torch.cat([lists[row] - 1, (scores == 0).nonzero()[:, 0]])
            ranked = torch.arange(20, 0, -1).float()
            ranked_relevance = relevance[order]
            expected.append(float(theirs(ranked, ranked_relevance, top_k=k)))
        values = getattr(accuracy, name)(lists, targets, k)
        assert values.tolist() == pytest.approx(expected, abs=1e-6), name


def test_with_one_target_recall_equals_hit_rate_and_ndcg_is_the_discount() -> None:
    lists = torch.tensor([[4, 5, 6], [4, 5, 6], [4, 5, 6]])
    targets = Jagged.from_rows([[4], [6], [1]])
    assert torch.equal(recall(lists, targets, 3), hit_rate(lists, targets, 3))
    assert ndcg(lists, targets, 3).tolist() == pytest.approx([1, 1 / log2(4), 0])


def test_padding_is_never_a_hit() -> None:
    lists = torch.tensor([[0, 0], [2, 0]])
    assert not hits(lists, Jagged.from_rows([[0], [0]])).any()
    assert recall(lists, Jagged.from_rows([[1], [2]]), 2).tolist() == [0, 1]


def test_a_short_list_counts_as_one_with_misses_at_the_end() -> None:
    short, padded = torch.tensor([[3, 1]]), torch.tensor([[3, 1, 0, 0, 0]])
    targets = Jagged.from_rows([[1, 2]])
    for name in ("recall", "hit_rate", "precision", "ndcg", "mrr", "average_precision"):
        metric = getattr(accuracy, name)
        assert torch.equal(metric(short, targets, 5), metric(padded, targets, 5)), name
    assert precision(short, targets, 5).item() == 0.2


def test_metrics_accept_no_requests_and_empty_lists() -> None:
    no_targets = Jagged.from_rows([])
    for name in ("recall", "hit_rate", "precision", "ndcg", "mrr", "average_precision"):
        assert getattr(accuracy, name)(torch.zeros(0, 5, dtype=torch.int64), no_targets, 5).shape == (0,), name
    assert recall(torch.zeros(1, 0, dtype=torch.int64), Jagged.from_rows([[1]]), 5).tolist() == [0]
    assert mrr(torch.zeros(1, 0, dtype=torch.int64), Jagged.from_rows([[1]]), 5).tolist() == [0]
