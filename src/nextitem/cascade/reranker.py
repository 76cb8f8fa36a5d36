"""Reranker: base class of models that select and order the final list from ranked candidates.

Shapes: B requests, K candidates of each request, k items of the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextitem.core import config as configs
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.recommendations import Recommendations, Relaxation

TIE_DIGITS = 9  # decimals to which keys are rounded before they are compared, so that rounding errors decide nothing


class Reranker(nn.Module, ABC):
    """Model that selects k of the candidates of each request and orders them.

    It returns candidates only. So exclusions and allow-lists that the candidates respect are respected by its answer.
    """

    Config: ClassVar[type[configs.Config]]

    def __init__(self, config: configs.Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.catalog = catalog

    @torch.inference_mode()
    def rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        """Return the lists to show, best first.

        Args:
            candidates: candidates of each request, best first. Candidates with equal scores are treated in the order of
                their item numbers, whatever their order in the list.
            batch: the requests.
            k: number of items of each list.

        Returns:
            Lists [B, k] with ordered_by="reranking", in which each item keeps its score and channel. A list is shorter
            than k, and padded, if there are fewer candidates or a filter drops some.

        Raises:
            ValueError: k < 1, the number of lists of candidates differs from the number of requests, or the score of a
                candidate is NaN or infinite.

        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if len(candidates.item_ids) != batch.num_requests:
            raise ValueError(f"{len(candidates.item_ids)} lists of candidates for {batch.num_requests} requests")
        if not bool((candidates.scores.isfinite() | (candidates.item_ids == 0)).all()):
            raise ValueError("scores of candidates must be finite, and some are NaN or infinite")
        return self._rerank(_sort_ties_by_item_id(candidates), batch, k)

    @abstractmethod
    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        """Return the lists [B, k]; implementations build them with `select_candidates`."""


def relevance(candidates: Recommendations) -> Tensor:
    """Return the relevance of the candidates, [B, K] float64: 1 for the best of a request, 0 for the last.

    If scores order the candidates, relevance is their scores scaled to that range; else it depends on their ranks
    alone. It is 1 for all candidates of a request if they are equal, and 0 at padding.
    """
    is_candidate = candidates.item_ids > 0
    if candidates.ordered_by == "score":
        values = candidates.scores.double()
    else:
        ranks = torch.arange(is_candidate.shape[1], dtype=torch.float64, device=is_candidate.device)
        values = -ranks.expand(is_candidate.shape)
    if not is_candidate.shape[1]:
        return values
    low = values.masked_fill(~is_candidate, torch.inf).amin(1, keepdim=True)
    span = values[:, :1] - low
    return torch.where(is_candidate, torch.where(span > 0, (values - low) / span, 1.0), 0.0)


def availability(candidates: Recommendations) -> Tensor:
    """Return a term [B, K] float64 to add to keys: 0 for candidates, -inf at padding.

    Re-rankers that select items one by one write -inf over the items that they have selected.
    """
    return torch.zeros_like(candidates.scores, dtype=torch.float64).masked_fill_(candidates.item_ids == 0, -torch.inf)


def best_candidate(keys: Tensor) -> Tensor:
    """Return the index [B, 1] of the largest of `keys [B, K]`; of equal keys the first, which is the most relevant."""
    return keys.round(decimals=TIE_DIGITS).argmax(1, keepdim=True)


def sum_by_value(codes: Tensor, weights: Tensor) -> Tensor:
    """Return for each candidate the sum of `weights [B, K]` over the request's candidates of the same code, [B, K]."""
    local = torch.unique(codes, return_inverse=True)[1]
    sums = weights.new_zeros((len(codes), int(local.max()) + 1 if local.numel() else 0))
    return sums.scatter_add_(1, local, weights).gather(1, local)


def select_candidates(
    candidates: Recommendations, selection: Tensor, k: int, *, relaxations: Sequence[Relaxation] = ()
) -> Recommendations:
    """Build the answer of a re-ranker from the indices of the selected candidates.

    Args:
        candidates: the candidates [B, K].
        selection: indices [B, at most k] of candidates, best first; -1, at the tail only, means no item. Entries beyond
            the number of a row's candidates, which occur in a batch of unequal rows, are ignored.
        k: number of items of each list; shorter lists are padded.
        relaxations: rules that do not hold in the answer, appended to those of the candidates.

    Returns:
        Lists [B, k] with ordered_by="reranking"; each item keeps its score and channel.

    """
    num_candidates = (candidates.item_ids > 0).sum(1, keepdim=True)
    slots = torch.arange(selection.shape[1], device=selection.device)
    is_empty = (selection < 0) | (slots >= num_candidates)
    missing = (0, k - selection.shape[1])

    def select(values: Tensor, filler: float) -> Tensor:
        if not values.shape[1]:
            return values.new_full((len(values), k), filler)
        return F.pad(values.gather(1, selection.clamp(min=0)).masked_fill(is_empty, filler), missing, value=filler)

    return Recommendations(
        select(candidates.item_ids, 0),
        select(candidates.scores, -torch.inf),
        ordered_by="reranking",
        fallback=candidates.fallback,
        channel=None if candidates.channel is None else select(candidates.channel, 0),
        channels=candidates.channels,
        relaxations=[*candidates.relaxations, *relaxations],
    )


def _sort_ties_by_item_id(candidates: Recommendations) -> Recommendations:
    """Sort candidates with equal scores by item number; return them unchanged if scores do not order them."""
    if candidates.ordered_by != "score":
        return candidates
    by_number = candidates.item_ids.masked_fill(candidates.item_ids == 0, torch.iinfo(torch.int64).max).argsort(1)
    order = by_number.gather(1, candidates.scores.gather(1, by_number).argsort(dim=1, descending=True, stable=True))
    return Recommendations(
        candidates.item_ids.gather(1, order),
        candidates.scores.gather(1, order),
        fallback=candidates.fallback,
        channel=None if candidates.channel is None else candidates.channel.gather(1, order),
        channels=candidates.channels,
        relaxations=candidates.relaxations,
    )
