"""Probabilities of items from the scores of an ItemScorer, so that scores of different models can be combined.

    share:    p = s ** (1/T) / sum s ** (1/T)          for scores that are weights or counts, at least 0
    softmax:  p = exp(s / T) / sum exp(s / T)          for scores that are logits

Both are the softmax of log-weights divided by a temperature T, which is why one temperature serves both: below 1 it
favours the best items more, above 1 less.

Shapes: B requests, N items.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Transform = Literal["share", "softmax"]


def item_probabilities(
    scores: Tensor, transform: Transform, *, temperature: float = 1.0, unseen: Tensor | None = None
) -> Tensor:
    """Return the probability of every item for each request, [B, N + 1]; each row sums to 1, and column 0 is 0.

    With `share`, a row of zeros stays a row of zeros: such a scorer knows nothing of the request.

    Args:
        scores: scores of all items, [B, N + 1] (roles.ItemScorer). They are not changed.
        transform: how scores become probabilities.
        temperature: divides the logarithm of the probabilities before they are normalised; above 0.
        unseen: items that the scorer cannot rank, bool [N + 1], or None. Their probability is 0.

    Raises:
        ValueError: a score is NaN or infinite, or `share` gets a negative one.

    """
    low = _lowest(scores, unseen)
    if transform == "share" and low < 0:
        raise ValueError(f"transform 'share' needs scores of at least 0, and one is {low:.6g}; use 'softmax'")
    values = scores.to(torch.promote_types(scores.dtype, torch.float32), copy=True)
    floor = 0.0 if transform == "share" else -torch.inf
    values[:, 0] = floor
    if unseen is not None:
        values.masked_fill_(unseen, floor)
    if transform == "softmax":
        return torch.softmax(values if temperature == 1 else values.div_(temperature), dim=1)
    values /= values.amax(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)  # no power or sum overflows
    if temperature != 1:
        values.pow_(1 / temperature)
    total = values.sum(1, keepdim=True)
    return values.div_(total.masked_fill_(total == 0, 1.0))


def default_transform(scores: Tensor, *, unseen: Tensor | None = None) -> Transform:
    """Return the transform that suits these scores [B, N + 1]: "share" if none is negative, otherwise "softmax".

    Scores of `unseen` items, bool [N + 1], do not count. Raises ValueError if a score is NaN or infinite.
    """
    return "softmax" if _lowest(scores, unseen) < 0 else "share"


def _lowest(scores: Tensor, unseen: Tensor | None) -> float:
    """Return the lowest score of the items that are not `unseen`; raise ValueError if a score is NaN or infinite."""
    low, high = (float(value) for value in scores[:, 1:].aminmax())
    if not (-torch.inf < low <= high < torch.inf):  # also false for NaN
        raise ValueError("scores that become probabilities must be finite, and some are NaN or infinite")
    # A scorer ranks unseen items last, which can take a score below 0.
    return low if unseen is None or low >= 0 else float(scores[:, ~unseen][:, 1:].amin())
