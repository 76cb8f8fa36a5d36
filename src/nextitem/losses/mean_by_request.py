"""Mean of losses of candidates in which every request counts alike, whatever it shows."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_by_request(values: Tensor, rows: Tensor, *, num_requests: int, is_known: Tensor) -> Tensor:
    """Return the mean over requests of the mean of `values [P]` over a request's known candidates, scalar.

    `rows [P]` is the request of each candidate; those that `is_known [P]` leaves out count nowhere. A request without
    a known candidate adds 0.
    """
    sizes = torch.bincount(rows[is_known], minlength=num_requests).clamp(min=1)
    return ((values * is_known) / sizes[rows]).sum() / max(1, num_requests)
