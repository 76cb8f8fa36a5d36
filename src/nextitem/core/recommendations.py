"""Recommendations: the lists of items that a Recommender returns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

OrderedBy = Literal["score", "reranking", "generation"]
_ANNOTATIONS = frozenset({"fallback", "channel", "channels", "relaxations", "guided"})


@dataclass(frozen=True)
class Relaxation:
    """A rule that was relaxed because no candidate could satisfy it together with the higher-priority rules.

    Attributes:
        request: row of the request in the answer.
        rule: name of the rule, in the words of the re-ranker.
        slot: slot of the list, from 1, in which the rule is broken; None: the list as a whole breaks it.

    """

    request: int
    rule: str
    slot: int | None = None


@dataclass(frozen=True, eq=False)
class Recommendations:
    """Lists of items for B requests, best item first; a list with fewer than K items ends in padding.

    Attributes:
        item_ids: [B, K] int64, without repeats; 0 is padding, which occurs only at the end of a list.
        scores: [B, K] float32; -inf for padding; they do not increase along a row if `ordered_by` is "score".
        ordered_by: what the items are ordered by: "score", "reranking" or "generation".
        fallback: [B] bool: whether popularity answered the request instead of the model; None: not recorded.
        channel: [B, K] int64: stage or channel that retrieved the item, an index into `channels`; None: one source.
        channels: names of the stages or channels.
        relaxations: every rule of a re-ranker that was relaxed, request by request.
        guided: [B] bool: whether a guide had a score for any item that the request allows; None: there was no guide.

    """

    item_ids: Tensor
    scores: Tensor
    ordered_by: OrderedBy = "score"
    fallback: Tensor | None = None
    channel: Tensor | None = None
    channels: Sequence[str] = ()
    relaxations: Sequence[Relaxation] = ()
    guided: Tensor | None = None

    def __post_init__(self) -> None:
        if self.item_ids.shape != self.scores.shape or self.item_ids.dim() != 2:
            raise ValueError(
                f"item_ids {tuple(self.item_ids.shape)} and scores {tuple(self.scores.shape)} must be [B, K]"
            )
        real = self.item_ids > 0
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise ValueError("padding may occur only at the tail of a list")
        ordered = torch.where(real, self.item_ids, -torch.arange(real.shape[1], device=real.device)[None, :] - 1)
        in_order = ordered.sort(dim=1).values
        if bool((in_order[:, 1:] == in_order[:, :-1]).any()):
            raise ValueError("an item is repeated within a list")
        if self.ordered_by == "score" and bool((self.scores[:, 1:] > self.scores[:, :-1]).any()):
            raise ValueError("scores must fall along a list that is ordered by score; sort it, or set ordered_by")

    def annotated(self, **annotations: Any) -> Recommendations:
        """Return the same lists with other values of fields that say something about them: fallback, channel, ...

        Items, scores and their order stay, so they are not checked again.
        """
        if not annotations.keys() <= _ANNOTATIONS:
            raise ValueError(f"annotations are {', '.join(sorted(_ANNOTATIONS))}, got {', '.join(annotations)}")
        lists = copy.copy(self)
        vars(lists).update(annotations)
        return lists

    @classmethod
    def concat(cls, parts: Sequence[Recommendations]) -> Recommendations:
        """Return the rows of several answers, in order; they must have the same K, `ordered_by` and channels."""
        fallback = [
            p.fallback if p.fallback is not None else torch.zeros(len(p.item_ids), dtype=torch.bool) for p in parts
        ]
        channel = [p.channel for p in parts if p.channel is not None]
        guided = [p.guided for p in parts if p.guided is not None]
        starts = accumulate((len(p.item_ids) for p in parts), initial=0)
        return cls(
            torch.cat([p.item_ids for p in parts]),
            torch.cat([p.scores for p in parts]),
            ordered_by=parts[0].ordered_by,
            fallback=torch.cat(fallback),
            channel=torch.cat(channel) if channel else None,
            channels=parts[0].channels,
            relaxations=[
                replace(relaxation, request=start + relaxation.request)
                for start, part in zip(starts, parts, strict=False)
                for relaxation in part.relaxations
            ],
            guided=torch.cat(guided) if guided else None,
        )
