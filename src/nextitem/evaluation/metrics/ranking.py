"""Metrics of scored candidates with labels: AUC, GAUC, log-loss, normalised entropy, calibration error."""

from __future__ import annotations

import torch
from torch import Tensor


def auc(scores: Tensor, labels: Tensor) -> float:
    """Return the probability that a random positive scores above a random negative; a tie counts half.

    NaN if one of the two labels does not occur.
    """
    group = torch.zeros(len(scores), dtype=torch.int64)
    return float(_auc_by_group(scores, labels, group, 1)[0])


def gauc(scores: Tensor, labels: Tensor, groups: Tensor) -> tuple[float, int]:
    """Return the mean AUC over groups, weighted by their impressions, and the number of skipped groups.

    A group is a user, or a request if its user is unknown. Groups with one label only are skipped. The mean is NaN if
    no group has both labels. Zhu et al. 2017, eq. 4.
    """
    terms = gauc_terms(scores, labels, groups)
    return float(terms.nanmean()) if len(terms) else float("nan"), int(terms.isnan().sum())


def gauc_terms(scores: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Return what each group, in the order of their numbers, contributes to GAUC: the mean of these values is GAUC.

    A value is the AUC of the group times its impressions over the mean impressions of a judged group; NaN if the group
    has one label only. [number of groups] float64. Two models are compared by their values of the same groups.
    """
    distinct, group = torch.unique(groups, return_inverse=True)
    values = _auc_by_group(scores, labels, group, len(distinct))
    sizes = torch.bincount(group, minlength=len(distinct)).double()
    return values * sizes / sizes[~values.isnan()].mean()


def log_loss(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood of 0/1 labels in nats; probabilities are clipped to 1e-7 .. 1 - 1e-7."""
    clipped = probabilities.double().clamp(1e-7, 1 - 1e-7)
    return float(-(labels.double() * clipped.log() + (1 - labels.double()) * (1 - clipped).log()).mean())


def normalised_entropy(probabilities: Tensor, labels: Tensor) -> float:
    """Return the log-loss over that of a constant prediction, the mean of the labels.

    It is below 1 if the scores predict better than the constant, and NaN if one of the two labels does not occur. He et
    al., ADKDD 2014, eq. 1.
    """
    mean = labels.double().mean()
    if not 0 < float(mean) < 1:
        return float("nan")
    return log_loss(probabilities, labels) / log_loss(mean.expand(len(labels)), labels)


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 10) -> float:
    """Return the mean over bins of |mean probability - share of positives|, weighted by the size of the bin.

    NaN without scores. The bins are those of `calibration_bins` (ECE with equal mass: Nixon et al. 2019, arXiv
    1904.01685).
    """
    if not len(labels):
        return float("nan")
    predicted, observed, counts = calibration_bins(probabilities, labels, bins=bins)
    return float(((predicted - observed).abs() * counts).sum() / counts.sum())


def calibration_bins(probabilities: Tensor, labels: Tensor, *, bins: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean probability, share of positives and number of scores of each bin, in the order of the probabilities.

    Bins contain the same number of scores, up to one; there are fewer bins if there are fewer scores. The labels of
    equal scores are spread evenly over them, so that their order does not matter. Three tensors [bins] float64.
    """
    probabilities, order = probabilities.double().sort(stable=True)
    run = torch.unique_consecutive(probabilities, return_inverse=True)[1]
    run_sizes = torch.bincount(run)
    share = torch.zeros(len(run_sizes), dtype=torch.float64).index_add_(0, run, labels[order].double()) / run_sizes
    bins = min(bins, len(probabilities))
    bin_of = torch.arange(len(probabilities)) * bins // max(1, len(probabilities))
    counts = torch.bincount(bin_of, minlength=bins).double()
    predicted = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, probabilities)
    observed = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, share[run])
    return predicted / counts, observed / counts, counts


def _auc_by_group(scores: Tensor, labels: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Return the AUC of each group by mid-ranks, NaN if a label does not occur in it, [num_groups] float64."""
    order = scores.double().argsort(stable=True)
    order = order[group[order].argsort(stable=True)]  # by group, then by score
    ordered_group, ordered = group[order], scores.double()[order]
    new_run = torch.ones(len(order), dtype=torch.bool)
    new_run[1:] = (ordered_group[1:] != ordered_group[:-1]) | (ordered[1:] != ordered[:-1])
    run = new_run.cumsum(0) - 1
    run_length = torch.bincount(run) if len(run) else run
    run_start = run_length.cumsum(0) - run_length
    sizes = torch.bincount(group, minlength=num_groups)
    group_start = sizes.cumsum(0) - sizes
    mid_rank = run_start[run] + (run_length[run] + 1) / 2 - group_start[ordered_group]
    positive = labels[order].double()
    num_positives = torch.zeros(num_groups, dtype=torch.float64).index_add_(0, ordered_group, positive)
    rank_sum = torch.zeros(num_groups, dtype=torch.float64).index_add_(0, ordered_group, mid_rank * positive)
    num_negatives = sizes - num_positives
    num_pairs = num_positives * num_negatives
    wins = rank_sum - num_positives * (num_positives + 1) / 2
    return torch.where(num_pairs > 0, wins / num_pairs.clamp(min=1), torch.nan)
