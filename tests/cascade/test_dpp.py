"""DPP: the list equals that of a naive greedy search; equal items; relevance alone; windows."""

from __future__ import annotations

import pytest
import torch
from support.small_catalog import build, candidates, lists, requests, shelf

from nextitem.ops.greedy_map import greedy_map_reference

CONTENT = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("theta", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_list_equals_that_of_the_naive_search(theta: float, window: int | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    items = (torch.randperm(30, generator=generator)[:15] + 1).tolist()
    scores = torch.rand(15, generator=generator).sort(descending=True).values
    reranker = build("dpp", shelf(["a"] * 30, content=CONTENT), theta=theta, window=window)
    answer = reranker.rerank(candidates([items], scores=[scores.tolist()]), requests([[1]]), 8)
    relevance = ((scores - scores.min()) / (scores.max() - scores.min())).double()
    quality = (theta / (2 * (1 - theta)) * relevance).exp()
    unit = torch.nn.functional.normalize(CONTENT[[item - 1 for item in items]].double(), dim=1)
    kernel = quality[:, None] * (1 + unit @ unit.T) / 2 * quality
    assert lists(answer) == [[items[index] for index in greedy_map_reference(kernel, 8, window=window)[0]]]


@pytest.mark.parametrize("theta", [0.0, 0.7, 0.999])
@pytest.mark.parametrize("by_content", [True, False])
def test_no_item_equal_to_a_selected_one_is_selected_while_others_remain(theta: float, by_content: bool) -> None:
    """Items n and n + 6 are equal."""
    brands, tags = [*"abcdef"] * 2, [["x"], ["y"], ["z"], ["x"], ["y"], ["z"]] * 2
    catalog = shelf(brands, tags=tags, content=CONTENT[:6].repeat(2, 1) if by_content else None)
    answer = build("dpp", catalog, theta=theta).rerank(
        candidates([[1, 7, 2, 8, 3, 9, 4, 10, 5, 11, 6, 12]]), requests([[1]]), 12
    )
    items = lists(answer)[0]
    assert sorted(item % 6 for item in items[:6]) == [0, 1, 2, 3, 4, 5]
    assert items[0] == 1
    assert items[6:] == [7, 8, 9, 10, 11, 12]  # filled by relevance


def test_theta_near_1_keeps_the_order_of_relevance() -> None:
    items = [9, 3, 27, 4, 14, 11]
    answer = build("dpp", shelf(["a"] * 30, content=CONTENT), theta=0.9999).rerank(
        candidates([items]), requests([[1]]), 6
    )
    assert lists(answer) == [items]


@pytest.mark.parametrize("window", [6, 50])
def test_a_window_as_long_as_the_list_equals_no_window(window: int) -> None:
    ranked = candidates([list(range(1, 31))])
    catalog = shelf(["a"] * 30, content=CONTENT[:, :9])
    without_window = build("dpp", catalog).rerank(ranked, requests([[1]]), 6)
    assert lists(build("dpp", catalog, window=window).rerank(ranked, requests([[1]]), 6)) == lists(without_window)


def test_two_brands_alternate_with_a_window_of_two() -> None:
    answer = build("dpp", shelf(["a", "b"] * 5), theta=0.0, window=2).rerank(
        candidates([[1, 3, 5, 7, 2, 4, 6, 8]]), requests([[1]]), 8
    )
    assert [item % 2 for item in lists(answer)[0]] == [1, 0] * 4
