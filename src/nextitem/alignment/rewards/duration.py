"""Duration-aware shaping: what a user thought of a video, when longer videos are played for longer anyway.

OneRec-V2 (arXiv 2508.20900, section 4.1). Videos of similar duration are a bucket: floor(log_base(duration + eps)). The
quality of a play is its quantile among the same user's plays in the bucket. Plays above the batch's top-quartile
threshold of quality are positive (+1), disliked ones negative (-1); the others are 0, and are left out of training.

Notable
- A user with few plays in a bucket has no distribution to speak of: with fewer than `min_plays`, the quantile is that
  among all users' plays in the bucket. The paper does not say what it does.
- Among equal plays the quantile counts those that are at most as long, as the paper writes it. A play that has the
  threshold itself is not above it.

Shapes: T plays.
"""

from __future__ import annotations

import torch
from torch import Tensor


def duration_buckets(durations: Tensor, *, base: float, eps: float = 1e-6) -> Tensor:
    """Return the bucket of each duration [T] in seconds, int64."""
    if bool((durations < 0).any()):
        raise ValueError("durations must be at least 0")
    return torch.floor(torch.log(durations.double() + eps) / torch.log(torch.tensor(base).double())).long()


def play_quantiles(users: Tensor, buckets: Tensor, plays: Tensor, *, min_plays: int) -> Tensor:
    """Return for each play the share of the user's plays in its bucket that are at most as long, [T] float64.

    Users with fewer than `min_plays` plays in a bucket are compared with all users' plays in it.
    """
    own, num_own = _share_at_most(torch.stack([users, buckets], 1), plays)
    of_all, _ = _share_at_most(buckets[:, None], plays)
    return torch.where(num_own >= min_plays, own, of_all)


def duration_advantages(
    users: Tensor,
    durations: Tensor,
    plays: Tensor,
    is_disliked: Tensor,
    *,
    base: float = 2.0,
    min_plays: int = 5,
    top_share: float = 0.25,
) -> Tensor:
    """Return the advantage of each play, [T] float32: 1, -1, or 0 for plays to be left out.

    Args:
        users: [T] int64, number of the user.
        durations: [T], duration of the video in seconds.
        plays: [T], time played in seconds.
        is_disliked: [T] bool.
        base: base of the logarithm of the buckets.
        min_plays: smallest number of plays of a user in a bucket that has a distribution of its own.
        top_share: share of the plays with the highest quantiles that are positive, at most.

    """
    if not len(plays):
        return torch.zeros(0)
    quantiles = play_quantiles(users, duration_buckets(durations, base=base), plays, min_plays=min_plays)
    threshold = quantiles.quantile(1 - top_share)
    return torch.where(is_disliked, -1.0, (quantiles > threshold).float())


def _share_at_most(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each value the share of those with the same key [T, n] that are at most as large, and their number."""
    groups, counts = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)[1:]
    order = values.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    starts = counts.cumsum(0) - counts
    # The rank of the last of equal values: search from the right in (group, value), as ranks of all distinct values.
    distinct = torch.unique(values, return_inverse=True)[1]
    span = int(distinct.max()) + 1
    sorted_keys = (groups * span + distinct)[order]
    ends = torch.searchsorted(sorted_keys, groups * span + distinct, right=True)
    return (ends - starts[groups]).double() / counts[groups].double(), counts[groups]
