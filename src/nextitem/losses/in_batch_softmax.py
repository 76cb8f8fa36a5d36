"""Cross-entropy of each row's own column among those of all rows (and of further sampled items)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def in_batch_softmax(scores: Tensor, *, log_q: Tensor | None = None, positives: Tensor | None = None) -> Tensor:
    """Mean over B of -log softmax(scores - log_q)[b, positives[b]], scalar; differentiable once, by the scores.

    `scores [B, M]`: the positive of row b is column b (M >= B), or column `positives[b]` where rows share columns;
    other columns are its negatives; -inf leaves a column out of a row. `log_q`, [M] or [B, M]: log of how likely each
    column's item was to be there (Bengio and Senecal 2008).
    """
    logits = scores if log_q is None else scores - log_q
    if positives is None:
        positives = torch.arange(len(scores), device=scores.device)
    loss: Tensor = _InBatchSoftmax.apply(logits, positives[:, None])  # type: ignore[no-untyped-call]
    return loss


class _InBatchSoftmax(torch.autograd.Function):
    """Keeps the probabilities, which are the gradient but for the positives: three passes over the scores, not five."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, positives: Tensor) -> Tensor:
        own = logits.gather(1, positives).to(torch.promote_types(logits.dtype, torch.float32))
        probabilities = logits.to(own.dtype).softmax(1)
        # Of the highest logit it is 1 / M or more, so its log is exact however unlikely the positive is.
        normaliser = logits.amax(1, keepdim=True).to(own.dtype) - probabilities.amax(1, keepdim=True).log()
        probabilities.scatter_add_(1, positives, -torch.ones_like(own))
        ctx.save_for_backward(probabilities)
        ctx.dtype = logits.dtype
        return (normaliser - own).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (probabilities,) = ctx.saved_tensors
        found: Tensor = probabilities * (grad / len(probabilities))
        return found.to(ctx.dtype), None
