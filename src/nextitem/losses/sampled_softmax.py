"""Sampled softmax: cross-entropy over the target and sampled items, corrected for their sampling probabilities."""

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
    is_excluded: Tensor | None = None,
) -> Tensor:
    """Return the mean over T of the cross-entropy of the target among itself and S sampled items, scalar.

    A negative that equals the target is excluded. A position without any negative adds 0.

    Args:
        hidden: hidden states [T, D].
        table: item vectors [N + 1, D].
        targets: positive item of each position [T].
        negatives: sampled items: [S] for all positions, [T, S] for each position, or [B, S] with `lengths`: row b for
            the next `lengths[b]` positions (a sequence).
        lengths: number of positions of each sequence [B].
        log_q: log of the expected number of samples of each item [N + 1]. It is subtracted from every logit, which
            makes the sampled softmax consistent with the full softmax (Bengio and Senecal 2008).
        is_excluded: further negatives to exclude, bool, of the shape of `negatives`.

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
        is_excluded = None if is_excluded is None else is_excluded.repeat_interleave(lengths, dim=0)
    if log_q is not None:
        positive = positive - log_q[targets][:, None]
        sampled = sampled - log_q[negatives]
    is_target = targets[:, None] == negatives
    sampled = sampled.masked_fill_(is_target if is_excluded is None else is_target | is_excluded, -torch.inf)
    return (torch.logaddexp(positive[:, 0], sampled.logsumexp(1)) - positive[:, 0]).mean()
