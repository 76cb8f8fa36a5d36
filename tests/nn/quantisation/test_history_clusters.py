"""Clusters of long histories against a plain recursion, and what they may depend on."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from nextitem.core.jagged import Jagged
from nextitem.nn.quantisation.history_clusters import cluster_histories

NUM_ITEMS = 400


def vectors(width: int = 6, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, width, generator=generator) * 3
    owners = torch.randint(20, (NUM_ITEMS + 1,), generator=generator)
    return (centres[owners] + torch.randn(NUM_ITEMS + 1, width, generator=generator)).double()


def history(length: int, *, seed: int = 0) -> list[int]:
    items: list[int] = np.random.default_rng(seed).integers(1, NUM_ITEMS + 1, length).tolist()
    return items


def plain_split(points: np.ndarray, weights: np.ndarray, parts: int, iterations: int) -> np.ndarray:
    """Return the part of each point of one cluster: k-means from equal parts along the longest axis."""
    centred = points - np.average(points, axis=0, weights=weights)
    axis = centred[np.square(centred).sum(1).argmax()]
    for _ in range(4):
        axis = (centred @ axis * weights) @ centred
        axis /= max(np.linalg.norm(axis), 1e-12)
    ranks = (centred @ axis).argsort(kind="stable").argsort()
    labels = ranks * parts // len(points)
    equal = labels
    for _ in range(iterations):
        centres = {
            part: np.average(centred[labels == part], axis=0, weights=weights[labels == part])
            for part in set(labels.tolist())
        }
        order = sorted(centres)
        distances = np.stack([np.square(centred - centres[part]).sum(1) for part in order], axis=1)
        labels = np.array(order)[distances.argmin(1)]
    result: np.ndarray = equal if len(set(labels.tolist())) == 1 else labels
    return result


def plain_clusters(items: list[int], table: np.ndarray, *, size: int, limit: int) -> set[tuple[int, frozenset[int]]]:
    """Return the clusters of one history as (representative, items): the largest clusters are split first."""
    distinct, counts = np.unique(items, return_counts=True)
    clusters = [np.arange(len(distinct))]
    while True:
        room, numbers, after = limit - len(clusters), [1] * len(clusters), []
        for place in sorted(range(len(clusters)), key=lambda place: -len(clusters[place])):
            count = len(clusters[place])
            if count > size:
                numbers[place] += min(min(max(2, int(np.floor(count ** (1 / 3) + 1e-9))), count) - 1, room)
            room -= numbers[place] - 1
        for members, parts in zip(clusters, numbers, strict=True):
            if parts < 2:
                after.append(members)
                continue
            labels = plain_split(table[distinct[members]], counts[members].astype(float), parts, 3)
            after += [members[labels == part] for part in np.unique(labels)]
        clusters = after
        if max(numbers) == 1:
            break
    result = set()
    for members in clusters:
        points, weights = table[distinct[members]], counts[members]
        distances = np.square(points - np.average(points, axis=0, weights=weights)).sum(1)
        result.add((int(distinct[members[distances.argmin()]]), frozenset(distinct[members].tolist())))
    return result


def as_sets(histories: list[list[int]], table: Tensor, **sizes: int) -> list[set[tuple[int, frozenset[int]]]]:
    items = Jagged.from_rows(histories)
    clusters = cluster_histories(items, table, **sizes)
    owners = clusters.items.row_ids()[clusters.members]
    assert torch.equal(owners, items.row_ids())
    assert torch.equal(torch.bincount(clusters.members, minlength=len(clusters.counts)), clusters.counts)
    sets: list[set[tuple[int, frozenset[int]]]] = [set() for _ in histories]
    for cluster, (row, item) in enumerate(
        zip(clusters.items.row_ids().tolist(), clusters.items.values.tolist(), strict=True)
    ):
        sets[row].add((item, frozenset(items.values[clusters.members == cluster].tolist())))
    return sets


@pytest.mark.parametrize(("size", "limit"), [(1, 1000), (4, 1000), (10, 1000), (4, 25), (1, 7), (3, 1)])
def test_clusters_are_those_of_a_plain_recursion(size: int, limit: int) -> None:
    table = vectors()
    histories = [history(length, seed=length) for length in (150, 1, 9, 40, 2)]
    expected = [plain_clusters(items, table.numpy(), size=size, limit=limit) for items in histories]
    assert as_sets(histories, table, cluster_size=size, max_clusters=limit) == expected
    assert all(len(clusters) <= limit for clusters in expected)
    if limit == 1000:
        assert all(len(members) <= size for clusters in expected for _, members in clusters)


def test_an_empty_history_has_no_cluster() -> None:
    clusters = cluster_histories(Jagged.from_rows([[], [5], []]), vectors(), cluster_size=2, max_clusters=3)
    assert clusters.items.to_lists() == [[], [5], []]
    nothing = cluster_histories(Jagged.from_rows([[], []]), vectors(), cluster_size=2, max_clusters=3)
    assert nothing.items.to_lists() == [[], []]
    assert nothing.means(torch.zeros(0, 3)).shape == (0, 3)


def test_the_order_of_events_changes_nothing_but_the_mean_time() -> None:
    items, times = history(200), torch.arange(200.0)[:, None]
    table = vectors().float()
    sizes = {"cluster_size": 5, "max_clusters": 30}
    first = cluster_histories(Jagged.from_rows([items]), table, **sizes)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    second = cluster_histories(Jagged.from_rows([[items[place] for place in order]]), table, **sizes)
    assert torch.equal(first.items.values, second.items.values)
    assert torch.equal(first.counts, second.counts)
    assert torch.equal(first.members[order], second.members)
    assert not torch.equal(first.means(times), second.means(times))
    # Within clusters, the events and so their mean times stay together.
    by_cluster = first.members.argsort(stable=True)
    within = torch.cat([rows[torch.randperm(len(rows))] for rows in by_cluster.split(first.counts.tolist())])
    inside = torch.empty_like(within)
    inside[by_cluster] = within
    third = cluster_histories(Jagged.from_rows([[items[place] for place in inside]]), table, **sizes)
    assert torch.equal(first.items.values, third.items.values)
    torch.testing.assert_close(first.means(times), third.means(times))


def test_a_history_does_not_depend_on_the_other_histories_of_the_batch() -> None:
    histories = [history(length, seed=length) for length in (150, 30, 300)]
    table, sizes = vectors(), {"cluster_size": 4, "max_clusters": 50}
    assert as_sets(histories, table, **sizes) == [as_sets([items], table, **sizes)[0] for items in histories]


def test_items_with_equal_vectors_are_split_too() -> None:
    table = torch.ones(NUM_ITEMS + 1, 3)
    clusters = cluster_histories(Jagged.from_rows([history(200)]), table, cluster_size=4, max_clusters=1000)
    assert len(clusters.counts) > 20
    distinct = cluster_histories(Jagged.from_rows([list(range(1, 65))]), table, cluster_size=4, max_clusters=1000)
    assert int(distinct.counts.max()) <= 4


def test_planted_groups_are_the_clusters_and_numbers_are_averaged() -> None:
    table = torch.zeros(NUM_ITEMS + 1, 2)
    table[1:5], table[5:9] = torch.tensor([10.0, 0.0]), torch.tensor([-10.0, 0.0])
    table[2, 1], table[3, 1], table[6, 1], table[7, 1] = 1.0, -1.0, 1.0, -1.0
    items = [1, 1, 2, 3, 5, 6, 7]
    clusters = cluster_histories(Jagged.from_rows([items]), table, cluster_size=3, max_clusters=10)
    assert clusters.items.to_lists() == [[1, 5]]
    assert clusters.counts.tolist() == [4, 3]
    columns = torch.tensor([[1.0], [2.0], [3.0], [6.0], [10.0], [20.0], [30.0]])
    assert clusters.means(columns).flatten().tolist() == [3.0, 20.0]


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        cluster_histories(Jagged.from_rows([[1]]), vectors(), cluster_size=0, max_clusters=1)


@pytest.mark.slow
def test_a_hundred_thousand_events_are_clustered_in_seconds() -> None:
    """Alone, one thread takes 2 to 4 seconds; the limit leaves room for a busy machine."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(200_001, 64, generator=generator)
    items = Jagged.from_rows([torch.randint(1, 200_001, (100_000,), generator=generator).tolist()])
    begin = time.process_time()
    clusters = cluster_histories(items, table, cluster_size=50, max_clusters=2000)
    assert time.process_time() - begin < 30
    assert len(clusters.counts) == 2000
    assert int(clusters.counts.sum()) == 100_000
