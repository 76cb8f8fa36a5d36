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
from nextitem.models.item_graph import ItemGraph, ItemGraphConfig
from nextitem.testing.known_answers import build

SEQUENCES = [[1, 2, 3, 4], [2, 3, 5], [1, 3, 5, 5], [4, 1]]
TEXTS = ["red tent", "blue tent", "red kettle", "steel kettle lid", "rope"]


def expected_scores(history: list[int], *, content: bool) -> np.ndarray:
    step = np.zeros((6, 6))
    for sequence in SEQUENCES:
        for lag, weight in ((1, 1.0), (2, 0.5), (3, 0.25)):
            for a in range(len(sequence) - lag):
                step[sequence[a], sequence[a + lag]] += weight
                step[sequence[a + lag], sequence[a]] += 0.5 * weight
    sums = step.sum(1, keepdims=True)
    step = step / np.where(sums > 0, sums, 1)
    start = np.zeros(6)
    start[history[-1]] += 1
    if len(history) > 1:
        start[history[-2]] += 0.5
    walk = start @ step + 0.3 * start @ step @ step
    if not content:
        return walk
    words = np.vstack([np.zeros((1, 7)), TfidfVectorizer().fit_transform(TEXTS).toarray()])
    content_scores = start @ words @ words.T
    walked = walk * (0.05 + content_scores)
    content_scores[history[-2:]] = 0
    scores: np.ndarray = walked + 0.01 * content_scores
    return scores


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("history", [[1], [4, 2, 3], [5, 5]])
def test_scores_equal_the_definition(history: list[int], content: bool) -> None:
    dataset = build(SEQUENCES, TEXTS, name="tiny")
    model = ItemGraph(ItemGraphConfig(use_content=content), dataset.catalog)
    model.fit(dataset)
    answer = model.recommend(SequenceBatch(Jagged.from_rows([history])), 5)
    scores = dict(zip(answer.item_ids[0].tolist(), answer.scores[0].tolist(), strict=True))
    expected = expected_scores(history, content=content)
    for item in range(1, 6):
        assert scores[item] == pytest.approx(expected[item], abs=1e-6)


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
    model = ItemGraph(ItemGraphConfig(), split.train.catalog)
    model.set_popularity(torch.from_numpy(split.train.interactions.item_counts()).float())
    model.fit(split.train)
    evaluation = evaluate_lists(model, split.test, train=split.train)
    assert evaluation.metrics["recall@10"] >= recall
    assert evaluation.metrics["ndcg@10"] >= ndcg
