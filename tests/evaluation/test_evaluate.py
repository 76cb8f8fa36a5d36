"""Tests of evaluate_lists: figures of a model whose answers are known."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fixed_recommender import Fixed, ask, identified, shop

from nextitem.core.batch import SequenceBatch
from nextitem.core.recommendations import Recommendations
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.evaluation import evaluate as module
from nextitem.evaluation.evaluate import Evaluation, evaluate_lists, latency, quick_score, recommend_all
from nextitem.evaluation.intervals import interval

TRAIN = shop([[1, 2, 3], [1, 2], [1, 4, 1]], items=8)
FALLING = torch.arange(9, 0, -1).float()  # falling scores: every list is 1, 2, 3, ...


def evaluate_fixed(targets: list[list[int]], **options: Any) -> Evaluation:
    """Evaluate a model whose lists are all 1, 2, 3, ... on one request for each row of targets."""
    requests = ask([[5]] * len(targets), targets)
    return evaluate_lists(Fixed(TRAIN.catalog, FALLING), requests, train=TRAIN, ks=(2, 4), **options)


def test_figures_equal_those_computed_by_hand() -> None:
    evaluation = evaluate_fixed([[1], [3], [8]])
    assert evaluation.lists.tolist() == [[1, 2, 3, 4]] * 3
    assert evaluation.metrics["recall@2"] == pytest.approx(1 / 3)
    assert evaluation.metrics["recall@4"] == pytest.approx(2 / 3)
    assert evaluation.metrics["ndcg@4"] == pytest.approx((1 + 1 / log2(4)) / 3)
    assert evaluation.metrics["mrr@4"] == pytest.approx((1 + 1 / 3) / 3)
    assert evaluation.metrics["precision@4"] == pytest.approx(2 / 12)
    assert evaluation.metrics["coverage@4"] == 0.5
    assert evaluation.values["recall@4"].tolist() == [1, 1, 0]
    assert evaluation.intervals["recall@4"] == interval(evaluation.values["recall@4"])
    assert evaluation.metrics["serendipity@2"] == 0  # it recommends the two most popular items
    assert "gini@2" in evaluation.metrics
    assert "gini@2" not in evaluation.intervals


def test_the_json_is_the_public_format() -> None:
    figures = evaluate_fixed([[1], []], model_name="fixed", protocol="time", refit=True).to_json()
    assert list(figures) == ["model", "protocol", "refit", "users", "requests", "metrics", "intervals", "slices"]
    assert (figures["model"], figures["protocol"], figures["refit"], figures["requests"]) == ("fixed", "time", True, 2)
    assert figures["metrics"]["recall@2"] == 1.0
    assert figures["intervals"]["recall@2"] == [1.0, 1.0]
    assert figures["slices"]["warm"]["requests"] == 1
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_requests_without_targets_are_counted_but_not_judged() -> None:
    evaluation = evaluate_fixed([[1], [], [8]])
    assert evaluation.requests == 3
    assert evaluation.metrics["recall@4"] == 0.5
    assert evaluation.values["recall@4"].isnan().tolist() == [False, True, False]
    without_targets = evaluate_fixed([[], []])
    assert without_targets.metrics["recall@4"] != without_targets.metrics["recall@4"]
    assert without_targets.to_json()["metrics"]["recall@4"] is None
    assert without_targets.to_json()["intervals"]["recall@4"] == [None, None]


def test_all_later_events_are_the_targets_of_set_metrics() -> None:
    later = ask([[5]] * 2, [[1, 8], [3, 4]])
    evaluation = evaluate_fixed([[1], [3]], set_requests=later)
    assert evaluation.metrics["recall@4"] == 1.0
    assert evaluation.metrics["set_recall@4"] == pytest.approx((1 / 2 + 1) / 2)
    assert evaluation.metrics["set_hit_rate@2"] == 0.5
    assert "set_recall@4" in evaluation.intervals
    assert "set_recall@4" not in evaluate_fixed([[1], [3]]).metrics


def test_figures_do_not_depend_on_the_run_or_the_batch_size() -> None:
    targets = [[1 + row % 8] for row in range(23)]
    first = evaluate_fixed(targets)
    assert evaluate_fixed(targets).to_json() == first.to_json()
    assert evaluate_fixed(targets, batch_size=4).to_json() == first.to_json()


@pytest.mark.parametrize(("scores", "size"), [(10**6, 512), (9 * 100, 100), (1, 16)])
def test_large_catalogues_answer_smaller_batches(scores: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCORES_AT_ONCE", scores)
    batch_sizes = []

    class Counting(Fixed):
        def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
            batch_sizes.append(batch.num_requests)
            return super()._recommend(batch, k)

    lists = recommend_all(Counting(TRAIN.catalog, FALLING), ask([[5]] * 1030, [[1]] * 1030), 3)
    assert lists.tolist() == [[1, 2, 3]] * 1030
    assert batch_sizes == [size] * (1030 // size) + ([1030 % size] if 1030 % size else [])


def test_lists_shorter_than_k_are_padded_and_judged() -> None:
    requests = replace(ask([[5]] * 2, [[2], [1]]), allowed=torch.tensor([[False, False, True] + [False] * 6]))
    evaluation = evaluate_lists(Fixed(TRAIN.catalog, FALLING), requests, train=TRAIN, ks=(5,))
    assert evaluation.lists.tolist() == [[2, 0, 0, 0, 0]] * 2
    assert evaluation.metrics["recall@5"] == 0.5
    assert evaluation.metrics["precision@5"] == pytest.approx(0.1)
    all_items = evaluate_lists(Fixed(TRAIN.catalog, FALLING), ask([[5]], [[8]]), train=TRAIN, ks=(20,))
    assert all_items.lists[0].tolist() == [*range(1, 9), *[0] * 12]
    assert all_items.metrics["recall@20"] == 1.0


def test_excluded_items_are_not_listed() -> None:
    evaluation = evaluate_lists(
        Fixed(TRAIN.catalog, FALLING), ask([[1, 2]], [[3]], excluded=True), train=TRAIN, ks=(1,)
    )
    assert evaluation.lists.tolist() == [[3]]
    assert evaluation.metrics["recall@1"] == 1.0


def test_hits_are_counted_on_items_even_if_all_have_the_same_codes() -> None:
    collapsed = identified(TRAIN, [[0, 0]] * 8, (1, 1))
    requests = ask([[5]] * 3, [[1], [7], [8]])
    evaluation = evaluate_lists(Fixed(collapsed.catalog, FALLING), requests, train=collapsed, ks=(1,))
    assert evaluation.metrics["recall@1"] == pytest.approx(1 / 3)


def test_a_constant_scorer_reaches_the_recall_of_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(1, 101, (3000,), generator=generator)
    large = shop([[1, 2], [3, 4]], items=100)
    requests = ask([[1]] * 3000, targets[:, None].tolist())
    evaluation = evaluate_lists(Fixed(large.catalog, torch.zeros(101)), requests, train=large, ks=(10,))
    low, high = evaluation.intervals["recall@10"]
    assert low <= 0.1 <= high
    assert evaluation.lists[0].tolist() == list(range(1, 11))  # the rule of ties: the smaller item number first


def test_lists_that_are_cut_inside_a_tie_are_reported() -> None:
    """Item numbers follow popularity in real data, so a constant scorer is better than chance on them."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 101)
    targets = 1 + rng.choice(100, 300, p=weights / weights.sum())
    large = shop([[1, 2], [3, 4]], items=100)
    requests = ask([[1]] * 300, targets[:, None].tolist())
    evaluation = evaluate_lists(
        Fixed(large.catalog, torch.zeros(101)), requests, train=large, ks=(5, 10, 20), model_name="const"
    )
    assert evaluation.metrics["recall@10"] > 0.3  # chance is 0.1
    assert evaluation.metrics["ties@10"] == evaluation.metrics["ties@5"] == 1
    assert "ties@20" not in evaluation.metrics  # scores beyond the list are unknown
    assert evaluation.notes == [
        "const: 100% of the lists of 10 are cut inside a tie; item numbers decide which of the equally good items they "
        "contain, so figures may be off in either direction"
    ]
    # Ties within the first ten, or with items that are never listed, do not affect recall@10.
    scores = torch.arange(100.0, -1, -1)
    scores[1:11] = 99
    assert evaluate_lists(Fixed(large.catalog, scores), requests, train=large).metrics["ties@10"] == 0
    scores = torch.arange(100.0, -1, -1)
    scores[10:12] = 90
    evaluation = evaluate_lists(Fixed(large.catalog, scores), requests, train=large)
    assert (evaluation.metrics["ties@5"], evaluation.metrics["ties@10"]) == (0, 1)
    small = evaluate_lists(
        Fixed(shop([[1, 2]], items=8).catalog, torch.zeros(9)), ask([[1]], [[2]]), train=shop([[1]], items=8)
    )
    assert small.metrics["ties@10"] == 0  # every item is listed
    assert small.metrics["ties@5"] == 1


def test_constant_scores_on_real_data_beat_chance_and_are_noted(real_data: Path) -> None:
    split = make_split(load_dataset(real_data / "amazon18-office"))
    catalog = split.train.catalog
    evaluation = evaluate_lists(
        Fixed(catalog, torch.zeros(catalog.num_items + 1)), split.test, train=split.train, ks=(10, 20), model_name="c"
    )
    assert evaluation.metrics["recall@10"] > 2 * 10 / catalog.num_items
    assert evaluation.metrics["ties@10"] == 1
    assert evaluation.notes


def test_diversity_does_not_depend_on_the_content_that_a_model_reads() -> None:
    richer = TRAIN.catalog.with_content(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    requests = ask([[5]], [[1]])
    plain = evaluate_lists(Fixed(TRAIN.catalog, FALLING), requests, train=TRAIN, ks=(4,))
    rich = evaluate_lists(Fixed(richer, FALLING), requests, train=TRAIN, ks=(4,))
    assert rich.metrics["diversity@4"] == plain.metrics["diversity@4"]
    assert 0 < plain.metrics["diversity@4"] < 1
    assert "diversity@4" in plain.intervals


def test_quick_score_is_the_mean_of_one_metric() -> None:
    model, requests = Fixed(TRAIN.catalog, FALLING), ask([[5]] * 2, [[3], [8]])
    assert quick_score(model, requests, metric="recall@4") == 0.5
    assert quick_score(model, requests) == pytest.approx((1 / log2(4) + 1 / log2(9)) / 2)


def test_median_latency_is_at_most_the_99th_percentile() -> None:
    time_of_one = latency(Fixed(TRAIN.catalog, FALLING), ask([[5]] * 3, [[1]] * 3), count=12)
    assert 0 < time_of_one.p50_ms <= time_of_one.p99_ms


class Slow(Fixed):
    """Model that computes for ten milliseconds, then waits for ten, and counts its requests."""

    num_requests = 0

    def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
        self.num_requests += 1
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass
        time.sleep(0.01)
        return super()._recommend(batch, k)


def test_a_slow_model_is_measured_by_fewer_requests_and_waiting_costs_no_processor_time() -> None:
    model = Slow(TRAIN.catalog, FALLING)
    measured = latency(model, ask([[5]] * 3, [[1]] * 3), count=20, max_seconds=0.05)
    assert model.num_requests == 10 + 10
    assert measured.p50_ms >= 20
    assert 10 <= measured.cpu_ms < measured.p50_ms


def test_requests_without_targets_are_refused() -> None:
    requests = replace(ask([[5]], [[1]]), targets=None)
    with pytest.raises(AssertionError, match="targets"):
        evaluate_lists(Fixed(TRAIN.catalog, FALLING), requests, train=TRAIN)
