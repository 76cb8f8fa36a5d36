"""Vector quantisation by nearest code, level by level on what the earlier levels left over.

Shapes: B rows, D width, M levels, C codes of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class ResidualCodes:
    """Outcome of residual quantisation.

    codes      [B, M] int64
    residuals  M tensors [B, D]: what each level was asked to quantise; the first is the input
    chosen     M tensors [B, D]: the code vectors taken
    """

    codes: Tensor
    residuals: tuple[Tensor, ...]
    chosen: tuple[Tensor, ...]

    @property
    def quantised(self) -> Tensor:
        """Sum of the chosen code vectors, [B, D]."""
        return torch.stack(self.chosen).sum(0)


def residual_quantise(vectors: Tensor, codebooks: Sequence[Tensor]) -> ResidualCodes:
    """Quantises `vectors [B, D]` with M codebooks [C_m, D]: r_0 = x, c_m = argmin ||r_m - e||^2, r_m+1 = r_m
    - e_c.

    What is subtracted is sg(e) (Lee et al. 2022, eq. 2; stop-gradient): a residual keeps the gradient of the
    input at every level. Subtracting a straight-through output instead, r + sg(e - r), would cancel it from
    the second level on.
    """
    codes, residuals, chosen = [], [], []
    residual = vectors
    for codebook in codebooks:
        code = nearest_code(residual.detach(), codebook.detach())
        entry = codebook[code]
        codes.append(code)
        residuals.append(residual)
        chosen.append(entry)
        residual = residual - entry.detach()
    return ResidualCodes(torch.stack(codes, dim=1), tuple(residuals), tuple(chosen))


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
