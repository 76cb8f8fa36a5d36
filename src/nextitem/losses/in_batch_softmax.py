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
    if positives is None:
        positives = torch.arange(len(scores), device=scores.device)
    return softmax_of(scores if log_q is None else scores - log_q, positives[:, None])


def softmax_of(logits: Tensor, own: Tensor) -> Tensor:
    """Mean over B of -log softmax(logits)[b, own[b]], scalar, for `logits [B, M]`, `own [B, 1]`; differentiable once.

    Like `torch.nn.functional.cross_entropy`, in three passes over the logits instead of five: the probabilities, which
    are the gradient but for the positives, are made once.
    """
    loss: Tensor = _Softmax.apply(logits, own)  # type: ignore[no-untyped-call]
    return loss


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, own: Tensor) -> Tensor:
        exact = torch.promote_types(logits.dtype, torch.float32)
        positives = logits.gather(1, own)[:, 0].to(exact)
        probabilities = logits.to(exact).softmax(1)
        # Of the highest logit it is 1 / M or more, so its log is exact however unlikely the positive is.
        normaliser = logits.amax(1).to(exact) - probabilities.amax(1).log()
        probabilities.scatter_add_(1, own, torch.full_like(own, -1, dtype=exact))
        ctx.save_for_backward(probabilities)
        ctx.dtype = logits.dtype
        return (normaliser - positives).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (probabilities,) = ctx.saved_tensors
        return (probabilities * (grad / len(probabilities))).to(ctx.dtype), None
