"""Search in long histories for the events that are relevant to a candidate.

Pi et al., Search-based Interest Model, arXiv 2006.05639, section 3.2 (the general search unit, hard and soft).

Shapes: B requests, T events of all histories, P candidates of all requests, K events returned, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nextitem.core.jagged import Jagged
from nextitem.nn.attention.target_attention import real_positions


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Events that a search returned for each candidate.

    Attributes:
        places: [P, K] int64: indices of the events among the T events; 0 in padding.
        real: [P, K] bool: False in padding.

    """

    places: Tensor
    real: Tensor


def search_same(codes: Jagged, candidate_codes_P: Tensor, rows_P: Tensor, k: int) -> SearchResult:
    """Return the latest `k` events of each candidate's request that have the candidate's code.

    Events are sorted once by request and code, which takes T log T. Then a candidate costs two binary searches,
    however long the history.

    Args:
        codes: code (a category) of each of the T events. Events with code 0 (missing) are never returned.
        candidate_codes_P: code of each candidate.
        rows_P: index of the request of each candidate.
        k: largest number of events for each candidate.

    """
    num_events, num_candidates = len(codes.values), len(candidate_codes_P)
    span = int(max(codes.values.max() if num_events else 0, candidate_codes_P.max() if num_candidates else 0)) + 1
    keys, order = (codes.row_ids() * span + codes.values).sort(stable=True)
    candidate_keys = rows_P * span + candidate_codes_P
    first, end = torch.searchsorted(keys, candidate_keys), torch.searchsorted(keys, candidate_keys, right=True)
    positions = end[:, None] - torch.arange(min(k, max(1, len(order))), 0, -1, device=end.device)
    is_real = (positions >= first[:, None]) & (candidate_codes_P > 0)[:, None]
    return SearchResult(F.pad(order, (0, 1))[positions.clamp(min=0)] * is_real, is_real)


def search_nearest(keys: Jagged, queries: Jagged, k: int) -> SearchResult:
    """Return the `k` events of each candidate's request with the highest inner products.

    All events of a history with fewer than `k` are returned.

    Args:
        keys: vectors [T, D] of the events.
        queries: vectors [P, D] of the candidates, request by request.
        k: largest number of events for each candidate.

    """
    rows = queries.row_ids()
    products = queries.to_padded() @ keys.to_padded().transpose(1, 2)  # [B, candidates, L]
    column = torch.arange(len(rows), device=rows.device) - queries.offsets[rows]
    L = products.shape[2]
    is_event = real_positions(keys.lengths, L)[rows]
    scores = products[rows, column].masked_fill(~is_event, -torch.inf)
    positions = scores.topk(min(k, L), dim=1).indices
    is_real = is_event.gather(1, positions)
    return SearchResult((keys.offsets[rows, None] + positions) * is_real, is_real)
