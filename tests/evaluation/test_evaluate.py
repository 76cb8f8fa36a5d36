"""evaluate: the right figures of a model whose answers are known."""

from __future__ import annotations

import json
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
FALLING = torch.arange(9, 0, -1).float()  # lists are 1, 2, 3, ...


def judged(targets: list[list[int]], **options: Any) -> Evaluation:
    requests = ask([[5]] * len(targets), targets)
    return evaluate_lists(Fixed(TRAIN.catalog, FALLING), requests, train=TRAIN, ks=(2, 4), **options)


def test_figures_by_hand() -> None:
    found = judged([[1], [3], [8]])
    assert found.lists.tolist() == [[1, 2, 3, 4]] * 3
    assert found.metrics["recall@2"] == pytest.approx(1 / 3)
    assert found.metrics["recall@4"] == pytest.approx(2 / 3)
    assert found.metrics["ndcg@4"] == pytest.approx((1 + 1 / log2(4)) / 3)
    assert found.metrics["mrr@4"] == pytest.approx((1 + 1 / 3) / 3)
    assert found.metrics["precision@4"] == pytest.approx(2 / 12)
    assert found.metrics["coverage@4"] == 0.5
    assert found.values["recall@4"].tolist() == [1, 1, 0]
    assert found.intervals["recall@4"] == interval(found.values["recall@4"])
    assert found.metrics["serendipity@2"] == 0  # the two most popular items are what it recommends
    assert "gini@2" in found.metrics
    assert "gini@2" not in found.intervals


def test_the_json_is_the_public_format() -> None:
    found = judged([[1], []], model_name="fixed", protocol="time", refit=True).to_json()
    assert list(found) == ["model", "protocol", "refit", "users", "requests", "metrics", "intervals", "slices"]
    assert (found["model"], found["protocol"], found["refit"], found["requests"]) == ("fixed", "time", True, 2)
    assert found["metrics"]["recall@2"] == 1.0
    assert found["intervals"]["recall@2"] == [1.0, 1.0]
    assert found["slices"]["warm"]["requests"] == 1
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_requests_without_targets_are_counted_and_not_judged() -> None:
    found = judged([[1], [], [8]])
    assert found.requests == 3
    assert found.metrics["recall@4"] == 0.5
    assert found.values["recall@4"].isnan().tolist() == [False, True, False]
    nothing = judged([[], []])
    assert nothing.metrics["recall@4"] != nothing.metrics["recall@4"]
    assert nothing.to_json()["metrics"]["recall@4"] is None
    assert nothing.to_json()["intervals"]["recall@4"] == [None, None]


def test_later_targets_are_a_set() -> None:
    later = ask([[5]] * 2, [[1, 8], [3, 4]])
    found = judged([[1], [3]], set_requests=later)
    assert found.metrics["recall@4"] == 1.0
    assert found.metrics["set_recall@4"] == pytest.approx((1 / 2 + 1) / 2)
    assert found.metrics["set_hit_rate@2"] == 0.5
    assert "set_recall@4" in found.intervals
    assert "set_recall@4" not in judged([[1], [3]]).metrics


def test_the_same_twice_and_in_batches_of_any_size() -> None:
    targets = [[1 + row % 8] for row in range(23)]
    first = judged(targets)
    assert judged(targets).to_json() == first.to_json()
    assert judged(targets, batch_size=4).to_json() == first.to_json()


@pytest.mark.parametrize(("scores", "size"), [(10**6, 512), (9 * 100, 100), (1, 16)])
def test_large_catalogues_are_asked_for_fewer_requests_at_a_time(
    scores: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCORES", scores)
    asked = []

    class Counting(Fixed):
        def _recommend(self, batch: SequenceBatch, k: int) -> Recommendations:
            asked.append(batch.num_requests)
            return super()._recommend(batch, k)

    lists = recommend_all(Counting(TRAIN.catalog, FALLING), ask([[5]] * 1030, [[1]] * 1030), 3)
    assert lists.tolist() == [[1, 2, 3]] * 1030
    assert asked == [size] * (1030 // size) + ([1030 % size] if 1030 % size else [])


def test_lists_that_are_shorter_than_k() -> None:
    requests = replace(ask([[5]] * 2, [[2], [1]]), allowed=torch.tensor([[False, False, True] + [False] * 6]))
    found = evaluate_lists(Fixed(TRAIN.catalog, FALLING), requests, train=TRAIN, ks=(5,))
    assert found.lists.tolist() == [[2, 0, 0, 0, 0]] * 2
    assert found.metrics["recall@5"] == 0.5
    assert found.metrics["precision@5"] == pytest.approx(0.1)
    whole = evaluate_lists(Fixed(TRAIN.catalog, FALLING), ask([[5]], [[8]]), train=TRAIN, ks=(20,))
    assert whole.lists[0].tolist() == [*range(1, 9), *[0] * 12]
    assert whole.metrics["recall@20"] == 1.0


def test_seen_items_stay_out() -> None:
    found = evaluate_lists(Fixed(TRAIN.catalog, FALLING), ask([[1, 2]], [[3]], excluded=True), train=TRAIN, ks=(1,))
    assert found.lists.tolist() == [[3]]
    assert found.metrics["recall@1"] == 1.0


def test_hits_are_items_though_a_collapsed_tokenizer_gives_all_one_code() -> None:
    collapsed = identified(TRAIN, [[0, 0]] * 8, (1, 1))
    requests = ask([[5]] * 3, [[1], [7], [8]])
    found = evaluate_lists(Fixed(collapsed.catalog, FALLING), requests, train=collapsed, ks=(1,))
    assert found.metrics["recall@1"] == pytest.approx(1 / 3)


def test_a_constant_scorer_is_at_chance() -> None:
    draw = torch.Generator().manual_seed(0)
    wanted = torch.randint(1, 101, (3000,), generator=draw)
    large = shop([[1, 2], [3, 4]], items=100)
    requests = ask([[1]] * 3000, wanted[:, None].tolist())
    found = evaluate_lists(Fixed(large.catalog, torch.zeros(101)), requests, train=large, ks=(10,))
    low, high = found.intervals["recall@10"]
    assert low <= 0.1 <= high
    assert found.lists[0].tolist() == list(range(1, 11))  # the stated rule of ties: the smaller item number


def test_lists_that_are_cut_inside_a_tie_are_reported() -> None:
    """Item numbers follow popularity in real data, so a constant scorer is better than chance on them."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 101)
    wanted = 1 + rng.choice(100, 300, p=weights / weights.sum())
    large = shop([[1, 2], [3, 4]], items=100)
    requests = ask([[1]] * 300, wanted[:, None].tolist())
    found = evaluate_lists(
        Fixed(large.catalog, torch.zeros(101)), requests, train=large, ks=(5, 10, 20), model_name="const"
    )
    assert found.metrics["recall@10"] > 0.3  # chance is .1
    assert found.metrics["ties@10"] == found.metrics["ties@5"] == 1
    assert "ties@20" not in found.metrics  # nothing beyond the list is known
    assert found.notes == [
        "const: 100% of the lists of 10 are cut inside a tie; which of the equally good items they hold follows the "
        "item numbers, so figures may be off in either direction"
    ]
    # Ties within the first ten, or with what may not be listed, decide nothing about recall@10.
    scores = torch.arange(100.0, -1, -1)
    scores[1:11] = 99
    assert evaluate_lists(Fixed(large.catalog, scores), requests, train=large).metrics["ties@10"] == 0
    scores = torch.arange(100.0, -1, -1)
    scores[10:12] = 90
    found = evaluate_lists(Fixed(large.catalog, scores), requests, train=large)
    assert (found.metrics["ties@5"], found.metrics["ties@10"]) == (0, 1)
    few = evaluate_lists(
        Fixed(shop([[1, 2]], items=8).catalog, torch.zeros(9)), ask([[1]], [[2]]), train=shop([[1]], items=8)
    )
    assert few.metrics["ties@10"] == 0  # every item is listed
    assert few.metrics["ties@5"] == 1


def test_real_item_numbers_are_not_random(real_data: Path) -> None:
    split = make_split(load_dataset(real_data / "amazon18-office"))
    catalog = split.train.catalog
    found = evaluate_lists(
        Fixed(catalog, torch.zeros(catalog.num_items + 1)), split.test, train=split.train, ks=(10, 20), model_name="c"
    )
    assert found.metrics["recall@10"] > 2 * 10 / catalog.num_items
    assert found.metrics["ties@10"] == 1
    assert found.notes


def test_diversity_is_measured_alike_whatever_a_model_reads() -> None:
    richer = TRAIN.catalog.with_content(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    requests = ask([[5]], [[1]])
    plain = evaluate_lists(Fixed(TRAIN.catalog, FALLING), requests, train=TRAIN, ks=(4,))
    rich = evaluate_lists(Fixed(richer, FALLING), requests, train=TRAIN, ks=(4,))
    assert rich.metrics["diversity@4"] == plain.metrics["diversity@4"]
    assert 0 < plain.metrics["diversity@4"] < 1
    assert "diversity@4" in plain.intervals


def test_one_figure_for_choosing_an_epoch() -> None:
    model, requests = Fixed(TRAIN.catalog, FALLING), ask([[5]] * 2, [[3], [8]])
    assert quick_score(model, requests, metric="recall@4") == 0.5
    assert quick_score(model, requests) == pytest.approx((1 / log2(4) + 1 / log2(9)) / 2)


def test_latency_is_in_order() -> None:
    p50, p99 = latency(Fixed(TRAIN.catalog, FALLING), ask([[5]] * 3, [[1]] * 3), count=12)
    assert 0 < p50 <= p99


def test_targets_are_needed() -> None:
    bare = replace(ask([[5]], [[1]]), targets=None)
    with pytest.raises(AssertionError, match="targets"):
        evaluate_lists(Fixed(TRAIN.catalog, FALLING), bare, train=TRAIN)
