"""Generalised binary cross-entropy: corrects the overconfidence caused by negative sampling (arXiv 2308.07192)."""

from __future__ import annotations

import torch
from torch import Tensor


def gbce(
    hidden: Tensor, table: Tensor, targets: Tensor, *, negatives: Tensor, calibration: float, num_items: int
) -> Tensor:
    """Return the generalised binary cross-entropy, a mean over T, scalar.

    It is -(beta log s(positive) + sum log(1 - s(negative))) / (S + 1). s is the sigmoid function; the score of
    an item is hidden . item.

    Args:
        hidden: hidden states [T, D].
        table: item vectors [N + 1, D].
        targets: positive item of each position [T].
        negatives: uniformly sampled items [T, S]; negatives that equal the target are not removed.
        calibration: t of the paper: 0 is plain BCE, 1 the fully calibrated loss.
        num_items: number of items of the catalogue (N).

    """
    beta = positive_power(negatives.shape[1] / max(1, num_items - 1), calibration)
    positive = calibrated_logit((hidden * table[targets]).sum(1), beta)
    negative = torch.einsum("td,tsd->ts", hidden, table[negatives])
    softplus = torch.nn.functional.softplus
    terms = softplus(-positive) + softplus(negative).double().sum(1)
    return (terms / (negatives.shape[1] + 1)).mean().to(hidden.dtype)


def positive_power(sampling_rate: float, calibration: float) -> float:
    """Return the power beta of the positive probability, eq. 12: 1 at calibration 0, the sampling rate at 1."""
    rate = min(1.0, sampling_rate)
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def calibrated_logit(logit: Tensor, beta: float) -> Tensor:
    """Return the logit whose sigmoid is s ** beta with s = sigmoid(logit), in float64: -log(s ** -beta - 1), eq. 14."""
    probability = torch.sigmoid(logit.double())
    power = probability.clamp(min=1e-10, max=1 - 1e-10).pow(-beta).clamp(min=1 + 1e-10, max=1e10)
    return -torch.log(power - 1)
