"""Searches in long histories for the events that matter to a candidate.

Pi et al., Search-based Interest Model, arXiv 2006.05639, section 3.2 (the general search unit, hard and soft).

Shapes: B requests, T events of all histories, P candidates of all requests, K found, D width.
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
    """Events found for each candidate: `places [P, K]` among the T events (0 where there is none), `real [P, K]`."""

    places: Tensor
    real: Tensor


def search_same(codes: Jagged, wanted_P: Tensor, rows_P: Tensor, k: int) -> SearchResult:
    """The latest `k` events of a candidate's request whose code (Jagged [T], a category) is the candidate's.

    Code 0, what is not known, is not found. Events are ordered once by request and code, which takes T log T; then a
    candidate costs two binary searches, however long the history.
    """
    span = int(max(codes.values.max() if len(codes.values) else 0, wanted_P.max() if len(wanted_P) else 0)) + 1
    keys, order = (codes.row_ids() * span + codes.values).sort(stable=True)
    asked = rows_P * span + wanted_P
    first, end = torch.searchsorted(keys, asked), torch.searchsorted(keys, asked, right=True)
    at = end[:, None] - torch.arange(min(k, max(1, len(order))), 0, -1, device=end.device)
    real = (at >= first[:, None]) & (wanted_P > 0)[:, None]
    return SearchResult(F.pad(order, (0, 1))[at.clamp(min=0)] * real, real)


def search_nearest(keys: Jagged, queries: Jagged, k: int) -> SearchResult:
    """The `k` events of a candidate's request with the highest inner products, all of a shorter history.

    `keys` holds vectors [T, D] of the events, `queries` vectors [P, D] of the candidates, request by request.
    """
    rows = queries.row_ids()
    products = queries.to_padded() @ keys.to_padded().transpose(1, 2)  # [B, candidates, L]
    column = torch.arange(len(rows), device=rows.device) - queries.offsets[rows]
    L = products.shape[2]
    real = real_positions(keys.lengths, L)[rows]
    scores = products[rows, column].masked_fill(~real, -torch.inf)
    positions = scores.topk(min(k, L), dim=1).indices
    kept = real.gather(1, positions)
    return SearchResult((keys.offsets[rows, None] + positions) * kept, kept)
