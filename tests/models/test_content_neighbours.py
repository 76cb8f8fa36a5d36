"""Tests of content neighbours against their formula, over all items."""

from __future__ import annotations

import pytest
import torch
from support.memory import largest_tensor_bytes

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.models.content_neighbours import ContentNeighbours, ContentNeighboursConfig
from nextitem.testing.known_answers import build

ITEMS = 40


def fitted(**settings: object) -> ContentNeighbours:
    dataset = build([[1, 2, 3]], [f"t{number}" for number in range(ITEMS)], name="random")
    content = torch.randn(ITEMS + 1, 6, generator=torch.Generator().manual_seed(0))
    content[7] = 0
    dataset = dataset.with_catalog(dataset.catalog.with_content(content))
    model = ContentNeighbours(ContentNeighboursConfig(**settings), dataset.catalog)
    model.fit(dataset)
    return model


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_scores_equal_the_formula(kind: str) -> None:
    model = fitted(recent_items=3, recency_decay=0.5, index={"kind": kind})
    content = model.catalog.content
    assert content is not None
    unit = torch.nn.functional.normalize(content, dim=1)
    weights = {5: 0.25, 9: 0.5 + 1.0}  # the last three events of the history 3, 5, 9, 9
    expected = {}
    for item in range(1, ITEMS + 1):
        expected[item] = sum(w * float(unit[other] @ unit[item]) for other, w in weights.items() if other != item)
    best = sorted(expected, key=lambda item: -expected[item])
    for k in (1, 5, ITEMS):
        answer = model.recommend(SequenceBatch(Jagged.from_rows([[3, 5, 9, 9]])), k)
        assert answer.item_ids[0].tolist() == best[:k]
        assert answer.scores[0].tolist() == pytest.approx([expected[item] for item in best[:k]], abs=1e-5)


def test_memory_is_linear_in_the_length_of_the_history() -> None:
    """A history of all 3,000 items: 9 million comparisons with the retrieved items."""
    dataset = build([[1]], [str(number) for number in range(3000)], name="long")
    content = torch.randn(3001, 4, generator=torch.Generator().manual_seed(0))
    dataset = dataset.with_catalog(dataset.catalog.with_content(content))
    model = ContentNeighbours(ContentNeighboursConfig(recent_items=None), dataset.catalog)
    model.fit(dataset)
    long = SequenceBatch(Jagged.from_rows([list(range(1, 3001))]))
    assert bool((model.recommend(long, 5).item_ids > 0).all())
    assert largest_tensor_bytes(lambda: model.recommend(long, 5)) < 1e6


def test_an_item_without_content_has_the_score_zero() -> None:
    answer = fitted().recommend(SequenceBatch(Jagged.from_rows([[7]])), 3)
    assert answer.scores.tolist() == [[0.0] * 3]
    assert answer.item_ids.tolist() == [[1, 2, 3]]


def test_an_item_of_the_history_may_be_similar_to_another_one() -> None:
    model = fitted(recency_decay=1.0)
    model.directions[12] = model.directions[4]
    answer = model.recommend(SequenceBatch(Jagged.from_rows([[4, 12]])), ITEMS)
    scores = dict(zip(answer.item_ids[0].tolist(), answer.scores[0].tolist(), strict=True))
    assert scores[4] == pytest.approx(1.0, abs=1e-5)
    assert scores[12] == pytest.approx(1.0, abs=1e-5)
