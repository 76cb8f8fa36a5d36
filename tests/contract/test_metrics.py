"""Tests of every registered metric: bounds, order of requests, padding, the perfect list."""

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
    generator = torch.Generator().manual_seed(seed)
    lists = torch.stack([torch.randperm(N, generator=generator)[:K] + 1 for _ in range(B)])
    lengths = torch.randint(1, 6, (B,), generator=generator)
    lists[0, 4:] = 0
    targets = [(torch.randperm(N, generator=generator)[:n] + 1).tolist() for n in lengths.tolist()]
    return lists, Jagged.from_rows(targets)


def result(name: str, lists: Tensor, targets: Jagged) -> Tensor:
    """Return the metric's result as a tensor: one value for each request, or a single value."""
    metric = METRICS[name].load()
    generator = torch.Generator().manual_seed(9)
    popularity = torch.randint(1, 30, (N + 1,), generator=generator).double()
    popularity[0] = 0
    features = torch.randn(N + 1, 6, generator=generator)
    available = {"targets": targets, "k": K, "popularity": popularity, "features": features, "num_items": N}
    available["histories"] = targets
    argument_names = [name for name in inspect.signature(metric).parameters if name != "lists"]
    return torch.as_tensor(metric(lists, **{name: available[name] for name in argument_names}))


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_are_within_bounds_and_have_a_known_shape(name: str, seed: int) -> None:
    lists, targets = lists_and_targets(seed)
    value = result(name, lists, targets)
    assert value.shape in {(), (B,)}
    assert not value.isnan().any()
    assert bool((value >= 0).all())
    if name in BOUNDED:
        assert bool((value <= 1).all())


@pytest.mark.parametrize("name", LISTED)
def test_the_order_of_requests_does_not_matter(name: str) -> None:
    lists, targets = lists_and_targets(3)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(4))
    value, moved = result(name, lists, targets), result(name, lists[order], targets.select(order))
    torch.testing.assert_close(moved, value if value.dim() == 0 else value[order])


@pytest.mark.parametrize("name", LISTED)
def test_padding_at_the_tail_changes_nothing(name: str) -> None:
    lists, targets = lists_and_targets(5)
    lists[:, 6:] = 0
    torch.testing.assert_close(result(name, lists, targets), result(name, lists[:, :6], targets))


@pytest.mark.parametrize("name", LISTED)
def test_a_metric_does_not_change_its_arguments(name: str) -> None:
    lists, targets = lists_and_targets(6)
    before = lists.clone(), targets.values.clone()
    result(name, lists, targets)
    assert torch.equal(lists, before[0])
    assert torch.equal(targets.values, before[1])


@pytest.mark.parametrize("name", RELEVANCE)
def test_the_perfect_list_is_best_and_a_list_of_misses_is_0(name: str) -> None:
    lists, targets = lists_and_targets(7)
    perfect, misses = torch.zeros_like(lists), torch.zeros_like(lists)
    for row, target_items in enumerate(targets.to_lists()):
        others = [item for item in range(1, N + 1) if item not in target_items]
        perfect[row] = torch.tensor((target_items + others)[:K])
        misses[row] = torch.tensor(others[:K])
    best = result(name, perfect, targets)
    assert bool((best >= result(name, lists, targets)).all())
    expected = targets.lengths / K if name == "precision" else torch.ones(B)
    torch.testing.assert_close(best, expected.double())
    assert not result(name, misses, targets).any()


@pytest.mark.parametrize("name", RELEVANCE)
def test_a_hit_that_moves_up_never_lowers_the_metric(name: str) -> None:
    lists, targets = lists_and_targets(8)
    target_rows = targets.to_lists()
    moved = lists.clone()
    for row in range(B):
        items = lists[row].tolist()
        places = [place for place, item in enumerate(items) if item in target_rows[row]]
        if places and places[0] > 0:
            place = places[0]
            items[place - 1], items[place] = items[place], items[place - 1]
            moved[row] = torch.tensor(items)
    assert not torch.equal(moved, lists)
    assert bool((result(name, moved, targets) >= result(name, lists, targets)).all())


def scored(name: str, rows: Tensor | None = None) -> float:
    """Return a metric of labelled probabilities on random ones, in the order of `rows`."""
    metric = METRICS[name].load()
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(200, generator=generator).mul(20).round() / 20  # with ties
    labels = (torch.rand(200, generator=generator) < probabilities).long()
    available = {
        "scores": probabilities,
        "probabilities": probabilities,
        "labels": labels,
        "groups": torch.arange(200) % 7,
    }
    argument_names = [name for name in inspect.signature(metric).parameters if name in available]
    value = metric(*(available[name] if rows is None else available[name][rows] for name in argument_names))
    return float(value[0] if isinstance(value, tuple) else value)


@pytest.mark.parametrize("name", SCORED)
def test_the_order_of_scored_candidates_does_not_matter(name: str) -> None:
    moved = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert scored(name) == pytest.approx(scored(name, moved))
    assert 0 < scored(name) < 1
