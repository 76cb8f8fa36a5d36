"""Calibration: curves that turn scores into probabilities that match observed rates.

Platt 1999 (a logistic curve); Zadrozny & Elkan 2002 (isotonic regression).

Shapes: P scores, V steps of an isotonic curve.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F


class Platt(nn.Module):
    """Logistic calibration curve: sigmoid(slope * score + shift), slope >= 0.

    Before it is fitted, the slope is 1 and the shift is 0.
    """

    slope: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.ones((), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def fit(self, scores: Tensor, labels: Tensor) -> None:
        """Fit the curve of maximum likelihood to scores [P] with 0/1 labels [P], with Platt's smoothed targets.

        A falling curve is never used: if it would fit best, all scores get the mean of the targets.

        Raises:
            ValueError: only one of the two labels occurs, or scores and labels differ in number.

        """
        scores, targets = scores.double(), smoothed_targets(scores, labels)
        centre, scale = scores.mean(), scores.std(correction=0)
        slope, shift = 0.0, float(torch.logit(targets.mean()))
        if float(scale) > 0:
            best = _logistic_curve((scores - centre) / scale, targets)
            slope, shift = best if best[0] > 0 else (slope, shift)
        rise = slope / scale if slope else scale.new_zeros(())
        self.slope.copy_(rise)
        self.shift.copy_(shift - rise * centre)

    def forward(self, scores: Tensor) -> Tensor:
        """Return the probabilities of the scores, in their shape, float32."""
        return torch.sigmoid(self.slope * scores.double() + self.shift).float()

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """Return the logs of the probabilities in float64; finite for finite scores."""
        return F.logsigmoid(self.slope * scores.double() + self.shift)


class Isotonic(nn.Module):
    """Isotonic calibration curve: the rising curve with the least squared error.

    It is linear between its steps and constant beyond them. It is fitted to Platt's smoothed targets, since P examples
    cannot show a probability of exactly 0 or 1. All scores within a step get the same probability, so their order is
    lost. Before it is fitted, it is the logistic function.
    """

    steps: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(0, dtype=torch.float64))  # [V], rising
        self.register_buffer("values", torch.zeros(0, dtype=torch.float64))  # [V]

    @torch.no_grad()
    def fit(self, scores: Tensor, labels: Tensor) -> None:
        """Fit the curve to scores [P] with 0/1 labels [P].

        Raises:
            ValueError: only one of the two labels occurs, or scores and labels differ in number.

        """
        targets = smoothed_targets(scores, labels)
        curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        curve.fit(scores.double().cpu().numpy(), targets.cpu().numpy())
        self.steps = torch.from_numpy(curve.X_thresholds_.copy()).to(scores.device)
        self.values = torch.from_numpy(curve.y_thresholds_.copy()).to(scores.device)

    def forward(self, scores: Tensor) -> Tensor:
        """Return the probabilities of the scores, in their shape."""
        if not len(self.steps):
            return torch.sigmoid(scores)
        return self._values_at(scores).float()

    def log_probabilities(self, scores: Tensor) -> Tensor:
        """Return the logs of the probabilities in float64; finite for finite scores."""
        if not len(self.steps):
            return F.logsigmoid(scores.double())
        return self._values_at(scores).log()

    def _values_at(self, scores: Tensor) -> Tensor:
        """Return the values of the curve at the scores, float64."""
        scores = scores.double().clamp(self.steps[0], self.steps[-1])
        right = torch.searchsorted(self.steps, scores).clamp(min=1, max=max(1, len(self.steps) - 1))
        steps, values = F.pad(self.steps, (0, 1), value=float("inf")), F.pad(self.values, (0, 1))
        left = right - 1
        fraction = (scores - steps[left]) / (steps[right] - steps[left])
        return torch.lerp(values[left], values[right], fraction)


Curve = Platt | Isotonic


def calibration(kind: Literal["platt", "isotonic"]) -> Curve:
    """Return an unfitted calibration curve of a kind."""
    return Platt() if kind == "platt" else Isotonic()


def smoothed_targets(scores: Tensor, labels: Tensor) -> Tensor:
    """Return Platt's smoothed targets [P] float64 for 0/1 labels, as if there were one more example of each label.

    The target of a positive is (positives + 1) / (positives + 2), that of a negative 1 / (negatives + 2). So neither a
    separable set nor a step with one label leads to a probability of 0 or 1.

    Raises:
        ValueError: only one of the two labels occurs, or scores and labels differ in number.

    """
    if scores.shape != labels.shape:
        raise ValueError(f"calibration needs as many labels as scores: {len(labels)} labels, {len(scores)} scores")
    is_positive = labels > 0
    num_positive = is_positive.sum().double()
    if not 0 < int(num_positive) < len(labels):
        raise ValueError(f"calibration needs both labels: {int(num_positive)} of {len(labels)} are positive")
    return torch.where(is_positive, (num_positive + 1) / (num_positive + 2), 1 / (len(labels) - num_positive + 2))


def _logistic_curve(inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return slope and shift of the logistic curve of maximum likelihood for targets between 0 and 1."""
    weights = targets.cpu().numpy()
    # A target t counts as one example of each label, with weights t and 1 - t.
    curve = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10).fit(
        np.tile(inputs.cpu().numpy(), 2)[:, None],
        np.repeat([1, 0], len(weights)),
        sample_weight=np.concatenate([weights, 1 - weights]),
    )
    return float(curve.coef_[0, 0]), float(curve.intercept_[0])
