"""Cross-entropy between the shares of a request's labels and the softmax of its scores."""

from __future__ import annotations

from torch import Tensor

from nextitem.core.jagged import Jagged

NEVER = -1e9  # a logit so low that its softmax is 0; -inf would make 0 * -inf of it


def label_shares(logits: Tensor, labels: Tensor, candidates: Jagged) -> Tensor:
    """Return the mean over requests of -sum_c share_c log softmax_c, scalar, for `logits [P]` and `labels [P]`.

    A candidate's share is its label above 0 over the sum of its request's; a request without such a label adds 0.
    A candidate whose label is NaN (not known) is none of its request (the rows of `candidates`).
    """
    padded = candidates.with_values(logits.masked_fill(labels.isnan(), NEVER)).to_padded(fill=NEVER)
    shares = candidates.with_values(labels.nan_to_num(0).clamp(min=0).to(logits.dtype)).to_padded()
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
    return -(shares * padded.log_softmax(1)).sum(1).mean()
