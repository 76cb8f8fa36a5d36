"""Cross-entropy between the normalised labels of a request and the softmax of its scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nextitem.core.jagged import Jagged

NEVER = -1e9  # logit of candidates that do not count: low enough for a softmax of 0; -inf would lead to 0 * -inf


def label_shares(logits: Tensor, labels: Tensor, candidates: Jagged) -> Tensor:
    """Return the cross-entropy between label shares and the softmax of the logits, a mean over requests, scalar.

    It is -sum_c share_c log softmax_c. The share of a candidate is its label divided by the sum of the
    labels of its request; negative labels count as 0. A request without a label above 0 adds 0. A candidate whose label
    is NaN (unknown) is ignored.

    Args:
        logits: scores of the candidates, [P].
        labels: labels of the candidates, [P].
        candidates: the candidates of each request, one row per request.

    """
    padded = candidates.with_values(logits.masked_fill(labels.isnan(), NEVER)).to_padded(fill=NEVER)
    shares = candidates.with_values(labels.nan_to_num(0).clamp(min=0).to(logits.dtype)).to_padded()
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
    return -(shares * padded.log_softmax(1)).sum(1).mean()


def distilled_label_shares(
    logits: Tensor, outcomes: Mapping[str, Tensor], teacher: Mapping[str, Tensor], candidates: Jagged, *, weight: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the loss of each label, and their total: outcomes and the scores of a teacher, or one of the two.

    Args:
        logits: scores of the candidates, [P].
        outcomes: labels of the candidates by name, [P] each.
        teacher: scores of the teacher by name, [P] each.
        candidates: the candidates of each request, one row per request.
        weight: weight of the teacher in the total, if there are outcomes too; outcomes have the rest.

    """
    losses = {name: label_shares(logits, values, candidates) for name, values in {**outcomes, **teacher}.items()}
    teacher_weight = weight if outcomes else 1.0
    weights = {name: teacher_weight if name in teacher else 1 - teacher_weight for name in losses}
    if not teacher:
        weights = dict.fromkeys(losses, 1.0)
    return losses, torch.stack([loss * weights[name] for name, loss in losses.items()]).sum()
