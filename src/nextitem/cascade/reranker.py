"""Reranker: the contract of what chooses and orders the list that is shown, out of ranked candidates.

Shapes: B requests, K candidates of each, k items of the answer.
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

TIE_DIGITS = 9  # keys are compared to so many digits: rounding errors decide nothing


class Reranker(nn.Module, ABC):
    """Chooses k of the candidates of each request, and their order.

    It returns candidates only, so whatever held of them (exclusions, allow-lists) holds of its answer.
    """

    Config: ClassVar[type[configs.Config]]

    def __init__(self, config: configs.Config, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.catalog = catalog

    @torch.inference_mode()
    def rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        """The lists to show, [B, k]: best first, ordered_by="reranking", each item with its own score and channel.

        `candidates` stand best first; equal scores count in order of the item numbers, however they come. A list is
        shorter than k, and padded, where there are fewer candidates or a filter drops them. Raises ValueError if k < 1,
        if there are other rows than requests, and if a candidate's score is NaN or infinite.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if len(candidates.item_ids) != batch.num_requests:
            raise ValueError(f"{len(candidates.item_ids)} lists of candidates for {batch.num_requests} requests")
        if not bool((candidates.scores.isfinite() | (candidates.item_ids == 0)).all()):
            raise ValueError("scores of candidates must be finite, and some are NaN or infinite")
        return self._rerank(_ties_by_number(candidates), batch, k)

    @abstractmethod
    def _rerank(self, candidates: Recommendations, batch: SequenceBatch, k: int) -> Recommendations:
        """The answer; ends in `take`."""


def relevance(candidates: Recommendations) -> Tensor:
    """What the candidates are worth, [B, K] float64: 1 for the best of a request, 0 for the last; 0 at padding.

    By their scores, scaled to that range, where scores order them; else by their places alone. 1 where all are equal.
    """
    real = candidates.item_ids > 0
    if candidates.ordered_by == "score":
        worth = candidates.scores.double()
    else:
        worth = -torch.arange(real.shape[1], dtype=torch.float64, device=real.device).expand(real.shape)
    if not real.shape[1]:
        return worth
    low = worth.masked_fill(~real, torch.inf).amin(1, keepdim=True)
    span = worth[:, :1] - low
    return torch.where(real, torch.where(span > 0, (worth - low) / span, 1.0), 0.0)


def barred(candidates: Recommendations) -> Tensor:
    """[B, K] float64 to be added to keys: -inf at padding, else 0; -inf is written over what has been chosen."""
    return torch.zeros_like(candidates.scores, dtype=torch.float64).masked_fill_(candidates.item_ids == 0, -torch.inf)


def first_best(keys: Tensor) -> Tensor:
    """The position [B, 1] of the largest of `keys [B, K]`; of equal ones the first, which is the most relevant."""
    return keys.round(decimals=TIE_DIGITS).argmax(1, keepdim=True)


def sum_by_value(codes: Tensor, weights: Tensor) -> Tensor:
    """For each candidate, the sum of the `weights [B, K]` of the request's candidates of the same code, [B, K]."""
    local = torch.unique(codes, return_inverse=True)[1]
    sums = weights.new_zeros((len(codes), int(local.max()) + 1 if local.numel() else 0))
    return sums.scatter_add_(1, local, weights).gather(1, local)


def take(
    candidates: Recommendations, chosen: Tensor, k: int, *, relaxations: Sequence[Relaxation] = ()
) -> Recommendations:
    """The candidates at positions `chosen [B, at most k]`, best first; -1, at the tail only, is no item.

    Positions in excess of a row's candidates, which a batch of unequal rows needs, may be anything.
    """
    count = (candidates.item_ids > 0).sum(1, keepdim=True)
    places = torch.arange(chosen.shape[1], device=chosen.device)
    nothing = (chosen < 0) | (places >= count)
    missing = (0, k - chosen.shape[1])

    def picked(values: Tensor, filler: float) -> Tensor:
        if not values.shape[1]:
            return values.new_full((len(values), k), filler)
        return F.pad(values.gather(1, chosen.clamp(min=0)).masked_fill(nothing, filler), missing, value=filler)

    return Recommendations(
        picked(candidates.item_ids, 0),
        picked(candidates.scores, -torch.inf),
        ordered_by="reranking",
        fallback=candidates.fallback,
        channel=None if candidates.channel is None else picked(candidates.channel, 0),
        channels=candidates.channels,
        relaxations=[*candidates.relaxations, *relaxations],
    )


def _ties_by_number(candidates: Recommendations) -> Recommendations:
    """The same, equal scores in order of the item numbers; as they are where scores do not order them."""
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
