"""Vector quantisation: nearest codes, residual and product quantisation, k-means, balanced assignment.

Shapes: B rows, D width, M levels, C codes of each level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 24  # entries of a distance matrix that are in memory at once
_START_SAMPLE = 32  # sampled vectors for each code, among which k-means selects its first centroids


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index [B] int64 of the code in `codebook [C, D]` that is nearest to each row of `vectors [B, D]`.

    Distances are squared. Ties go to the smaller index.
    """
    rows = max(1, _CHUNK // codebook.shape[0])
    norms = codebook.square().sum(1)
    # ||x||^2 is the same for all codes, so it is omitted.
    parts = [torch.addmm(norms, part, codebook.T, alpha=-2.0).argmin(1) for part in torch.split(vectors, rows)]
    return torch.cat(parts)


def nearest_code_in_range(vectors: Tensor, codebook: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Return the nearest code to each of `vectors [B, D]` within a range of `codebook [C, D]` of its own, [B] int64.

    The codes of row b are the codebook's rows from `starts[b]` to `ends[b] - 1`, numbered from 0; ties go to the
    smaller number.
    """
    numbers = torch.arange(int((ends - starts).max()) if len(vectors) else 0)
    codes = torch.empty_like(starts)
    for rows in torch.split(torch.arange(len(vectors)), max(1, _CHUNK // max(1, len(numbers) * vectors.shape[1]))):
        indices = (starts[rows, None] + numbers).clamp(max=len(codebook) - 1)
        distances = (vectors[rows, None] - codebook[indices]).square().sum(2)
        is_outside = numbers >= (ends - starts)[rows, None]
        codes[rows] = distances.masked_fill(is_outside, torch.inf).argmin(1)
    return codes


Choice = Callable[[Tensor, Tensor], Tensor]  # vectors [B, D], codebook [C, D] -> codes [B]


@dataclass(frozen=True)
class Quantised:
    """Result of quantisation by M codebooks.

    Attributes:
        codes: [B, M] int64.
        inputs: M tensors [B, ...]: the vectors that each level quantised.
        code_vectors: M tensors [B, ...]: the vectors of the assigned codes.
        quantised: [B, D] the vectors that the codes represent.

    """

    codes: Tensor
    inputs: tuple[Tensor, ...]
    code_vectors: tuple[Tensor, ...]
    quantised: Tensor


def residual_quantise(vectors: Tensor, codebooks: Sequence[Tensor], *, choose: Choice = nearest_code) -> Quantised:
    """Quantise `vectors [B, D]` level by level with M codebooks [C_m, D], each on the residual of the levels before.

    r_0 = x, c_m = argmin ||r_m - e||^2, r_m+1 = r_m - e_c. `choose` assigns the codes of a level.

    The subtracted vector is sg(e) (Lee et al. 2022, eq. 2; stop-gradient), so a residual keeps the gradient of the
    input at every level. Subtracting a straight-through output instead, r + sg(e - r), would cancel it from the second
    level on.
    """
    codes, residuals, code_vectors = [], [], []
    residual = vectors
    for codebook in codebooks:
        code = choose(residual.detach(), codebook.detach())
        code_vector = codebook[code]
        codes.append(code)
        residuals.append(residual)
        code_vectors.append(code_vector)
        residual = residual - code_vector.detach()
    return Quantised(torch.stack(codes, dim=1), tuple(residuals), tuple(code_vectors), torch.stack(code_vectors).sum(0))


def product_quantise(vectors: Tensor, codebooks: Sequence[Tensor], *, choose: Choice = nearest_code) -> Quantised:
    """Quantise M equal slices of `vectors [B, D]`, each with a codebook [C_m, D / M] of its own.

    `choose` assigns the codes of a slice.
    """
    slices = vectors.chunk(len(codebooks), dim=1)
    codes = [choose(part.detach(), book.detach()) for part, book in zip(slices, codebooks, strict=True)]
    code_vectors = tuple(book[code] for code, book in zip(codes, codebooks, strict=True))
    return Quantised(torch.stack(codes, dim=1), slices, code_vectors, torch.cat(code_vectors, dim=1))


def balanced_plan(vectors: Tensor, codebook: Tensor, temperature: float, *, rounds: int = 50) -> Tensor:
    """Return the transport plan [B, C] that spreads `vectors [B, D]` evenly over the codes in `codebook [C, D]`.

    Entropic optimal transport by Sinkhorn's algorithm (Cuturi 2013) in the log domain. Costs are squared distances
    divided by their mean and by `temperature`. After the last of `rounds` columns sum to 1 / C, and rows to about
    1 / B.
    """
    cost = torch.cdist(vectors, codebook).square()
    log_plan = -cost / (cost.mean().clamp(min=1e-12) * temperature)
    for _ in range(rounds):
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True) - math.log(len(vectors))
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True) - math.log(len(codebook))
    return log_plan.exp()


def sum_of_codes(codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Return the vectors [B, D] that `codes [B, M]` represent: the sums of their code vectors."""
    return torch.stack([book[codes[:, level]] for level, book in enumerate(codebooks)]).sum(0)


def kmeans(vectors: Tensor, num_codes: int, *, seed: int, iterations: int = 25) -> Tensor:
    """Return k-means centroids [C, D] of `vectors [B, D]`, on their device; deterministic for a seed.

    C is num_codes or fewer. If there are no more distinct vectors than codes, the centroids are these vectors. A
    centroid that is nearest to no vector is never returned. Duplicates count as often as they occur. The first
    centroids come from greedy k-means++ (Arthur & Vassilvitskii 2007) on a sample of 32 vectors for each code.
    """
    import faiss
    from sklearn.cluster import kmeans_plusplus

    distinct, counts = torch.unique(vectors.detach().cpu().float(), dim=0, return_counts=True)
    if distinct.shape[0] <= num_codes:
        all_vectors: Tensor = distinct.to(vectors.device)
        return all_vectors
    points, weights = distinct.numpy(), counts.float().numpy()
    sample = np.random.default_rng(seed).permutation(len(points))[: _START_SAMPLE * num_codes]
    start = kmeans_plusplus(points[sample], num_codes, sample_weight=weights[sample], random_state=seed)[0]
    clustering = faiss.Kmeans(points.shape[1], num_codes, niter=iterations, seed=seed, min_points_per_centroid=1)
    clustering.train(points, weights=weights, init_centroids=start)
    assert clustering.centroids is not None
    centroids: Tensor = torch.from_numpy(clustering.centroids.copy())
    used = torch.unique(nearest_code(distinct, centroids))
    return centroids.index_select(0, used).to(vectors.device)


def balanced_clusters(vectors: Tensor, centroids: Tensor, *, iterations: int) -> tuple[Tensor, Tensor]:
    """Return codes [B] and centroids [C, D] of clusters whose sizes differ by at most one, from initial centroids.

    OneRec, arXiv 2502.18965, algorithm 1: one cluster after another takes the B / C nearest of the remaining `vectors
    [B, D]`, and its centroid becomes their mean. This repeats until nothing changes, at most `iterations` times. The
    first B mod C clusters have one vector more than the others.
    """
    num_vectors, num_clusters = len(vectors), len(centroids)
    sizes = [num_vectors // num_clusters + (code < num_vectors % num_clusters) for code in range(num_clusters)]
    codes = torch.full((num_vectors,), -1, dtype=torch.int64, device=vectors.device)
    for _ in range(iterations):
        former, codes = codes, torch.full_like(codes, -1)
        remaining = torch.arange(num_vectors, device=vectors.device)
        table = []
        for code, size in enumerate(sizes):
            distances = (vectors[remaining] - centroids[code]).square().sum(1)
            is_member = torch.zeros(len(remaining), dtype=torch.bool, device=remaining.device)
            is_member[distances.argsort(stable=True)[:size]] = True
            codes[remaining[is_member]] = code
            table.append(vectors[remaining[is_member]].mean(0) if size else centroids[code])
            remaining = remaining[~is_member]
        centroids = torch.stack(table)
        if torch.equal(codes, former):
            break
    return codes, centroids
