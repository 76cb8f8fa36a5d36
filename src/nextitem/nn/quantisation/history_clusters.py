"""History clusters: a long history as a few groups of similar items, by hierarchical k-means.

OneRec technical report, arXiv 2506.13695 (lifelong pathway). A cluster of n items is split into floor(n ** (1/3)) by
k-means on the items' vectors, again and again, until it has at most `cluster_size` items. An event of the compressed
history is a cluster: its representative is the item nearest to the centre, and continuous columns are averaged.

Notable
- Events of the same item are one point whose weight is their number. So nothing depends on the order of events.
- k-means starts from equal parts along the longest axis of a cluster (by power iteration), so nothing is random.
- `max_clusters` is a hard limit, which the report reaches by its choice of the cluster size: the largest clusters are
  split first, and what is left stays as it is.
- Fewer than 8 items have a cube root below 2. They are split into 2.
- The clusters of all histories of a batch are split together. The number of steps depends on the depth of the splits.

Shapes: B histories, T events, P points (distinct items of a history), S clusters that are split, K parts, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.jagged import Jagged, offsets_of

_MAX_ENTRIES = 1 << 24  # entries of a padded tensor that are in memory at once
_AXIS_STEPS = 4  # steps of the power iteration


@dataclass(frozen=True, eq=False)
class HistoryClusters:
    """Compressed histories.

    Attributes:
        items: representatives of the clusters, B rows, in ascending order of the item number, Jagged int64.
        members: [T] int64, the cluster of each event, as an index of `items.values`.
        counts: [C] int64, number of events of each of the C clusters.

    """

    items: Jagged
    members: Tensor
    counts: Tensor

    def means(self, columns: Tensor) -> Tensor:
        """Return the means of the columns `[T, F]` over the events of each cluster, [C, F]."""
        sums = columns.new_zeros(len(self.counts), columns.shape[1]).index_add_(0, self.members, columns)
        return sums / self.counts[:, None]


@torch.no_grad()
def cluster_histories(
    items: Jagged, vectors: Tensor, *, cluster_size: int, max_clusters: int, iterations: int = 3
) -> HistoryClusters:
    """Return the clusters of each history; a pure function of its items and of the item vectors.

    Args:
        items: histories, Jagged int64.
        vectors: vectors of the items, [N + 1, D].
        cluster_size: number of distinct items from which on a cluster is not split, at least 1 (M of the report).
        max_clusters: maximum number of clusters of a history, at least 1.
        iterations: number of rounds of k-means of each split.

    """
    if cluster_size < 1 or max_clusters < 1:
        raise ValueError(f"cluster_size = {cluster_size} and max_clusters = {max_clusters} must be at least 1")
    span = len(vectors)
    keys, point_of_event, weights = torch.unique(
        items.row_ids() * span + items.values, return_inverse=True, return_counts=True
    )
    rows, point_items = keys // span, keys % span
    points = vectors[point_items]
    clusters = torch.unique(rows, return_inverse=True)[1]  # numbered from 0, those of a history in a row
    while True:
        sizes = torch.bincount(clusters)
        owners = torch.zeros_like(sizes).scatter_(0, clusters, rows)
        parts = _numbers_of_parts(sizes, owners, cluster_size=cluster_size, max_clusters=max_clusters)
        if not bool((parts > 1).any()):
            break
        split = (parts[clusters] > 1).nonzero()[:, 0]
        children = torch.zeros_like(clusters)
        children[split] = split_clusters(points[split], weights[split], clusters[split], parts, iterations=iterations)
        clusters = torch.unique(clusters * (int(parts.max()) + 1) + children, return_inverse=True)[1]
    return _with_representatives(items, points, weights, clusters, rows, point_items, point_of_event)


def _numbers_of_parts(sizes: Tensor, owners: Tensor, *, cluster_size: int, max_clusters: int) -> Tensor:
    """Return into how many parts each cluster is split, 1 if it stays.

    Args:
        sizes: number of points of each cluster.
        owners: history of each cluster, ascending.
        cluster_size: size up to which a cluster stays.
        max_clusters: maximum number of clusters of a history afterwards.

    """
    roots = (sizes.double() ** (1 / 3) + 1e-9).long().clamp(min=2)
    added = torch.where(sizes > cluster_size, torch.minimum(roots, sizes) - 1, 0)
    by_size = sizes.argsort(descending=True, stable=True)
    order = by_size[owners[by_size].argsort(stable=True)]  # by history, its largest clusters first
    counts = torch.bincount(owners)
    firsts = offsets_of(counts)[:-1]
    before = offsets_of(added[order])
    before = before[:-1] - before[firsts][owners[order]]
    room = (max_clusters - counts)[owners[order]] - before
    parts = torch.ones_like(sizes)
    parts[order] += torch.minimum(added[order], room.clamp(min=0))
    return parts


def split_clusters(points: Tensor, weights: Tensor, clusters: Tensor, parts: Tensor, *, iterations: int) -> Tensor:
    """Return the part of each point within its cluster, [P] int64 from 0; at least two parts of a cluster have points.

    Args:
        points: [P, D].
        weights: number of events of each point, [P].
        clusters: number of the cluster of each point, [P]; each has at least two points.
        parts: number of parts of each cluster, from 2 on, by its number.
        iterations: number of rounds of k-means.

    """
    by_cluster = clusters.argsort(stable=True)
    numbers, sizes = torch.unique_consecutive(clusters[by_cluster], return_counts=True)
    starts, counts = offsets_of(sizes)[:-1], parts[numbers]
    result = torch.empty_like(clusters)
    width = points.shape[1]
    # Clusters of similar sizes are padded to one tensor.
    magnitude = sizes.double().log2().ceil().long()
    for exponent in magnitude.unique().tolist():
        group = (magnitude == exponent).nonzero()[:, 0]
        length, most = int(sizes[group].max()), int(counts[group].max())
        for part in torch.split(group, max(1, _MAX_ENTRIES // (length * max(width, most)))):
            column = torch.arange(length, device=points.device)
            is_real = column < sizes[part, None]
            places = by_cluster[(starts[part, None] + column).clamp(max=len(by_cluster) - 1)]
            labels = _kmeans(points[places], weights[places] * is_real, sizes[part], counts[part], iterations)
            result[places[is_real]] = labels[is_real]
    return result


def _kmeans(points_SLD: Tensor, weights_SL: Tensor, sizes_S: Tensor, parts_S: Tensor, iterations: int) -> Tensor:
    """Return the part of each point of S padded clusters, [S, L]; points without weight are padding."""
    weights = weights_SL[..., None].to(points_SLD.dtype)
    centred = (points_SLD - (weights * points_SLD).sum(1, keepdim=True) / weights.sum(1, keepdim=True)) * (weights > 0)
    farthest = centred.square().sum(2).argmax(1)
    axis = centred.gather(1, farthest[:, None, None].expand(-1, 1, centred.shape[2]))  # [S, 1, D]
    for _ in range(_AXIS_STEPS):
        axis = F.normalize((centred @ axis.mT * weights).mT @ centred, dim=2)
    along = (centred @ axis.mT)[..., 0].masked_fill(weights_SL == 0, torch.inf)
    ranks = along.argsort(dim=1, stable=True).argsort(dim=1)
    equal_parts = (ranks * parts_S[:, None] // sizes_S[:, None]).clamp(max=int(parts_S.max()) - 1)
    numbers = torch.arange(int(parts_S.max()), device=points_SLD.device)
    labels = equal_parts
    for _ in range(iterations):
        is_member = (labels[..., None] == numbers) * weights  # [S, L, K]
        totals = is_member.sum(1)[..., None]
        centres = is_member.mT @ centred / totals.clamp(min=1)
        distances = centres.square().sum(2)[:, None] - 2 * centred @ centres.mT
        labels = distances.masked_fill((totals[..., 0] == 0)[:, None], torch.inf).argmin(2)
    is_first = ((labels == labels[:, :1]) | (weights_SL == 0)).all(
        1, keepdim=True
    )  # equal vectors: nothing to separate
    return torch.where(is_first, equal_parts, labels)


def _with_representatives(
    items: Jagged,
    points: Tensor,
    weights: Tensor,
    clusters: Tensor,
    rows: Tensor,
    point_items: Tensor,
    point_of_event: Tensor,
) -> HistoryClusters:
    """Return the clusters with the items nearest to their centres, in the order of these items."""
    num_clusters = int(clusters.max()) + 1 if len(clusters) else 0
    counts = weights.new_zeros(num_clusters).index_add_(0, clusters, weights)
    sums = points.new_zeros(num_clusters, points.shape[1]).index_add_(0, clusters, points * weights[:, None])
    distances = (points - (sums / counts[:, None])[clusters]).square().sum(1)
    by_distance = distances.argsort(stable=True)  # of equal distances the smaller item number
    order = by_distance[clusters[by_distance].argsort(stable=True)]
    is_nearest = torch.ones_like(order, dtype=torch.bool)
    is_nearest[1:] = clusters[order][1:] != clusters[order][:-1]
    nearest = order[is_nearest]  # [C], a point of each cluster; points are sorted by history and item
    by_item = nearest.argsort()
    place = torch.empty_like(by_item)
    place[by_item] = torch.arange(num_clusters, device=place.device)
    nearest = nearest[by_item]
    representatives = Jagged.from_lengths(point_items[nearest], torch.bincount(rows[nearest], minlength=items.num_rows))
    return HistoryClusters(representatives, place[clusters][point_of_event], counts[by_item])
