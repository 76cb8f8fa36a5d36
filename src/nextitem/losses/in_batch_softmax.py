"""Cross-entropy of each row's own column among those of all rows (and of further sampled items)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def in_batch_softmax(scores: Tensor, *, log_q: Tensor | None = None) -> Tensor:
    """Mean over B of -log softmax(scores - log_q)[b, b], scalar; differentiable once, by the scores.

    `scores [B, M]`, M >= B: column b is the positive of row b and a negative of the others, columns from B on are
    negatives of all; -inf leaves a column out of a row. `log_q [M]`: log of how likely each column's item was to be
    there (Bengio and Senecal 2008).
    """
    loss: Tensor = _InBatchSoftmax.apply(scores if log_q is None else scores - log_q)  # type: ignore[no-untyped-call]
    return loss


class _InBatchSoftmax(torch.autograd.Function):
    """Keeps the probabilities, which are the gradient but for the positives: three passes over the scores, not five."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        own = logits.diagonal().to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        probabilities = logits.to(own.dtype).softmax(1)
        # Of the highest logit it is 1 / M or more, so its log is exact however unlikely the positive is.
        normaliser = logits.amax(1).to(own.dtype) - probabilities.amax(1).log()
        probabilities.diagonal().sub_(1)
        ctx.save_for_backward(probabilities)
        ctx.dtype = logits.dtype
        return (normaliser - own).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (probabilities,) = ctx.saved_tensors
        found: Tensor = probabilities * (grad / len(probabilities))
        return found.to(ctx.dtype)
