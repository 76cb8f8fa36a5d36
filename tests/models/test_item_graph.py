"""Tests of the item graph against its definition with dense matrices, and its published figures on real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.jagged import Jagged
from nextitem.data.protocols import make_split
from nextitem.data.readers import load_dataset
from nextitem.evaluation.evaluate import evaluate_lists
from nextitem.models.item_graph import ItemGraph, ItemGraphConfig, PublishedWalk
from nextitem.testing.known_answers import build

SEQUENCES = [[1, 2, 3, 4], [2, 3, 5], [1, 3, 5, 5], [4, 1]]
TEXTS = ["red tent", "blue tent", "red kettle", "steel kettle lid", "rope"]


LAGS = (1.0, 0.62, 0.46, 0.38, 0.32, 0.29, 0.26, 0.23)


def counts_of(lag_weights: tuple[float, ...], backward: float) -> np.ndarray:
    counts = np.zeros((6, 6))
    for sequence in SEQUENCES:
        for lag, weight in enumerate(lag_weights, start=1):
            for a in range(len(sequence) - lag):
                counts[sequence[a], sequence[a + lag]] += weight
                counts[sequence[a + lag], sequence[a]] += backward * weight
    return counts


def normalised(counts: np.ndarray) -> np.ndarray:
    sums = counts.sum(1, keepdims=True)
    return counts / np.where(sums > 0, sums, 1)


def started(history: list[int], weights: list[float]) -> np.ndarray:
    """Return the weights of the items of a history, newest weight first."""
    start = np.zeros(6)
    for item, weight in zip(reversed(history), weights, strict=False):
        start[item] += weight
    return start


def expected_scores(kind: str, history: list[int], *, content: bool) -> np.ndarray:
    if kind == "published":
        step, start = normalised(counts_of((1.0, 0.5, 0.25), 0.5)), started(history, [1, 0.5])
        walk, floor, weight, read = start @ step + 0.3 * start @ step @ step, 0.05, 0.01, history[-2:]
    else:
        far, start = normalised(counts_of(LAGS, 0.5)), started(history, [0.8**age for age in range(9)])
        if kind == "pruned":
            order = np.argsort(-far.round(6), axis=1, kind="stable")  # of equal transitions, the smaller item stays
            np.put_along_axis(far, order[:, 2:], 0, axis=1)
        near = started(history, [1, 0.63]) @ counts_of((1.0, 0.42, 0.17), 0.11)
        walk, floor, weight, read = 0.02 * near + start @ far @ far, 0.33, 0.017, history
    scores: np.ndarray = walk
    if not content:
        return scores
    words = np.vstack([np.zeros((1, 7)), TfidfVectorizer().fit_transform(TEXTS).toarray()])
    content_scores = start @ words @ words.T
    walked = walk * (floor + content_scores)
    content_scores[read] = 0
    scores = walked + weight * content_scores
    return scores


@pytest.mark.parametrize("kind", ["wide", "published", "pruned"])
@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("history", [[1], [4, 2, 3], [5, 5], [1, 2, 3, 4, 5]])
def test_scores_equal_the_definition(history: list[int], content: bool, kind: str) -> None:
    dataset = build(SEQUENCES, TEXTS, name="tiny")
    walk_settings = {"kind": "wide", "max_transitions": 2} if kind == "pruned" else kind
    model = ItemGraph(ItemGraphConfig.model_validate({"use_content": content, "walk": walk_settings}), dataset.catalog)
    model.fit(dataset)
    batch = SequenceBatch(Jagged.from_rows([history, [2]]))
    answer = model.recommend(batch, 5)
    scores = dict(zip(answer.item_ids[0].tolist(), answer.scores[0].tolist(), strict=True))
    expected = expected_scores(kind, history, content=content)
    for item in range(1, 6):
        assert scores[item] == pytest.approx(expected[item], abs=1e-6)
    sparse = model.sparse_scores(batch).to_dense()
    dense = model.scores(batch)
    is_reached = sparse > 0
    torch.testing.assert_close(sparse[is_reached], dense[is_reached], atol=1e-6, rtol=1e-5)
    walk = model._walk(batch)[0].toarray()
    assert torch.equal(is_reached, torch.from_numpy(walk > 0))


def test_categories_replace_missing_text() -> None:
    dataset = build([[1, 2], [3, 4]], ["a", "b", "c", "d"], name="tiny")
    table = dataset.catalog.table.with_columns(pl.Series("kind", [["x"], ["y"], ["y"], ["x", "z"]]))
    catalog = Catalog(dataset.catalog.ids, table, features={"kind": "categorical-list"})
    model = ItemGraph(ItemGraphConfig(), catalog)
    model.fit(dataset.with_catalog(catalog))
    scores = model.recommend(SequenceBatch(Jagged.from_rows([[1]]), excluded=Jagged.from_rows([[1, 2]])), 2)
    assert scores.item_ids.tolist() == [[4, 3]]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recall", "ndcg"), [("amazon14-beauty", 0.098, 0.060)])
def test_it_reaches_its_published_figures(real_data: Path, name: str, recall: float, ndcg: float) -> None:
    split = make_split(load_dataset(real_data / name), "leave-one-out")
    model = ItemGraph(ItemGraphConfig(walk=PublishedWalk()), split.train.catalog)
    model.set_popularity(torch.from_numpy(split.train.interactions.item_counts()).float())
    model.fit(split.train)
    evaluation = evaluate_lists(model, split.test, train=split.train)
    assert evaluation.metrics["recall@10"] >= recall
    assert evaluation.metrics["ndcg@10"] >= ndcg
