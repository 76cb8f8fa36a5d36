"""MMR: the formula item by item, extreme weights, and the scale of scores."""

from __future__ import annotations

import pytest
import torch
from support.small_catalog import build, candidates, lists, requests, shelf

CONTENT = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))


def by_hand(scores: list[float], content: torch.Tensor, weight: float, k: int) -> list[int]:
    """Return the indices of k candidates, selected by the formula."""
    relevance = [(score - min(scores)) / (max(scores) - min(scores)) for score in scores]
    unit = torch.nn.functional.normalize(content.double(), dim=1)
    similarity = ((1 + unit @ unit.T) / 2).tolist()
    selection: list[int] = []
    while len(selection) < k:
        remaining = [index for index in range(len(scores)) if index not in selection]
        keys = {
            i: weight * relevance[i] - (1 - weight) * max((similarity[i][j] for j in selection), default=0)
            for i in remaining
        }
        selection.append(max(remaining, key=lambda i: keys[i]))
    return selection


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_the_list_follows_the_formula(weight: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    items = (torch.randperm(30, generator=generator)[:20] + 1).tolist()
    scores = (torch.rand(20, generator=generator) * 100 - 50).sort(descending=True).values.tolist()
    answer = build("mmr", shelf(["a"] * 30, content=CONTENT), relevance_weight=weight).rerank(
        candidates([items], scores=[scores]), requests([[1]]), 8
    )
    expected = by_hand(scores, CONTENT[[item - 1 for item in items]], weight, 8)
    assert lists(answer) == [[items[index] for index in expected]]


def test_a_relevance_weight_of_1_keeps_the_order() -> None:
    answer = build("mmr", shelf(["a"] * 30, content=CONTENT), relevance_weight=1).rerank(
        candidates([[9, 3, 27, 4]]), requests([[1]]), 3
    )
    assert lists(answer) == [[9, 3, 27]]


def test_a_relevance_weight_of_0_selects_the_most_unlike_items_after_the_best() -> None:
    catalog = shelf(["a", "a", "b", "c", "b"])
    answer = build("mmr", catalog, relevance_weight=0).rerank(candidates([[1, 2, 3, 5, 4]]), requests([[1]]), 5)
    assert lists(answer) == [[1, 3, 4, 2, 5]]


def test_scale_and_shift_of_scores_do_not_matter() -> None:
    reranker = build("mmr", shelf(["a"] * 30, content=CONTENT), relevance_weight=0.5)
    items, scores = list(range(1, 21)), torch.linspace(3, 1, 20)
    answers = [
        reranker.rerank(candidates([items], scores=[(scores * scale + shift).tolist()]), requests([[1]]), 10).item_ids
        for scale, shift in ((1.0, 0.0), (64.0, -8.0))
    ]
    assert torch.equal(*answers)
