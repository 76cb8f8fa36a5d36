"""k-means whose clusters have capacities: equal numbers of vectors, or equal sums of weights.

Each round of k-means assigns vectors to centres by an auction (Bertsekas & Castanon, The Auction Algorithm for the
Transportation Problem, 1989). Every cluster has a price. A vector bids for the cluster with the smallest sum of squared
distance and price: as much above the price as this cluster is better than the second best, plus a tolerance. A cluster
accepts its highest bids up to its capacity; a vector with a weight is accepted if at least half of it fits. If the
cluster is full, its price is its lowest bid. All vectors without a cluster bid at once. If all weights are 1 and the
auction ends by itself, the sum of distances exceeds the smallest possible one by at most the tolerance for each vector.
If it does not end within some rounds, the few vectors that remain go to the best clusters with room.

Missing entries of vectors are NaN. A distance is over the entries that a vector has, and so is a mean.

Shapes: n vectors, D width, K clusters, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 1 << 22  # number of distances in memory at once
_MAX_ROUNDS = 50  # rounds of an auction; more lower the sum of distances by less than 0.1% (12,101 items, 110 clusters)
_TOLERANCE = 0.3  # tolerance of an auction, as a share of the median lead of the best centre over the second best
_SAMPLE = 512  # maximum number of vectors for each cluster from which centres are computed
_START_SAMPLE = 32  # number of vectors for each cluster among which k-means++ selects the first centres

Floats = NDArray[np.float32]
Weights = NDArray[np.float64]
Rows = NDArray[np.int64]


def balanced_kmeans(
    vectors: Tensor,
    num_clusters: int,
    *,
    seed: int,
    weights: Tensor | None = None,
    is_balanced: bool = True,
    iterations: int = 20,
) -> Tensor:
    """Return the cluster of each row of `vectors [n, D]`, [n] int64; deterministic for a seed.

    The first centres come from k-means++. Of many vectors a sample determines the centres, and all are assigned once.

    Args:
        vectors: the vectors; NaN is a missing entry.
        num_clusters: number of clusters (K). If there are no more vectors than that, each is a cluster of its own.
        seed: seed of the sample and of the first centres.
        weights: [n] positive numbers. A vector counts in its centre by its weight, and sums of clusters are about
            equal: no cluster exceeds a K-th of the whole by the weight of its last vector or more. None: sizes of
            clusters differ by at most one.
        is_balanced: whether clusters have capacities; False: plain k-means, in which clusters may remain empty.
        iterations: maximum number of rounds; they end earlier if nothing changes.

    """
    if len(vectors) <= num_clusters:
        return torch.arange(len(vectors))
    points = _Points.of(vectors - vectors.nanmean(0))  # near the origin, squared distances are precise
    return torch.from_numpy(_kmeans(points, num_clusters, seed, weights, is_balanced, iterations)[0])


def capped_kmeans(
    vectors: Tensor, num_clusters: int, *, seed: int, weights: Tensor, cap: float, iterations: int = 20
) -> Tensor:
    """Return the cluster of each row of `vectors [n, D]`, [n] int64, by plain k-means with a greedy repair (UniRec).

    As long as the weight of a cluster is more than `cap` times the mean, a member leaves it for the nearest centre of a
    cluster that has room. The next member to leave is that with the smallest increase of its squared distance for the
    excess that leaves with it. A cluster stays above the cap if none of its members fits elsewhere: one alone may weigh
    more.

    Args:
        vectors: the vectors; NaN is a missing entry.
        num_clusters: number of clusters (K). If there are no more vectors than that, each is a cluster of its own.
        seed: seed of k-means, in which all vectors count the same.
        weights: [n] positive numbers, such as numbers of impressions.
        cap: largest weight of a cluster, as a multiple of the mean; at least 1.
        iterations: maximum number of rounds of k-means.

    """
    if len(vectors) <= num_clusters:
        return torch.arange(len(vectors))
    points = _Points.of(vectors - vectors.nanmean(0))
    codes, centres = _kmeans(points, num_clusters, seed, None, False, iterations)
    all_weights = weights.double().numpy()
    return torch.from_numpy(_relieve(points, centres, codes, all_weights, cap * all_weights.sum() / num_clusters))


def _kmeans(
    points: _Points, num_clusters: int, seed: int, weights: Tensor | None, is_balanced: bool, iterations: int
) -> tuple[Rows, Floats]:
    """Return the clusters [n] of more points than there are clusters, and the centres [K, D]; see `balanced_kmeans`."""
    count, rng = len(points), np.random.default_rng(seed)
    all_weights = np.ones(count) if weights is None else weights.double().numpy()
    num_samples = min(count, _SAMPLE * num_clusters)
    sample = np.arange(count) if num_samples == count else np.sort(rng.choice(count, num_samples, replace=False))
    fitted, fitted_weights = points.select(sample), all_weights[sample]
    centres = _first_centres(fitted, fitted_weights, num_clusters, rng)
    codes, prices = np.zeros(0, np.int64), np.zeros(num_clusters, np.float32)
    for _ in range(iterations):
        former = codes
        codes, prices = _assign(fitted, centres, fitted_weights, prices, weights is None, is_balanced)
        if np.array_equal(codes, former):
            break
        centres = fitted.means(codes, fitted_weights, centres)
    if num_samples < count:
        codes, _ = _assign(points, centres, all_weights, prices, weights is None, is_balanced)
    return codes, centres


def balanced_assignment(
    vectors: Tensor,
    centres: Tensor,
    capacities: Tensor,
    *,
    tolerance: float,
    weights: Tensor | None = None,
    max_rounds: int = 10_000,
) -> Tensor:
    """Return the cluster of each row of `vectors [n, D]` under capacities, [n] int64, with a small sum of distances.

    If all weights are 1 and the auction ends within `max_rounds`, the sum of squared distances exceeds the smallest
    possible one by at most n * tolerance.

    Args:
        vectors: the vectors; NaN is a missing entry.
        centres: [K, D], centres of the clusters.
        capacities: [K], weight at which a cluster takes no further vector. So it exceeds its capacity by less than its
            last vector, and with whole capacities and weights of 1 not at all.
        tolerance: positive squared distance. If it is smaller, the result is better, and the auction has more rounds.
        weights: [n] positive numbers; None: 1.
        max_rounds: number of rounds after which the remaining vectors go to the best clusters with room.

    Raises:
        ValueError: the sum of the capacities is smaller than the sum of the weights.

    """
    all_weights = np.ones(len(vectors)) if weights is None else weights.double().numpy()
    limits = capacities.double().numpy()
    if limits.sum() < all_weights.sum() * (1 - 1e-9):
        raise ValueError(f"capacities of {limits.sum():g} are too small for a weight of {all_weights.sum():g}")
    prices = np.zeros(len(centres), np.float32)
    points, table = _Points.of(vectors), centres.float().numpy()
    return torch.from_numpy(_auction(points, table, limits, all_weights, prices, tolerance, max_rounds)[0])


def balanced_assignment_reference(
    distances: Tensor, capacities: Tensor, *, tolerance: float, weights: Tensor | None = None, max_rounds: int = 10_000
) -> Tensor:
    """Return what `balanced_assignment` returns for `distances [n, K]`, computed bid by bid."""
    costs, limits = distances.tolist(), capacities.tolist()
    weight = [1.0] * len(costs) if weights is None else weights.tolist()
    prices = [0.0 if limit > 0 else float("inf") for limit in limits]
    members: list[list[tuple[float, int]]] = [[] for _ in limits]  # (bid, row) of each cluster, highest bids first
    active, number = list(range(len(costs))), 0
    while active:
        is_auction = number < max_rounds
        loads = [sum(weight[row] for _, row in rows) for rows in members]
        is_open = [is_auction or load < limit for load, limit in zip(loads, limits, strict=True)]
        offers: list[list[tuple[float, int]]] = [[] for _ in limits]
        for row in active:
            values = [
                (cost + price if has_room else float("inf"), cluster)
                for cluster, (cost, price, has_room) in enumerate(zip(costs[row], prices, is_open, strict=True))
            ]
            (best, cluster), *others = sorted(values)
            lead = others[0][0] - best if others and others[0][0] < float("inf") else 0.0
            offers[cluster].append((prices[cluster] + lead + tolerance if is_auction else lead, row))
        active, number = [], number + 1
        for cluster, new in enumerate(offers):
            offered = sorted(([*members[cluster]] if is_auction else []) + new, key=lambda offer: -offer[0])
            accepted, before = ([], 0.0) if is_auction else (members[cluster], loads[cluster])
            for place, (bid, row) in enumerate(offered):
                has_room = before + weight[row] / 2 <= limits[cluster] if is_auction else before < limits[cluster]
                if has_room or (is_auction and not place):
                    accepted.append((bid, row))
                else:
                    active.append(row)
                before += weight[row]
            members[cluster] = accepted
            if new and is_auction and before >= limits[cluster]:
                prices[cluster] = accepted[-1][0]
        active.sort()
    cluster_of = {row: cluster for cluster, rows in enumerate(members) for _, row in rows}
    return torch.tensor([cluster_of[row] for row in range(len(costs))], dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class _Points:
    """Vectors with missing entries: `values [n, D]`, 0 if missing, and `has_value [n, D]`, 1 or 0; None: all 1."""

    values: Floats
    has_value: Floats | None

    @classmethod
    def of(cls, vectors: Tensor) -> _Points:
        """Return the points of vectors in which missing entries are NaN."""
        values = vectors.detach().cpu().float().numpy()
        is_missing = np.isnan(values)
        if not is_missing.any():
            return cls(values, None)
        return cls(np.where(is_missing, np.float32(0), values), (~is_missing).astype(np.float32))

    def __len__(self) -> int:
        return len(self.values)

    def select(self, rows: Rows) -> _Points:
        """Return the points of some rows."""
        return _Points(self.values[rows], None if self.has_value is None else self.has_value[rows])

    def best_two(self, rows: Rows, centres: Floats, offsets: Floats) -> tuple[Rows, Floats]:
        """Return the best centre of each row, and its lead over the second best, [R] each.

        The best centre has the smallest sum of squared distance and offset (`offsets [K]`); ties go to the smaller
        number. The lead is 0 if all other centres have the offset inf, or if there are none.
        """
        best, leads = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
        for block in _blocks(len(rows), len(centres)):
            part = rows[block]
            table = self.distances(part, centres) + offsets
            numbers = np.arange(len(part))
            best[block] = table.argmin(1)
            values = table[numbers, best[block]]
            table[numbers, best[block]] = np.inf
            leads[block] = table.min(1) - values
        return best, np.where(np.isfinite(leads), leads, np.float32(0))

    def distances(self, rows: Rows, centres: Floats) -> Floats:
        """Return squared distances of rows and centres, [R, K], without the squared length of the row.

        That length is the same for all centres.
        """
        table: Floats = self.values[rows] @ (-2 * centres.T)
        table += np.square(centres).sum(1) if self.has_value is None else self.has_value[rows] @ np.square(centres.T)
        return table

    def means(self, codes: Rows, weights: Weights, former: Floats) -> Floats:
        """Return the weighted mean of each cluster's members, [K, D]; entries that no member has stay the `former`."""
        index, factors = torch.from_numpy(codes), torch.from_numpy(weights).float()[:, None]
        sums = torch.zeros(former.shape).index_add_(0, index, torch.from_numpy(self.values) * factors)
        entry_weights = factors if self.has_value is None else torch.from_numpy(self.has_value) * factors
        totals = torch.zeros((len(former), entry_weights.shape[1])).index_add_(0, index, entry_weights)
        means: Floats = torch.where(totals > 0, sums / totals, torch.from_numpy(former)).numpy()
        return means


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Yield ranges of rows whose table of `width` columns has at most `_BLOCK` entries."""
    size = max(1, _BLOCK // width)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _first_centres(points: _Points, weights: Weights, num_clusters: int, rng: np.random.Generator) -> Floats:
    """Return first centres [K, D] by k-means++ on a sample; the missing entries of points count as 0, the mean."""
    from sklearn.cluster import kmeans_plusplus

    sample = rng.permutation(len(points))[: _START_SAMPLE * num_clusters]
    seed = int(rng.integers(2**31))
    centres: Floats = kmeans_plusplus(
        points.values[sample], num_clusters, sample_weight=weights[sample], random_state=seed
    )[0]
    return centres


def _assign(
    points: _Points, centres: Floats, weights: Weights, prices: Floats, has_equal_sizes: bool, is_balanced: bool
) -> tuple[Rows, Floats]:
    """Return the clusters [n] and the prices [K] of one round of k-means that starts at earlier prices."""
    nearest, leads = points.best_two(np.arange(len(points)), centres, np.zeros(len(centres), np.float32))
    if not is_balanced:
        return nearest, prices
    if has_equal_sizes:
        # The clusters that are nearest to most vectors have one vector more than the others.
        num_nearest = np.bincount(nearest, minlength=len(centres))
        capacities = np.full(len(centres), len(points) // len(centres), np.float64)
        capacities[np.argsort(-num_nearest, kind="stable")[: len(points) % len(centres)]] += 1
    else:
        capacities = np.full(len(centres), weights.sum() / len(centres))
    tolerance = _TOLERANCE * float(np.median(leads[leads > 0])) if (leads > 0).any() else 1.0
    return _auction(points, centres, capacities, weights, prices - prices.min(), tolerance, _MAX_ROUNDS)


def _auction(
    points: _Points,
    centres: Floats,
    capacities: Weights,
    weights: Weights,
    prices: Floats,
    tolerance: float,
    max_rounds: int,
) -> tuple[Rows, Floats]:
    """Return the clusters [n] of points under capacities, and the prices [K] at the end of the auction."""
    codes, bids = np.zeros(len(points), np.int64), np.zeros(len(points), np.float32)
    prices = np.where(capacities > 0, prices, np.float32(np.inf))
    members, active = np.zeros(0, np.int64), np.arange(len(points))
    for _ in range(max_rounds):
        if not len(active):
            return codes, prices
        codes[active], leads = points.best_two(active, centres, prices)
        bids[active] = prices[codes[active]] + leads + np.float32(tolerance)
        rows, weight_before = _sorted_offers(np.concatenate([members, active]), codes, bids, weights, len(centres))
        clusters = codes[rows]
        is_first = np.append(True, clusters[1:] != clusters[:-1])
        is_accepted = is_first | (weight_before + weights[rows] / 2 <= capacities[clusters])
        members, active = rows[is_accepted], np.sort(rows[~is_accepted])
        clusters = codes[members]
        is_full = np.bincount(clusters, weights[members], len(centres)) >= capacities
        is_full[codes[active]] = True
        # The last member of a cluster has its lowest bid.
        is_price = np.append(clusters[1:] != clusters[:-1], True) & is_full[clusters]
        prices[clusters[is_price]] = bids[members[is_price]]
    room = capacities - np.bincount(codes[members], weights[members], minlength=len(centres))
    while len(active):
        if not (room > 0).any():
            room[:] = np.inf  # only possible if sums of fractional weights are rounded
        codes[active], bids[active] = points.best_two(active, centres, np.where(room > 0, prices, np.float32(np.inf)))
        rows, weight_before = _sorted_offers(active, codes, bids, weights, len(centres))
        is_accepted = weight_before < room[codes[rows]]
        room -= np.bincount(codes[rows[is_accepted]], weights[rows[is_accepted]], minlength=len(centres))
        active = np.sort(rows[~is_accepted])
    return codes, prices


def _sorted_offers(rows: Rows, codes: Rows, bids: Floats, weights: Weights, num_clusters: int) -> tuple[Rows, Weights]:
    """Return rows sorted by cluster and falling bid, and the weight of those before each in its cluster, [R].

    Equal bids stay in their order. `codes`, `bids` and `weights` [n] are of all points.
    """
    # One key of float64, so that the stable sort merges new bids into members that are sorted already.
    row_bids = bids[rows].astype(np.float64)
    keys = codes[rows] * (row_bids.max() - row_bids.min() + 1) - row_bids
    rows = rows[np.argsort(keys, kind="stable")]
    clusters, row_weights = codes[rows], weights[rows]
    loads = np.bincount(clusters, row_weights, minlength=num_clusters)
    return rows, np.cumsum(row_weights) - row_weights - (np.cumsum(loads) - loads)[clusters]


def _relieve(points: _Points, centres: Floats, codes: Rows, weights: Weights, limit: float) -> Rows:
    """Return the clusters [n] after members have left those that weigh more than `limit`; see `capped_kmeans`."""
    codes = codes.copy()
    room = limit - np.bincount(codes, weights, minlength=len(centres))
    rows = np.flatnonzero(room[codes] < 0)  # all that may leave
    row_weights, targets = weights[rows], np.zeros(len(rows), np.int64)
    own, best = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)

    def find_targets(places: Rows) -> None:
        """Find the nearest cluster with room for each of `rows[places]`."""
        for block in _blocks(len(places), len(centres)):
            part = places[block]
            table = points.distances(rows[part], centres)
            table[room < row_weights[part, None]] = np.inf
            targets[part] = table.argmin(1)
            best[part] = table[np.arange(len(part)), targets[part]]

    for block in _blocks(len(rows), len(centres)):
        part = rows[block]
        own[block] = points.distances(part, centres)[np.arange(len(part)), codes[part]]
    find_targets(np.arange(len(rows)))
    while True:
        excess = -room[codes[rows]]
        may_leave = (excess > 0) & np.isfinite(best)
        if not may_leave.any():
            return codes
        costs = np.full(len(rows), np.inf)
        costs[may_leave] = (best - own)[may_leave] / np.minimum(row_weights, excess)[may_leave]
        pick = int(costs.argmin())
        source, target = codes[rows[pick]], targets[pick]
        codes[rows[pick]] = target
        room[source] += row_weights[pick]
        room[target] -= row_weights[pick]
        if room[source] >= 0:  # from now on it may take others
            places = np.flatnonzero((room[codes[rows]] < 0) & (row_weights <= room[source]))
            distances = points.distances(rows[places], centres[source : source + 1])[:, 0]
            nearer = places[distances < best[places]]
            best[nearer], targets[nearer] = distances[distances < best[places]], source
        find_targets(np.flatnonzero((targets == target) & (row_weights > room[target]) & (room[codes[rows]] < 0)))
