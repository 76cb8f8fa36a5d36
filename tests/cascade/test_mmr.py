"""MMR: the formula item by item, its ends, and equal items."""

from __future__ import annotations

import pytest
import torch
from support.small_catalog import build, candidates, lists, requests, shelf

CONTENT = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))


def by_hand(scores: list[float], content: torch.Tensor, weight: float, k: int) -> list[int]:
    """Positions, by the formula."""
    worth = [(score - min(scores)) / (max(scores) - min(scores)) for score in scores]
    unit = torch.nn.functional.normalize(content.double(), dim=1)
    alike = ((1 + unit @ unit.T) / 2).tolist()
    chosen: list[int] = []
    while len(chosen) < k:
        left = [place for place in range(len(scores)) if place not in chosen]
        value = {i: weight * worth[i] - (1 - weight) * max((alike[i][j] for j in chosen), default=0) for i in left}
        chosen.append(max(left, key=lambda i: value[i]))
    return chosen


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_it_follows_the_formula(weight: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    items = (torch.randperm(30, generator=draw)[:20] + 1).tolist()
    scores = (torch.rand(20, generator=draw) * 100 - 50).sort(descending=True).values.tolist()
    found = build("mmr", shelf(["a"] * 30, content=CONTENT), relevance_weight=weight).rerank(
        candidates([items], scores=[scores]), requests([[1]]), 8
    )
    expected = by_hand(scores, CONTENT[[item - 1 for item in items]], weight, 8)
    assert lists(found) == [[items[place] for place in expected]]


def test_weight_1_keeps_the_order() -> None:
    found = build("mmr", shelf(["a"] * 30, content=CONTENT), relevance_weight=1).rerank(
        candidates([[9, 3, 27, 4]]), requests([[1]]), 3
    )
    assert lists(found) == [[9, 3, 27]]


def test_weight_0_takes_the_most_unlike_after_the_best() -> None:
    catalog = shelf(["a", "a", "b", "c", "b"])
    found = build("mmr", catalog, relevance_weight=0).rerank(candidates([[1, 2, 3, 5, 4]]), requests([[1]]), 5)
    assert lists(found) == [[1, 3, 4, 2, 5]]


def test_the_scale_of_scores_does_not_matter() -> None:
    reranker = build("mmr", shelf(["a"] * 30, content=CONTENT), relevance_weight=0.5)
    items, scores = list(range(1, 21)), torch.linspace(3, 1, 20)
    answers = [
        reranker.rerank(candidates([items], scores=[(scores * scale + shift).tolist()]), requests([[1]]), 10).item_ids
        for scale, shift in ((1.0, 0.0), (64.0, -8.0))
    ]
    assert torch.equal(*answers)
