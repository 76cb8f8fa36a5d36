"""What every registered metric keeps: bounds, order of requests, padding, the perfect list."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from nextitem.core.jagged import Jagged
from nextitem.core.registry import METRICS

N, B, K = 40, 25, 10
SCORED = [name for name, entry in METRICS.items() if "labels" in inspect.signature(entry.load()).parameters]
LISTED = [name for name in METRICS if name not in SCORED]
RELEVANCE = ("recall", "hit_rate", "precision", "ndcg", "mrr", "map")
BOUNDED = (*RELEVANCE, "coverage", "gini", "serendipity")  # within 0..1


def lists_and_targets(seed: int) -> tuple[Tensor, Jagged]:
    draw = torch.Generator().manual_seed(seed)
    lists = torch.stack([torch.randperm(N, generator=draw)[:K] + 1 for _ in range(B)])
    lengths = torch.randint(1, 6, (B,), generator=draw)
    lists[0, 4:] = 0
    targets = [(torch.randperm(N, generator=draw)[:n] + 1).tolist() for n in lengths.tolist()]
    return lists, Jagged.from_rows(targets)


def result(name: str, lists: Tensor, targets: Jagged) -> Tensor:
    """The metric's answer as a tensor: one value a request, or one value."""
    metric = METRICS[name].load()
    draw = torch.Generator().manual_seed(9)
    popularity = torch.randint(1, 30, (N + 1,), generator=draw).double()
    popularity[0] = 0
    features = torch.randn(N + 1, 6, generator=draw)
    known = {"targets": targets, "k": K, "popularity": popularity, "features": features, "num_items": N}
    known["histories"] = targets
    asked = [name for name in inspect.signature(metric).parameters if name != "lists"]
    return torch.as_tensor(metric(lists, **{name: known[name] for name in asked}))


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bounds_and_shape(name: str, seed: int) -> None:
    lists, targets = lists_and_targets(seed)
    found = result(name, lists, targets)
    assert found.shape in {(), (B,)}
    assert not found.isnan().any()
    assert bool((found >= 0).all())
    if name in BOUNDED:
        assert bool((found <= 1).all())


@pytest.mark.parametrize("name", LISTED)
def test_the_order_of_requests_does_not_matter(name: str) -> None:
    lists, targets = lists_and_targets(3)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(4))
    found, moved = result(name, lists, targets), result(name, lists[order], targets.select(order))
    torch.testing.assert_close(moved, found if found.dim() == 0 else found[order])


@pytest.mark.parametrize("name", LISTED)
def test_padding_at_the_tail_says_nothing(name: str) -> None:
    lists, targets = lists_and_targets(5)
    lists[:, 6:] = 0
    torch.testing.assert_close(result(name, lists, targets), result(name, lists[:, :6], targets))


@pytest.mark.parametrize("name", LISTED)
def test_arguments_stay_as_they_were(name: str) -> None:
    lists, targets = lists_and_targets(6)
    before = lists.clone(), targets.values.clone()
    result(name, lists, targets)
    assert torch.equal(lists, before[0])
    assert torch.equal(targets.values, before[1])


@pytest.mark.parametrize("name", RELEVANCE)
def test_the_perfect_list_is_best_and_a_list_of_misses_is_0(name: str) -> None:
    lists, targets = lists_and_targets(7)
    perfect, misses = torch.zeros_like(lists), torch.zeros_like(lists)
    for row, wanted in enumerate(targets.to_lists()):
        others = [item for item in range(1, N + 1) if item not in wanted]
        perfect[row] = torch.tensor((wanted + others)[:K])
        misses[row] = torch.tensor(others[:K])
    best = result(name, perfect, targets)
    assert bool((best >= result(name, lists, targets)).all())
    expected = targets.lengths / K if name == "precision" else torch.ones(B)
    torch.testing.assert_close(best, expected.double())
    assert not result(name, misses, targets).any()


@pytest.mark.parametrize("name", RELEVANCE)
def test_a_hit_that_moves_up_never_costs(name: str) -> None:
    lists, targets = lists_and_targets(8)
    wanted = targets.to_lists()
    moved = lists.clone()
    for row in range(B):
        items = lists[row].tolist()
        places = [place for place, item in enumerate(items) if item in wanted[row]]
        if places and places[0] > 0:
            place = places[0]
            items[place - 1], items[place] = items[place], items[place - 1]
            moved[row] = torch.tensor(items)
    assert not torch.equal(moved, lists)
    assert bool((result(name, moved, targets) >= result(name, lists, targets)).all())


def scored(name: str, rows: Tensor | None = None) -> float:
    """A metric of labelled probabilities on drawn ones, in the order of `rows`."""
    metric = METRICS[name].load()
    draw = torch.Generator().manual_seed(0)
    probabilities = torch.rand(200, generator=draw).mul(20).round() / 20  # with ties
    labels = (torch.rand(200, generator=draw) < probabilities).long()
    given = {"scores": probabilities, "probabilities": probabilities, "labels": labels, "groups": torch.arange(200) % 7}
    asked = [name for name in inspect.signature(metric).parameters if name in given]
    found = metric(*(given[name] if rows is None else given[name][rows] for name in asked))
    return float(found[0] if isinstance(found, tuple) else found)


@pytest.mark.parametrize("name", SCORED)
def test_scored_candidates_in_any_order(name: str) -> None:
    moved = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert scored(name) == pytest.approx(scored(name, moved))
    assert 0 < scored(name) < 1
