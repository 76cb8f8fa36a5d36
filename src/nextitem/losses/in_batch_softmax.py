"""In-batch softmax: cross-entropy over the targets of all rows of a batch, and over further sampled items."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def in_batch_softmax(scores: Tensor, *, log_q: Tensor | None = None, positives: Tensor | None = None) -> Tensor:
    """Return the mean over B of -log softmax(scores - log_q)[b, positives[b]], scalar.

    It is differentiable once, with respect to `scores`.

    Args:
        scores: [B, M]. One column is the positive of row b, the others are its negatives; -inf removes a column from a
            row.
        log_q: [M] or [B, M], log of the probability with which the item of each column was sampled (Bengio and Senecal
            2008); None: no correction.
        positives: [B], column of the positive of each row, for rows that share columns; None: column b of row b, with
            M >= B.

    """
    if positives is None:
        positives = torch.arange(len(scores), device=scores.device)
    return softmax_of(scores if log_q is None else scores - log_q, positives[:, None])


def softmax_of(logits: Tensor, positives: Tensor) -> Tensor:
    """Return the mean over B of -log softmax(logits)[b, positives[b]], scalar; differentiable once.

    `logits [B, M]`, `positives [B, 1]`. It equals `torch.nn.functional.cross_entropy`, in three passes over the logits
    instead of five: the probabilities are computed once. They are the gradient, up to the term of the positives.
    """
    loss: Tensor = _Softmax.apply(logits, positives)  # type: ignore[no-untyped-call]
    return loss


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, positives: Tensor) -> Tensor:
        exact = torch.promote_types(logits.dtype, torch.float32)
        positive_logits = logits.gather(1, positives)[:, 0].to(exact)
        probabilities = logits.to(exact).softmax(1)
        # The probability of the highest logit is at least 1 / M, so its log is exact even if the positive is unlikely.
        normaliser = logits.amax(1).to(exact) - probabilities.amax(1).log()
        probabilities.scatter_add_(1, positives, torch.full_like(positives, -1, dtype=exact))
        ctx.save_for_backward(probabilities)
        ctx.dtype = logits.dtype
        return (normaliser - positive_logits).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (probabilities,) = ctx.saved_tensors
        return (probabilities * (grad / len(probabilities))).to(ctx.dtype), None


def in_batch_log_q(popularity: Tensor, items: Tensor, *, num_targets: int) -> Tensor:
    """Return the log-probability that each of `items [T]` is among `num_targets` targets sampled from training.

    `popularity [N + 1]` counts training events.
    """
    probability = (popularity / popularity.sum().clamp(min=1)).clamp(1e-9, 0.5)[items]
    return torch.log(-torch.expm1(num_targets * torch.log1p(-probability)))
