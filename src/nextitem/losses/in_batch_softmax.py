"""Cross-entropy of each row's own column among those of all rows (and of further sampled items)."""

from __future__ import annotations

import torch
from torch import Tensor


def in_batch_softmax(scores: Tensor, *, log_q: Tensor | None = None, positives: Tensor | None = None) -> Tensor:
    """Mean over B of -log softmax(scores - log_q)[b, positives[b]], scalar.

    `scores [B, M]`: the positive of row b is column b (M >= B), or column `positives[b]` where rows share columns;
    other columns are its negatives; -inf leaves a column out of a row. `log_q`, [M] or [B, M]: log of how likely each
    column's item was to be there (Bengio and Senecal 2008).
    """
    logits = scores if log_q is None else scores - log_q
    if positives is None:
        positives = torch.arange(len(scores), device=scores.device)
    return torch.nn.functional.cross_entropy(logits, positives)
