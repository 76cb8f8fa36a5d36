"""Calibrated re-ranking: the formula item by item, the shares of the history, and extreme weights."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
import torch
from support.small_catalog import build, candidates, lists, requests, shelf

from nextitem.core.errors import UserError

TAGS = [["x"], ["y"], ["x", "y"], [], ["z"], ["z", "x", "y"]] * 5


def distribution(items: list[int]) -> defaultdict[str, float]:
    """Return the share of each tag among the items; an item's tags have equal parts of it."""
    shares: defaultdict[str, float] = defaultdict(float)
    for item in items:
        tags = TAGS[item - 1] or ["none"]
        for tag in tags:
            shares[tag] += 1 / len(tags) / len(items)
    return shares


def divergence(history: list[int], items: list[int], smoothing: float) -> float:
    """Return the divergence of the tags of a list from those of the history, KL(p || (1 - s) q + s p)."""
    p, q = distribution(history), distribution(items)
    return sum(share * math.log(share / ((1 - smoothing) * q[tag] + smoothing * share)) for tag, share in p.items())


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_the_list_follows_the_formula(weight: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    items = (torch.randperm(30, generator=generator)[:16] + 1).tolist()
    history = (torch.randint(30, (7,), generator=generator) + 1).tolist()
    scores = torch.rand(16, generator=generator).sort(descending=True).values.tolist()
    answer = build("calibrated", shelf(["a"] * 30, tags=TAGS), column="tags", calibration_weight=weight).rerank(
        candidates([items], scores=[scores]), requests([history]), 9
    )
    relevance = {
        item: (score - scores[-1]) / (scores[0] - scores[-1]) for item, score in zip(items, scores, strict=True)
    }
    expected: list[int] = []
    while len(expected) < 9:
        remaining = [item for item in items if item not in expected]
        keys = {
            item: (1 - weight) * relevance[item] - weight * divergence(history, [*expected, item], 0.01)
            for item in remaining
        }
        expected.append(max(remaining, key=lambda item: keys[item]))
    assert lists(answer) == [expected]


def test_the_list_has_the_shares_of_the_history() -> None:
    """Seven of ten events are of brand a, three of b; the candidates of b are the last ones."""
    brands = ["a"] * 30 + ["b"] * 30 + ["c"] * 30
    history = [1, 2, 3, 4, 5, 6, 7, 31, 32, 33]
    ranked = candidates([[*range(61, 90), *range(10, 25), *range(40, 55)]])
    answer = build("calibrated", shelf(brands), column="brand", calibration_weight=0.99).rerank(
        ranked, requests([history]), 10
    )
    assert Counter(brands[item - 1] for item in lists(answer)[0]) == {"a": 7, "b": 3}


@pytest.mark.parametrize(("history", "weight"), [([], 0.9), ([1, 2], 0.0)])
def test_without_a_history_or_a_weight_the_order_is_unchanged(history: list[int], weight: float) -> None:
    answer = build("calibrated", shelf(list("ababab")), column="brand", calibration_weight=weight).rerank(
        candidates([[5, 3, 1, 2, 4]]), requests([history]), 4
    )
    assert lists(answer) == [[5, 3, 1, 2]]


def test_an_error_names_an_unknown_or_missing_column() -> None:
    with pytest.raises(UserError, match="'colour' is no feature"):
        build("calibrated", shelf(["a"]), column="colour")
    with pytest.raises(UserError, match="'column' is missing"):
        build("calibrated", shelf(["a"]))
