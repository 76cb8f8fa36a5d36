"""Listwise softmax: cross-entropy of each positive over all candidates of its request."""

from __future__ import annotations

import torch
from torch import Tensor


def listwise_softmax(logits: Tensor, labels: Tensor, rows: Tensor, *, num_requests: int) -> Tensor:
    """Return the loss of each candidate, [P]: -log softmax times the number of candidates for positives, 0 for others.

    The softmax and the number are those of the candidates of the same request. So the mean over the candidates of a
    request is the sum over its positives.

    Args:
        logits: scores of the candidates, [P].
        labels: labels of the candidates, [P]: above 0 is positive. A candidate whose label is NaN (unknown) is ignored.
        rows: request of each candidate, [P].
        num_requests: number of requests.

    """
    has_label = ~labels.isnan()
    labelled_logits = logits.masked_fill(~has_label, -torch.inf)
    highest = torch.full((num_requests,), -torch.inf, device=logits.device)
    highest = highest.scatter_reduce(0, rows, labelled_logits.detach(), "amax")
    highest = highest.masked_fill(highest == -torch.inf, 0)  # a request without any known label
    total = torch.zeros(num_requests, device=logits.device).index_add(0, rows, (labelled_logits - highest[rows]).exp())
    sizes = torch.bincount(rows[has_label], minlength=num_requests)
    # The term of the highest logit is 1, so every total is at least 1, unless no label of the request is known.
    losses = highest[rows] + total.clamp(min=1).log()[rows] - logits
    return torch.where(labels > 0, losses * sizes[rows], torch.zeros_like(losses))
