"""Mean loss of candidates in which every request has the same weight, independent of its number of candidates."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_by_request(values: Tensor, rows: Tensor, *, num_requests: int, is_known: Tensor) -> Tensor:
    """Return the mean over requests of the mean of `values` over the known candidates of a request, scalar.

    A request without a known candidate adds 0.

    Args:
        values: values of the candidates, [P].
        rows: request of each candidate, [P].
        num_requests: number of requests.
        is_known: bool [P]; a candidate for which it is false is ignored.

    """
    sizes = torch.bincount(rows[is_known], minlength=num_requests).clamp(min=1)
    return ((values * is_known) / sizes[rows]).sum() / max(1, num_requests)
