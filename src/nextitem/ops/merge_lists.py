"""Merge sorted lists of items: the score of an item is the score of its list for a request plus the item's own score.

Streaming VQ (arXiv 2501.08695, section 3.5) merges the lists of clusters with a heap. The k best items are all in the k
lists with the best first items, and among the first k items of their list. So it suffices to rank those.

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
    """C lists of items, each sorted by the items' own scores, highest first.

    items    [n] int64, list by list; items with equal scores are in order of their numbers
    scores   [n], the items' own scores
    offsets  [C + 1] int64, offsets of the lists in `items` and `scores`
    """

    items: Tensor
    scores: Tensor
    offsets: Tensor

    @classmethod
    def from_list_numbers(
        cls, list_numbers: Tensor, scores: Tensor, *, num_lists: int, is_hidden: Tensor | None = None
    ) -> SortedLists:
        """Return the sorted lists of items 1..N.

        Args:
            list_numbers: list of each item, [N + 1] int64; entry 0 is padding.
            scores: the items' own scores, [N + 1]; entry 0 is padding.
            num_lists: number of lists (C).
            is_hidden: items that are in no list, bool [N + 1]; None: every item is in a list.

        """
        items = torch.arange(1, len(list_numbers), device=list_numbers.device)
        if is_hidden is not None:
            items = items[~is_hidden[1:]]
        order = items[scores[items].argsort(descending=True, stable=True)]
        order = order[list_numbers[order].argsort(stable=True)]
        offsets = torch.zeros(num_lists + 1, dtype=torch.int64, device=list_numbers.device)
        offsets[1:] = torch.bincount(list_numbers[items], minlength=num_lists).cumsum(0)
        return cls(order, scores[order], offsets)


def merge_lists(list_scores: Tensor, lists: SortedLists, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best items of each request, by the score `list_scores [B, C]` of their list plus their own score.

    Returns items [B, k] int64 and scores [B, k]; a request with fewer than k items has items 0 and scores -inf at the
    end. Which items are returned among equal scores is not specified.
    """
    starts, sizes = lists.offsets[:-1], lists.offsets.diff()
    has_items = sizes > 0
    first_scores = lists.scores.new_full((len(sizes),), -torch.inf)
    first_scores[has_items] = lists.scores[starts[has_items]]
    best_scores = list_scores + first_scores
    best_lists = stable_topk(best_scores, min(k, best_scores.shape[1]))[1]
    depth = min(k, int(sizes.max()))
    ranks = torch.arange(depth, device=best_lists.device)
    is_real = ranks < sizes[best_lists][..., None]
    indices = (starts[best_lists][..., None] + ranks).clamp(max=len(lists.items) - 1)
    totals = list_scores.gather(1, best_lists)[..., None] + lists.scores[indices]
    totals = totals.masked_fill(~is_real, -torch.inf).flatten(1)
    values, columns = stable_topk(totals, min(k, totals.shape[1]))
    items = lists.items[indices.flatten(1).gather(1, columns)].masked_fill(values == -torch.inf, 0)
    missing = (0, k - values.shape[1])
    return torch.nn.functional.pad(items, missing), torch.nn.functional.pad(values, missing, value=-torch.inf)


def merge_lists_reference(list_scores: Tensor, lists: SortedLists, k: int) -> list[list[tuple[float, int]]]:
    """Return the k best (score, item) of each request, best first, computed with a heap, one request after another."""
    answers = []
    offsets = lists.offsets.tolist()
    for row in list_scores.tolist():
        heap = [
            (-(score + float(lists.scores[offsets[number]])), number, offsets[number])
            for number, score in enumerate(row)
            if offsets[number] < offsets[number + 1]
        ]
        heapq.heapify(heap)
        best: list[tuple[float, int]] = []
        while heap and len(best) < k:
            negative, number, index = heapq.heappop(heap)
            best.append((-negative, int(lists.items[index])))
            if index + 1 < offsets[number + 1]:
                heapq.heappush(heap, (-(row[number] + float(lists.scores[index + 1])), number, index + 1))
        answers.append(best)
    return answers
