"""Cross-entropy of each row's own column among those of all rows (and of further sampled items)."""

from __future__ import annotations

import torch
from torch import Tensor


def in_batch_softmax(scores: Tensor, *, log_q: Tensor | None = None) -> Tensor:
    """Mean over B of -log softmax(scores - log_q)[b, b], scalar.

    `scores [B, M]`, M >= B: column b is the positive of row b and a negative of the others, columns from B on are
    negatives of all; -inf leaves a column out of a row. `log_q [M]`: log of how likely each column's item was to be
    there (Bengio and Senecal 2008).
    """
    logits = scores if log_q is None else scores - log_q
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(scores), device=scores.device))
