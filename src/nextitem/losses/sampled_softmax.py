"""Cross-entropy over the target and sampled items, corrected for how they were sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged
from nextitem.ops.sampled_logits import sampled_logits


def sampled_softmax(
    hidden: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    negatives: Tensor,
    lengths: Tensor | None = None,
    log_q: Tensor | None = None,
    left_out: Tensor | None = None,
) -> Tensor:
    """Mean over T of the cross-entropy of the target among itself and S sampled items, scalar.

    `hidden [T, D]`, `table [N + 1, D]`, `targets [T]`; `negatives [S]` shared by all positions, `[T, S]` for each its
    own, or `[B, S]` with `lengths [B]`, row b for the next `lengths[b]` positions (a sequence). `log_q [N + 1]` is the
    log of each item's expected number of draws; subtracting it from every logit makes the sampled softmax consistent
    with the full one (Bengio and Senecal 2008). A negative that is the target itself is left out, and so is one where
    `left_out` (bool, as negatives) says so; a position without any other adds nothing.
    """
    positive = (hidden * table[targets]).sum(1, keepdim=True)
    if lengths is None and negatives.dim() == 1:
        sampled = hidden @ table[negatives].T
    elif lengths is None:
        sampled = sampled_logits(hidden, table, negatives)
    else:
        padded = Jagged.from_lengths(hidden, lengths).to_padded()
        real = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        sampled = (padded @ table[negatives].transpose(1, 2))[real]
        negatives = negatives.repeat_interleave(lengths, dim=0)
        left_out = None if left_out is None else left_out.repeat_interleave(lengths, dim=0)
    if log_q is not None:
        positive = positive - log_q[targets][:, None]
        sampled = sampled - log_q[negatives]
    never = targets[:, None] == negatives
    sampled = sampled.masked_fill_(never if left_out is None else never | left_out, -torch.inf)
    return (torch.logaddexp(positive[:, 0], sampled.logsumexp(1)) - positive[:, 0]).mean()
