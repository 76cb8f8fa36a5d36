"""Codes of balanced clusters: unique, balanced under every prefix, without gaps, items of a cluster by weight."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextitem.core.identifiers import IdentifierTable
from nextitem.nn.quantisation.cluster_codes import (
    Balance,
    cluster_codes,
    equal_codebook_sizes,
    relearned_codes,
    without_popularity,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("items", "sizes"),
    [
        (1, (1, 1)),
        (5, (3, 3)),
        (12_101, (111, 111)),
        (12_321, (111, 111)),
        (12_322, (112, 112)),
        (200_000, (448, 448)),
        (200_001, (59, 59, 59)),
        (1_000_000, (100, 100, 100)),
    ],
)
def test_equal_sizes_just_suffice(items: int, sizes: tuple[int, ...]) -> None:
    assert equal_codebook_sizes(items) == sizes


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 90),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    balance=st.sampled_from(get_args(Balance)),
    seed=st.integers(0, 9),
)
def test_codes_are_unique_without_gaps_and_balanced(count: int, sizes: list[int], balance: Balance, seed: int) -> None:
    vectors = normal(max(1, count // 2), 3, seed=seed)[torch.arange(count) % max(1, count // 2)]
    weights = 1 + torch.arange(count) % 5
    if balance == "size":
        sizes = [*sizes, count]
    codes = cluster_codes(vectors, sizes, seed=seed, balance=balance, weights=weights)
    assert codes.shape == (count, len(sizes))
    assert len(torch.unique(codes, dim=0)) == count
    assert bool((codes[:, :-1] < torch.tensor(sizes[:-1])).all())
    for length in range(len(sizes)):
        prefixes, group, items = torch.unique(
            torch.nn.functional.pad(codes[:, :length], (1, 0)), dim=0, return_inverse=True, return_counts=True
        )
        if balance == "size" and length < len(sizes) - 1:
            assert int(items.max() - items.min()) <= 1
        for number in range(len(prefixes)):
            below = codes[group == number, length].unique()
            assert torch.equal(below, torch.arange(len(below)))


def test_the_last_code_numbers_items_by_weight_and_then_in_order() -> None:
    weights = torch.tensor([1, 5, 3, 5, 1])
    assert cluster_codes(normal(5, 2), (5,), seed=0, weights=weights)[:, 0].tolist() == [3, 0, 2, 1, 4]
    assert cluster_codes(normal(5, 2), (5,), seed=0)[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_levels_of_planted_clusters_go_from_coarse_to_fine() -> None:
    top, fine = torch.arange(240) % 4, torch.arange(240) % 12
    vectors = normal(4, 6)[top] * 20 + normal(12, 6, seed=1)[fine] * 5 + normal(240, 6, seed=2) * 0.3
    codes = cluster_codes(vectors, (4, 3, 20), seed=0)
    assert len(torch.unique(codes[:, 0] * 4 + top)) == 4
    assert len(torch.unique((codes[:, 0] * 3 + codes[:, 1]) * 12 + fine)) == 12


def test_clusters_of_equal_exposure_have_different_sizes() -> None:
    vectors = torch.cat([normal(300, 2), normal(300, 2, seed=1) + 6])
    weights = torch.cat([torch.ones(300), torch.full((300,), 9.0)])
    codes = cluster_codes(vectors, (10, 60), seed=0, balance="exposure", weights=weights)
    exposure = torch.zeros(10).index_add_(0, codes[:, 0], weights)
    assert float(exposure.max() - exposure.min()) <= 18
    assert int(codes[:, 1].max()) + 1 > 200  # frequent items fill nine clusters, the others are in one


def test_too_few_codes_raise_with_sizes_that_suffice() -> None:
    with pytest.raises(ValueError, match=r"has 64 codes for 65 items; use larger sizes, such as \(9, 9\)"):
        cluster_codes(normal(65, 2), (8, 8), seed=0)


def test_the_same_seed_returns_the_same_codes() -> None:
    vectors = normal(200, 4)
    assert torch.equal(cluster_codes(vectors, (5, 5, 8), seed=1), cluster_codes(vectors, (5, 5, 8), seed=1))
    assert not torch.equal(cluster_codes(vectors, (5, 5, 8), seed=1), cluster_codes(vectors, (5, 5, 8), seed=2))


@pytest.mark.parametrize("num_prefixes", [1, 2])
def test_items_are_clustered_among_those_with_the_same_first_codes(num_prefixes: int) -> None:
    vectors = normal(90, 3)
    prefixes = torch.stack([torch.arange(90) % 3, torch.arange(90) % 5], dim=1)[:, :num_prefixes]
    codes = cluster_codes(vectors, (4, 10), seed=0, prefixes=prefixes)
    assert torch.equal(codes[:, :num_prefixes], prefixes)
    for number, prefix in enumerate(prefixes.unique(dim=0)):
        members = (prefixes == prefix).all(1)
        below = codes[members, num_prefixes:]
        assert len(below.unique(dim=0)) == int(members.sum())
        sizes = torch.bincount(below[:, 0], minlength=4)
        assert int(sizes.max() - sizes.min()) <= 1
        if number == 0:  # the first group has the same seeds as if it were alone
            assert torch.equal(below, cluster_codes(vectors[members], (4, 10), seed=0))
    with pytest.raises(ValueError, match=r"has 4 codes for \d+ items with equal first codes"):
        cluster_codes(vectors, (2, 2), seed=0, prefixes=prefixes)


def test_one_prefix_for_all_changes_nothing() -> None:
    vectors = normal(60, 3)
    codes = cluster_codes(vectors, (6, 10), seed=2, prefixes=torch.zeros(60, 1))
    assert torch.equal(codes[:, 1:], cluster_codes(vectors, (6, 10), seed=2))


def test_popularity_is_removed_and_the_rest_stays() -> None:
    popularity = torch.logspace(0, 3, 200)
    log = torch.log1p(popularity)
    tastes = normal(200, 4)
    predictors = torch.stack([torch.ones(200), log, log**2], dim=1)
    tastes -= predictors @ torch.linalg.lstsq(predictors, tastes).solution  # what popularity does not explain
    vectors = tastes + log[:, None] * normal(1, 4) + log[:, None] ** 2 * normal(1, 4, seed=1) + 5
    torch.testing.assert_close(without_popularity(vectors, popularity), tastes, atol=1e-3, rtol=1e-3)


def test_relearned_codes_follow_tastes_and_keep_first_codes() -> None:
    taste, popularity = torch.arange(60) % 3, torch.logspace(0, 3, 60)[normal(60).argsort()].round()
    vectors = normal(3, 8)[taste] + 0.1 * normal(60, 8, seed=1) + 4 * torch.log1p(popularity)[:, None]
    former = torch.stack([torch.arange(60) // 30, torch.zeros(60), torch.arange(60) % 30], dim=1)
    table = IdentifierTable.from_item_codes(former, codebook_sizes=(3, 3, 30), catalog_fingerprint="")
    codes = relearned_codes(vectors, popularity, table, num_kept=0, seed=0)
    assert len(torch.unique(codes[:, 0] * 3 + taste)) == 3
    codes = relearned_codes(vectors, popularity, table, num_kept=1, seed=0)
    assert torch.equal(codes[:, 0], former[:, 0].long())
    for half in (0, 1):
        members = codes[:, 0] == half
        assert len(torch.unique(codes[members, 1] * 3 + taste[members])) == 3


def test_items_without_events_take_the_remaining_places() -> None:
    taste, popularity = torch.arange(60) % 3, torch.ones(60)
    vectors = 5 * normal(3, 8)[taste] + 0.1 * normal(60, 8, seed=1)
    vectors[[0, 1]], popularity[[0, 1]] = 1000.0, 0.0
    table = IdentifierTable.from_item_codes(torch.zeros(60, 2), codebook_sizes=(3, 20), catalog_fingerprint="")
    codes = relearned_codes(vectors, popularity, table, num_kept=0, seed=0)
    assert torch.bincount(codes[:, 0]).tolist() == [20, 20, 20]
    assert len(torch.unique(codes[2:, 0] * 3 + taste[2:])) == 3
    assert torch.equal(codes, relearned_codes(vectors * 1.0, popularity, table, num_kept=0, seed=0))
    no_events = relearned_codes(vectors, torch.zeros(60), table, num_kept=0, seed=0)
    assert len(no_events.unique(dim=0)) == 60
