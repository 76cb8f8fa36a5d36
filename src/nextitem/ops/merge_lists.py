"""The best of many sorted lists: an item scores what its list scores for a request, plus a part of its own.

Streaming VQ (arXiv 2501.08695, section 3.5) merges the lists of clusters with a heap. Of the k best items none lies
outside the k lists with the best heads, nor beyond the first k of its list, so looking there finds the same.

Shapes: B requests, C lists, N items.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from nextitem.ops.topk import stable_topk


@dataclass(frozen=True, eq=False)
class SortedLists:
    """C lists of items, each falling by the items' own scores.

    items    [n] int64, list by list; equal scores in order of the item numbers
    scores   [n], the items' own
    offsets  [C + 1] int64
    """

    items: Tensor
    scores: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, owner: Tensor, scores: Tensor, *, count: int, hidden: Tensor | None = None) -> SortedLists:
        """Items 1..N by `owner [N + 1]`, the list of each, and their own `scores [N + 1]`; entry 0 is padding.

        `hidden` items, bool [N + 1], are in no list.
        """
        items = torch.arange(1, len(owner), device=owner.device)
        if hidden is not None:
            items = items[~hidden[1:]]
        order = items[scores[items].argsort(descending=True, stable=True)]
        order = order[owner[order].argsort(stable=True)]
        offsets = torch.zeros(count + 1, dtype=torch.int64, device=owner.device)
        offsets[1:] = torch.bincount(owner[items], minlength=count).cumsum(0)
        return cls(order, scores[order], offsets)


def merge_lists(list_scores: Tensor, lists: SortedLists, k: int) -> tuple[Tensor, Tensor]:
    """The k best items of each request by `list_scores [B, C]` of their list plus their own score.

    Returns items [B, k] int64, 0 where there are no more, and scores [B, k], -inf there. Which of equal scores come is
    not said.
    """
    begins, sizes = lists.offsets[:-1], lists.offsets.diff()
    filled = sizes > 0
    own = lists.scores.new_full((len(sizes),), -torch.inf)
    own[filled] = lists.scores[begins[filled]]
    heads = list_scores + own
    chosen = stable_topk(heads, min(k, heads.shape[1]))[1]
    depth = min(k, int(sizes.max()))
    slots = torch.arange(depth, device=chosen.device)
    real = slots < sizes[chosen][..., None]
    where = (begins[chosen][..., None] + slots).clamp(max=len(lists.items) - 1)
    totals = (list_scores.gather(1, chosen)[..., None] + lists.scores[where]).masked_fill(~real, -torch.inf).flatten(1)
    values, picks = stable_topk(totals, min(k, totals.shape[1]))
    items = lists.items[where.flatten(1).gather(1, picks)].masked_fill(values == -torch.inf, 0)
    missing = (0, k - values.shape[1])
    return torch.nn.functional.pad(items, missing), torch.nn.functional.pad(values, missing, value=-torch.inf)


def merge_lists_reference(list_scores: Tensor, lists: SortedLists, k: int) -> list[list[tuple[float, int]]]:
    """The same with a heap, one request after another: (score, item), best first."""
    answers = []
    offsets = lists.offsets.tolist()
    for row in list_scores.tolist():
        heap = [
            (-(score + float(lists.scores[offsets[place]])), place, offsets[place])
            for place, score in enumerate(row)
            if offsets[place] < offsets[place + 1]
        ]
        heapq.heapify(heap)
        found: list[tuple[float, int]] = []
        while heap and len(found) < k:
            negative, place, at = heapq.heappop(heap)
            found.append((-negative, int(lists.items[at])))
            if at + 1 < offsets[place + 1]:
                heapq.heappush(heap, (-(row[place] + float(lists.scores[at + 1])), place, at + 1))
        answers.append(found)
    return answers
