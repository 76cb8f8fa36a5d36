"""Balanced k-means: capacities, the bound of the auction, the plain reference, missing entries, known clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nextitem.nn.quantisation import balanced_kmeans as module
from nextitem.nn.quantisation.balanced_kmeans import (
    balanced_assignment,
    balanced_assignment_reference,
    balanced_kmeans,
    capped_kmeans,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, seed: int = 0, high: int = 5) -> Tensor:
    """Return small whole numbers: squared distances and bids of them are exact, and often equal."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).float()


def within(vectors: Tensor, codes: Tensor, num_clusters: int) -> float:
    """Return the sum of squared distances of vectors to the means of their clusters."""
    sums = torch.zeros(num_clusters, vectors.shape[1]).index_add_(0, codes, vectors)
    means = sums / torch.bincount(codes, minlength=num_clusters).clamp(min=1)[:, None]
    return float((vectors - means[codes]).square().sum())


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Return vectors, centres and capacities that suffice, some of them 0."""
    count, clusters, seed = draw(st.integers(1, 14)), draw(st.integers(1, 5)), draw(st.integers(0, 99))
    weights = None if draw(st.booleans()) else whole(count, seed=seed + 1) + 1
    capacities = torch.tensor(draw(st.lists(st.integers(0, 9), min_size=clusters, max_size=clusters))).float()
    missing = float(count if weights is None else weights.sum()) - float(capacities.sum())
    capacities[draw(st.integers(0, clusters - 1))] += max(0.0, missing)
    return {
        "vectors": whole(count, 2, seed=seed),
        "centres": whole(clusters, 2, seed=seed + 2),
        "capacities": capacities,
        "weights": weights,
    }


@settings(max_examples=150, deadline=None)
@given(problem=problems(), max_rounds=st.sampled_from([0, 1, 3, 10_000]))
def test_the_auction_equals_the_reference(problem: dict[str, Any], max_rounds: int) -> None:
    vectors, centres = problem.pop("vectors"), problem.pop("centres")
    lengths = vectors.square().sum(1, keepdim=True)
    costs = (vectors[:, None] - centres).square().sum(2) - lengths
    expected = balanced_assignment_reference(
        costs, problem["capacities"], tolerance=0.25, weights=problem["weights"], max_rounds=max_rounds
    )
    codes = balanced_assignment(vectors, centres, tolerance=0.25, max_rounds=max_rounds, **problem)
    assert torch.equal(codes, expected)


@settings(max_examples=100, deadline=None)
@given(problem=problems(), tolerance=st.sampled_from([0.01, 0.25, 3.0]))
def test_a_cluster_exceeds_its_capacity_by_less_than_one_vector(problem: dict[str, Any], tolerance: float) -> None:
    codes = balanced_assignment(tolerance=tolerance, **problem)
    weights = torch.ones(len(codes)) if problem["weights"] is None else problem["weights"]
    for cluster, capacity in enumerate(problem["capacities"].tolist()):
        members = weights[codes == cluster]
        if problem["weights"] is None:
            assert len(members) <= capacity
        elif len(members):
            assert float(members.sum() - members.max()) < capacity


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 20),
    clusters=st.integers(1, 6),
    spare=st.integers(0, 3),
    seed=st.integers(0, 99),
    tolerance=st.sampled_from([0.01, 0.1, 1.0]),
)
def test_the_sum_of_distances_is_within_the_bound_of_the_optimum(
    count: int, clusters: int, spare: int, seed: int, tolerance: float
) -> None:
    vectors, centres = normal(count, 3, seed=seed), normal(clusters, 3, seed=seed + 1)
    capacity = -(-count // clusters) + spare
    codes = balanced_assignment(
        vectors, centres, torch.full((clusters,), float(capacity)), tolerance=tolerance, max_rounds=100_000
    )
    distances = (vectors[:, None] - centres).square().sum(2).double()
    places = distances.repeat_interleave(capacity, dim=1).numpy()  # one column for each place of a cluster
    rows, columns = linear_sum_assignment(places)
    total = float(distances[torch.arange(count), codes].sum())
    assert total <= float(places[rows, columns].sum()) + count * tolerance + 1e-4


def test_capacities_that_do_not_suffice_raise() -> None:
    with pytest.raises(ValueError, match="too small"):
        balanced_assignment(normal(5, 2), normal(2, 2), torch.tensor([2.0, 2.0]), tolerance=0.1)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 80),
    clusters=st.integers(1, 12),
    distinct=st.integers(1, 80),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 9),
)
def test_sizes_differ_by_at_most_one(count: int, clusters: int, distinct: int, share: float, seed: int) -> None:
    vectors = normal(distinct, 3, seed=seed)[torch.arange(count) % distinct]
    is_missing = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) < share
    codes = balanced_kmeans(vectors.masked_fill(is_missing, torch.nan), clusters, seed=seed)
    sizes = torch.bincount(codes, minlength=clusters)
    assert len(sizes) == clusters
    assert int(sizes.sum()) == count
    assert int(sizes.max() - sizes.min()) <= 1


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 80), clusters=st.integers(1, 8), seed=st.integers(0, 9))
def test_weights_of_clusters_exceed_their_share_by_less_than_one_vector(count: int, clusters: int, seed: int) -> None:
    weights = torch.distributions.Pareto(torch.tensor(1.0), torch.tensor(1.0))
    torch.manual_seed(seed)
    exposure = weights.sample((count,)).ceil()
    codes = balanced_kmeans(normal(count, 3, seed=seed), clusters, seed=seed, weights=exposure)
    for cluster in range(clusters):
        members = exposure[codes == cluster]
        if len(members):
            assert float(members.sum() - members.max()) < float(exposure.sum()) / clusters


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_tighter_than_random_ones_and_hardly_looser_than_unbalanced_ones(seed: int) -> None:
    vectors = torch.nn.functional.normalize(normal(40, 8, seed=seed).repeat_interleave(25, 0) + normal(1000, 8) * 0.5)
    codes = balanced_kmeans(vectors, 20, seed=seed)
    shuffled = codes[torch.randperm(1000, generator=torch.Generator().manual_seed(seed))]
    free = balanced_kmeans(vectors, 20, seed=seed, is_balanced=False)
    assert int(torch.bincount(free, minlength=20).max()) > 60
    assert within(vectors, codes, 20) < 0.55 * within(vectors, shuffled, 20)
    assert within(vectors, codes, 20) < 1.15 * within(vectors, free, 20)


def test_planted_clusters_of_equal_size_are_recovered() -> None:
    truth = torch.arange(300) % 10
    codes = balanced_kmeans(normal(10, 6)[truth] * 10 + normal(300, 6, seed=1), 10, seed=0)
    assert len(torch.unique(codes * 10 + truth)) == 10


@pytest.mark.parametrize("heavy", [60, 500])
def test_a_heavy_vector_exceeds_the_share_of_its_cluster_by_half_at_most(heavy: int) -> None:
    vectors = torch.cat([normal(60, 2) * 0.1, normal(60, 2, seed=1) * 0.1 + 8])
    weights = torch.ones(120)
    weights[0] = heavy
    codes = balanced_kmeans(vectors, 3, seed=0, weights=weights)
    loads = torch.zeros(3).index_add_(0, codes, weights)
    if heavy > 120:
        assert int((codes == codes[0]).sum()) == 1  # it fills the cluster alone
    else:
        assert float(loads.max()) <= float(weights.sum()) / 3 + heavy / 2


def test_a_vector_with_missing_entries_joins_the_cluster_of_the_entries_that_it_has() -> None:
    """Two parts tell four clusters apart; a vector with one part may join two of them, and joins one of these."""
    truth = torch.arange(400) % 4
    centres = torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9]])
    vectors = centres[truth] + normal(400, 2) * 0.3
    vectors[:50, 0] = torch.nan
    vectors[50:100, 1] = torch.nan
    vectors[100:110] = torch.nan
    codes = balanced_kmeans(vectors, 4, seed=0)
    majority = torch.stack([truth[110:][codes[110:] == cluster].mode().values for cluster in range(4)])
    assert sorted(majority.tolist()) == [0, 1, 2, 3]
    assigned = centres[majority[codes]]
    assert torch.equal(majority[codes[110:]], truth[110:])
    assert bool((assigned[:50, 1] == centres[truth[:50], 1]).all())
    assert bool((assigned[50:100, 0] == centres[truth[50:100], 0]).all())


def test_a_common_offset_of_all_vectors_changes_nothing() -> None:
    vectors = whole(200, 3, high=64)
    assert torch.equal(balanced_kmeans(vectors, 9, seed=0), balanced_kmeans(vectors + 4096, 9, seed=0))


def test_the_same_seed_returns_the_same_clusters_and_another_seed_others() -> None:
    vectors = normal(500, 4)
    assert torch.equal(balanced_kmeans(vectors, 12, seed=1), balanced_kmeans(vectors, 12, seed=1))
    assert not torch.equal(balanced_kmeans(vectors, 12, seed=1), balanced_kmeans(vectors, 12, seed=2))


def test_centres_from_a_sample_and_blocks_of_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = normal(12, 6)[torch.arange(600) % 12] * 6 + normal(600, 6, seed=1)
    whole_result = balanced_kmeans(vectors, 12, seed=0)
    monkeypatch.setattr(module, "_BLOCK", 100)
    assert torch.equal(balanced_kmeans(vectors, 12, seed=0), whole_result)
    monkeypatch.setattr(module, "_SAMPLE", 10)
    sampled = balanced_kmeans(vectors, 12, seed=0)
    assert torch.bincount(sampled).unique().tolist() == [50]
    assert within(vectors, sampled, 12) < 1.3 * within(vectors, whole_result, 12)


def test_plain_kmeans_assigns_every_vector_to_its_nearest_mean() -> None:
    vectors = normal(300, 3)
    codes = balanced_kmeans(vectors, 7, seed=0, is_balanced=False, iterations=100)
    means = torch.stack([vectors[codes == cluster].mean(0) for cluster in range(7)])
    distances = torch.cdist(vectors, means)
    assert np.array_equal(distances.argmin(1).numpy(), codes.numpy())


def relieve_reference(vectors: Tensor, centres: Tensor, codes: list[int], weights: list[float], limit: float) -> Tensor:
    """Return the clusters after the repair of `capped_kmeans`, move by move, over all pairs of member and cluster."""
    distances = (vectors.double()[:, None] - centres.double()).square().sum(2).tolist()
    codes = list(codes)
    while True:
        loads = [sum(w for w, code in zip(weights, codes, strict=True) if code == k) for k in range(len(centres))]
        moves = []
        for row, source in enumerate(codes):
            excess = loads[source] - limit
            with_room = [k for k, load in enumerate(loads) if load + weights[row] <= limit]
            if excess > 0 and with_room:
                target = min(with_room, key=lambda k: distances[row][k])
                increase = distances[row][target] - distances[row][source]
                moves.append((increase / min(weights[row], excess), row, target))
        if not moves:
            return torch.tensor(codes)
        _, row, target = min(moves)
        codes[row] = target


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), count=st.integers(6, 30), clusters=st.integers(2, 5), cap=st.floats(1.0, 1.6))
def test_the_repair_of_a_cap_equals_the_reference(seed: int, count: int, clusters: int, cap: float) -> None:
    vectors, centres = normal(count, 3, seed=seed), normal(clusters, 3, seed=seed + 1)
    weights = whole(count, seed=seed + 2, high=7).double() + 1
    codes = torch.cdist(vectors, centres).argmin(1)
    limit = cap * float(weights.sum()) / clusters
    points = module._Points.of(vectors)
    relieved = module._relieve(points, centres.numpy(), codes.numpy(), weights.numpy(), limit)
    expected = relieve_reference(vectors, centres, codes.tolist(), weights.tolist(), limit)
    assert torch.equal(torch.from_numpy(relieved), expected)


def test_no_cluster_weighs_more_than_the_cap() -> None:
    """Two thirds of the vectors are in one lump, so plain k-means has clusters of very different weights."""
    vectors = torch.cat([0.01 * normal(200, 2, seed=1), 5 + normal(100, 2, seed=2)])
    weights = whole(300, seed=3, high=20) + 1
    plain = balanced_kmeans(vectors, 6, seed=0, is_balanced=False)
    assert float(torch.bincount(plain, weights).max() / weights.sum() * 6) > 2
    for cap in (1.05, 1.3):
        capped = capped_kmeans(vectors, 6, seed=0, weights=weights, cap=cap)
        assert float(torch.bincount(capped, weights, minlength=6).max() / weights.sum() * 6) <= cap
        assert torch.equal(capped, capped_kmeans(vectors, 6, seed=0, weights=weights, cap=cap))
    wide = capped_kmeans(vectors, 6, seed=0, weights=weights, cap=6.0)
    assert torch.equal(wide, plain)  # nothing has to be repaired


def test_the_nearest_members_leave_and_one_that_is_too_heavy_stays_alone() -> None:
    """On a line: clusters at 0 and 10. The members at 1, 2 and 3 lose least if they move from 0 to 10 in this order."""
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    points, centres = module._Points.of(line), np.array([[0.0], [10.0]], np.float32)
    codes = np.array([0, 0, 0, 0, 1])
    ones = np.ones(5)
    assert module._relieve(points, centres, codes, ones, 3.0).tolist() == [0, 0, 0, 1, 1]
    heavy = np.array([9.0, 1, 1, 1, 1])
    assert module._relieve(points, centres, codes, heavy, 7.0).tolist() == [0, 1, 1, 1, 1]
