"""Softmax over the candidates of each request: every positive should stand above its whole list."""

from __future__ import annotations

import torch
from torch import Tensor


def listwise_softmax(logits: Tensor, labels: Tensor, rows: Tensor, *, num_requests: int) -> Tensor:
    """Return -log softmax over a request's candidates at its positives, times their number, and 0 elsewhere, [P].

    So the mean over a request's candidates is the sum over its positives. `rows [P]` is the request of each candidate;
    a label above 0 is positive, a candidate whose label is NaN (not known) is none of its request.
    """
    has_label = ~labels.isnan()
    known = logits.masked_fill(~has_label, -torch.inf)
    highest = torch.full((num_requests,), -torch.inf, device=logits.device)
    highest = highest.scatter_reduce(0, rows, known.detach(), "amax")
    highest = highest.masked_fill(highest == -torch.inf, 0)  # a request without any known label
    total = torch.zeros(num_requests, device=logits.device).index_add(0, rows, (known - highest[rows]).exp())
    sizes = torch.bincount(rows[has_label], minlength=num_requests)
    # Its own highest makes every total 1 or more, unless no label is known.
    each = highest[rows] + total.clamp(min=1).log()[rows] - logits
    return torch.where(labels > 0, each * sizes[rows], torch.zeros_like(each))
