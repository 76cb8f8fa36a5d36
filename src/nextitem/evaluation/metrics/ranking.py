"""Metrics of scored candidates with labels: AUC, GAUC, log-loss, normalised entropy, calibration error."""

from __future__ import annotations

import torch
from torch import Tensor


def auc(scores: Tensor, labels: Tensor) -> float:
    """Chance that a random positive scores above a random negative, a tie counting half; NaN without both."""
    group = torch.zeros(len(scores), dtype=torch.int64)
    return float(_auc_by_group(scores, labels, group, 1)[0])


def gauc(scores: Tensor, labels: Tensor, groups: Tensor) -> tuple[float, int]:
    """Mean AUC over the groups (users, else requests) that have both labels, weighted by their impressions.

    Returns the mean and the number of groups left out for having one label only. Zhu et al. 2017, eq. 4.
    """
    distinct, group = torch.unique(groups, return_inverse=True)
    values = _auc_by_group(scores, labels, group, len(distinct))
    sizes = torch.bincount(group, minlength=len(distinct)).double()
    judged = ~values.isnan()
    if not bool(judged.any()):
        return float("nan"), len(distinct)
    mean = (values[judged] * sizes[judged]).sum() / sizes[judged].sum()
    return float(mean), int((~judged).sum())


def log_loss(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of 0/1 labels, in nats; probabilities are clipped to 1e-7 .. 1 - 1e-7."""
    clipped = probabilities.double().clamp(1e-7, 1 - 1e-7)
    return float(-(labels.double() * clipped.log() + (1 - labels.double()) * (1 - clipped).log()).mean())


def normalised_entropy(probabilities: Tensor, labels: Tensor) -> float:
    """Log-loss over that of always saying the labels' mean: below 1 where the scores tell more; NaN without both.

    He et al., ADKDD 2014, eq. 1.
    """
    mean = labels.double().mean()
    if not 0 < float(mean) < 1:
        return float("nan")
    return log_loss(probabilities, labels) / log_loss(mean.expand(len(labels)), labels)


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 10) -> float:
    """Mean over bins of |mean probability - share of positives|, weighted by size; NaN for no scores.

    Bins hold equally many scores, one more or less (ECE with equal mass: Nixon et al. 2019, arXiv 1904.01685);
    scores that are equal have their labels spread evenly, so that their order does not matter.
    """
    if not len(labels):
        return float("nan")
    probabilities, order = probabilities.double().sort(stable=True)
    run = torch.unique_consecutive(probabilities, return_inverse=True)[1]
    counts = torch.bincount(run)
    share = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, run, labels[order].double()) / counts
    gap = probabilities - share[run]
    bin_of = torch.arange(len(gap)) * bins // len(gap)
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, gap)
    return float(sums.abs().sum() / len(gap))


def _auc_by_group(scores: Tensor, labels: Tensor, group: Tensor, count: int) -> Tensor:
    """AUC of each group by mid-ranks, [count] float64, NaN where a label is missing."""
    order = scores.double().argsort(stable=True)
    order = order[group[order].argsort(stable=True)]  # by group, then by score
    ordered_group, ordered = group[order], scores.double()[order]
    new_run = torch.ones(len(order), dtype=torch.bool)
    new_run[1:] = (ordered_group[1:] != ordered_group[:-1]) | (ordered[1:] != ordered[:-1])
    run = new_run.cumsum(0) - 1
    run_length = torch.bincount(run) if len(run) else run
    run_start = run_length.cumsum(0) - run_length
    sizes = torch.bincount(group, minlength=count)
    group_start = sizes.cumsum(0) - sizes
    mid_rank = run_start[run] + (run_length[run] + 1) / 2 - group_start[ordered_group]
    positive = labels[order].double()
    positives = torch.zeros(count, dtype=torch.float64).index_add_(0, ordered_group, positive)
    rank_sum = torch.zeros(count, dtype=torch.float64).index_add_(0, ordered_group, mid_rank * positive)
    negatives = sizes - positives
    pairs = positives * negatives
    return torch.where(pairs > 0, (rank_sum - positives * (positives + 1) / 2) / pairs.clamp(min=1), torch.nan)
