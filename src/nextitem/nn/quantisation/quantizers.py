"""Vector quantisation by nearest code, level by level on what the earlier levels left over.

Shapes: B rows, D width, M levels, C codes of a level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 24  # entries of a distance matrix that are held at once
_START_SAMPLE = 32  # vectors a code among which k-means looks for its start


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index [B] int64 of the row of `codebook [C, D]` nearest to each row of `vectors [B, D]` (squared
    distance).

    Ties go to the smaller index.
    """
    rows = max(1, _CHUNK // codebook.shape[0])
    norms = codebook.square().sum(1)
    # ||x||^2 is the same for all codes and left out.
    parts = [torch.addmm(norms, part, codebook.T, alpha=-2.0).argmin(1) for part in torch.split(vectors, rows)]
    return torch.cat(parts)


Choice = Callable[[Tensor, Tensor], Tensor]  # vectors [B, D], codebook [C, D] -> codes [B]


@dataclass(frozen=True)
class Quantised:
    """Outcome of quantisation by M codebooks.

    codes      [B, M] int64
    asked      M tensors: what each level was asked to quantise
    chosen     M tensors: the code vectors taken
    quantised  [B, D]: what the codes stand for
    """

    codes: Tensor
    asked: tuple[Tensor, ...]
    chosen: tuple[Tensor, ...]
    quantised: Tensor


def residual_quantise(vectors: Tensor, codebooks: Sequence[Tensor], *, choose: Choice = nearest_code) -> Quantised:
    """Quantises `vectors [B, D]` with M codebooks [C_m, D]: r_0 = x, c_m = argmin ||r_m - e||^2, r_m+1 = r_m
    - e_c.

    What is subtracted is sg(e) (Lee et al. 2022, eq. 2; stop-gradient): a residual keeps the gradient of the
    input at every level. Subtracting a straight-through output instead, r + sg(e - r), would cancel it from
    the second level on.
    """
    codes, residuals, chosen = [], [], []
    residual = vectors
    for codebook in codebooks:
        code = choose(residual.detach(), codebook.detach())
        entry = codebook[code]
        codes.append(code)
        residuals.append(residual)
        chosen.append(entry)
        residual = residual - entry.detach()
    return Quantised(torch.stack(codes, dim=1), tuple(residuals), tuple(chosen), torch.stack(chosen).sum(0))


def product_quantise(vectors: Tensor, codebooks: Sequence[Tensor], *, choose: Choice = nearest_code) -> Quantised:
    """Quantises M equal slices of `vectors [B, D]`, each with a codebook [C_m, D / M] of its own."""
    slices = vectors.chunk(len(codebooks), dim=1)
    codes = [choose(part.detach(), book.detach()) for part, book in zip(slices, codebooks, strict=True)]
    chosen = tuple(book[code] for code, book in zip(codes, codebooks, strict=True))
    return Quantised(torch.stack(codes, dim=1), slices, chosen, torch.cat(chosen, dim=1))


def balanced_plan(vectors: Tensor, codebook: Tensor, temperature: float, *, rounds: int = 50) -> Tensor:
    """Shares [B, C] of `vectors [B, D]` that go to each row of `codebook [C, D]`, all codes getting equally much.

    Entropic optimal transport by Sinkhorn's algorithm (Cuturi 2013) in the log domain; costs are squared distances over
    their mean. After the last round columns sum to 1 / C, and rows to about 1 / B.
    """
    cost = torch.cdist(vectors, codebook).square()
    log_plan = -cost / (cost.mean().clamp(min=1e-12) * temperature)
    for _ in range(rounds):
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True) - math.log(len(vectors))
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True) - math.log(len(codebook))
    return log_plan.exp()


def sum_of_codes(codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """The vectors [B, D] that `codes [B, M]` stand for: the sum of their code vectors."""
    return torch.stack([book[codes[:, level]] for level, book in enumerate(codebooks)]).sum(0)


def kmeans(vectors: Tensor, num_codes: int, *, seed: int, iterations: int = 25) -> Tensor:
    """Centroids [C, D] of `vectors [B, D]`, on their device; deterministic for a seed.

    C is num_codes, or fewer: the distinct vectors where there are no more of them than codes, and never a
    centroid that is nearest to no vector. Duplicates count as often as they occur. Starts by greedy k-means++
    (Arthur & Vassilvitskii 2007) on a sample of 32 vectors a code.
    """
    import faiss
    from sklearn.cluster import kmeans_plusplus

    distinct, counts = torch.unique(vectors.detach().cpu().float(), dim=0, return_counts=True)
    if distinct.shape[0] <= num_codes:
        whole: Tensor = distinct.to(vectors.device)
        return whole
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
    """Codes [B] and centroids [C, D] of clusters whose sizes differ by at most one, from a first set of centroids.

    OneRec, arXiv 2502.18965, algorithm 1: one cluster after another takes the B / C nearest of the `vectors [B, D]`
    that are left, and its centroid becomes their mean; again until nothing changes, at most `iterations` times. The
    first B mod C clusters have the one more.
    """
    count, size = len(vectors), len(centroids)
    shares = [count // size + (code < count % size) for code in range(size)]
    codes = torch.full((count,), -1, dtype=torch.int64, device=vectors.device)
    for _ in range(iterations):
        former, codes = codes, torch.full_like(codes, -1)
        left = torch.arange(count, device=vectors.device)
        table = []
        for code, share in enumerate(shares):
            distances = (vectors[left] - centroids[code]).square().sum(1)
            taken = torch.zeros(len(left), dtype=torch.bool, device=left.device)
            taken[distances.argsort(stable=True)[:share]] = True
            codes[left[taken]] = code
            table.append(vectors[left[taken]].mean(0) if share else centroids[code])
            left = left[~taken]
        centroids = torch.stack(table)
        if torch.equal(codes, former):
            break
    return codes, centroids
