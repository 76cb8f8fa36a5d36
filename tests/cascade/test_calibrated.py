"""Calibrated re-ranking: the formula item by item, the history's shares, its ends."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
import torch
from support.small_catalog import build, candidates, lists, requests, shelf

from nextitem.core.errors import UserError

TAGS = [["x"], ["y"], ["x", "y"], [], ["z"], ["z", "x", "y"]] * 5


def distribution(items: list[int]) -> defaultdict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for item in items:
        own = TAGS[item - 1] or ["none"]
        for tag in own:
            found[tag] += 1 / len(own) / len(items)
    return found


def divergence(history: list[int], shown: list[int], smoothing: float) -> float:
    p, q = distribution(history), distribution(shown)
    return sum(share * math.log(share / ((1 - smoothing) * q[tag] + smoothing * share)) for tag, share in p.items())


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_it_follows_the_formula(weight: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    items = (torch.randperm(30, generator=draw)[:16] + 1).tolist()
    history = (torch.randint(30, (7,), generator=draw) + 1).tolist()
    scores = torch.rand(16, generator=draw).sort(descending=True).values.tolist()
    found = build("calibrated", shelf(["a"] * 30, tags=TAGS), column="tags", calibration_weight=weight).rerank(
        candidates([items], scores=[scores]), requests([history]), 9
    )
    worth = {item: (score - scores[-1]) / (scores[0] - scores[-1]) for item, score in zip(items, scores, strict=True)}
    shown: list[int] = []
    while len(shown) < 9:
        left = [item for item in items if item not in shown]
        shown.append(max(left, key=lambda i: (1 - weight) * worth[i] - weight * divergence(history, [*shown, i], 0.01)))
    assert lists(found) == [shown]


def test_shares_of_the_history_come_back() -> None:
    """Seven of ten events are of brand a, three of b; candidates of b stand last."""
    brands = ["a"] * 30 + ["b"] * 30 + ["c"] * 30
    history = [1, 2, 3, 4, 5, 6, 7, 31, 32, 33]
    given_ = candidates([[*range(61, 90), *range(10, 25), *range(40, 55)]])
    found = build("calibrated", shelf(brands), column="brand", calibration_weight=0.99).rerank(
        given_, requests([history]), 10
    )
    assert Counter(brands[item - 1] for item in lists(found)[0]) == {"a": 7, "b": 3}


@pytest.mark.parametrize(("history", "weight"), [([], 0.9), ([1, 2], 0.0)])
def test_without_a_history_or_a_weight_the_order_stays(history: list[int], weight: float) -> None:
    found = build("calibrated", shelf(list("ababab")), column="brand", calibration_weight=weight).rerank(
        candidates([[5, 3, 1, 2, 4]]), requests([history]), 4
    )
    assert lists(found) == [[5, 3, 1, 2]]


def test_an_unknown_column_is_said() -> None:
    with pytest.raises(UserError, match="'colour' is no feature"):
        build("calibrated", shelf(["a"]), column="colour")
    with pytest.raises(UserError, match="'column' is missing"):
        build("calibrated", shelf(["a"]))
