"""Recommendations: what a Recommender answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

OrderedBy = Literal["score", "reranking", "generation"]


@dataclass(frozen=True)
class Relaxation:
    """A rule that does not hold in an answer, since with those before it no candidate could keep it.

    request  row of the answer
    rule     the rule in words, as the re-ranker names it
    slot     the place, from 1, where it is broken; None: on the list as a whole
    """

    request: int
    rule: str
    slot: int | None = None


@dataclass(frozen=True, eq=False)
class Recommendations:
    """Lists of items, best first; a list shorter than K ends in padding.

    item_ids   [B, K] int64; 0 is padding and stands only at the tail; no repeats
    scores     [B, K] float32; -inf at padding; fall along a row where `ordered_by` is "score"
    fallback   [B] bool: popularity answered instead of the model
    channel    [B, K] int64: index into `channels`, which stage or channel brought the item; None: one source
    relaxations  every rule of a re-ranker that had to give way, request by request
    """

    item_ids: Tensor
    scores: Tensor
    ordered_by: OrderedBy = "score"
    fallback: Tensor | None = None
    channel: Tensor | None = None
    channels: Sequence[str] = ()
    relaxations: Sequence[Relaxation] = ()

    def __post_init__(self) -> None:
        if self.item_ids.shape != self.scores.shape or self.item_ids.dim() != 2:
            raise ValueError(
                f"item_ids {tuple(self.item_ids.shape)} and scores {tuple(self.scores.shape)} must be [B, K]"
            )
        real = self.item_ids > 0
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise ValueError("padding may stand only at the tail of a list")
        ordered = torch.where(real, self.item_ids, -torch.arange(real.shape[1], device=real.device)[None, :] - 1)
        in_order = ordered.sort(dim=1).values
        if bool((in_order[:, 1:] == in_order[:, :-1]).any()):
            raise ValueError("an item is repeated within a list")
        if self.ordered_by == "score" and bool((self.scores[:, 1:] > self.scores[:, :-1]).any()):
            raise ValueError("scores must fall along a list that is ordered by score")

    @classmethod
    def concat(cls, parts: Sequence[Recommendations]) -> Recommendations:
        """Joins answers of the same K, order and channels, row after row."""
        fallback = [
            p.fallback if p.fallback is not None else torch.zeros(len(p.item_ids), dtype=torch.bool) for p in parts
        ]
        channel = [p.channel for p in parts if p.channel is not None]
        starts = accumulate((len(p.item_ids) for p in parts), initial=0)
        return cls(
            torch.cat([p.item_ids for p in parts]),
            torch.cat([p.scores for p in parts]),
            ordered_by=parts[0].ordered_by,
            fallback=torch.cat(fallback),
            channel=torch.cat(channel) if channel else None,
            channels=parts[0].channels,
            relaxations=[
                replace(each, request=start + each.request)
                for start, part in zip(starts, parts, strict=False)
                for each in part.relaxations
            ],
        )
