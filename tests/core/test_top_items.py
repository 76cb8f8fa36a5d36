"""Lists of recommendations from scores, with items unseen in training ranked last."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations
from nextitem.core.top_items import (
    append_unseen,
    rank_unseen_last,
    search_unseen_last,
    top_candidates,
    top_items,
)

N = 6


def mask(*items: int) -> Tensor:
    return torch.isin(torch.arange(N + 1), torch.tensor(items))


def requests(rows: int, **fields: object) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows([[1]] * rows), **fields)  # type: ignore[arg-type]


def test_unseen_items_score_one_less_than_the_lowest_other_item() -> None:
    scores = torch.tensor([[9.0, 1, 5, -2, 4, 8, 0], [9.0, -7, -5, -6, -9, 8, -5]])
    ranked = rank_unseen_last(scores.clone(), mask(2, 5))
    assert ranked[:, 1:].tolist() == [[1, -3, -2, 4, -3, 0], [-7, -10, -6, -9, -10, -5]]
    assert bool(ranked.isfinite().all())
    assert rank_unseen_last(scores, None) is scores
    assert top_items(ranked, requests(2), 6).item_ids.tolist() == [[4, 1, 6, 3, 2, 5], [6, 3, 1, 4, 2, 5]]


def by_number(batch: SequenceBatch, k: int) -> Recommendations:
    """Return the k allowed items with the largest numbers."""
    return top_items(torch.arange(N + 1).float().repeat(batch.num_requests, 1), batch, k)


def test_unseen_items_are_hidden_from_the_search_and_fill_short_lists() -> None:
    searched_masks = []

    def search(batch: SequenceBatch) -> Recommendations:
        searched_masks.append(batch.allowed)
        return by_number(batch, 5)

    batch = requests(3, excluded=Jagged.from_rows([[], [6], [6, 2, 4, 1]]))
    answer = search_unseen_last(search, batch, mask(2, 5))
    assert searched_masks[0] is not None
    assert searched_masks[0][:, 1:].tolist() == [[True, False, True, True, False, True]]
    assert answer.item_ids.tolist() == [[6, 4, 3, 1, 2], [4, 3, 1, 2, 5], [3, 5, 0, 0, 0]]
    assert answer.scores.tolist() == [
        [6, 4, 3, 1, 0],
        [4, 3, 1, 0, 0],
        [3, 2, -torch.inf, -torch.inf, -torch.inf],
    ]
    allowed = torch.stack([mask(5, 3), mask(2), mask(1, 2, 3)])
    answer = search_unseen_last(search, replace(batch, allowed=allowed), mask(2, 5))
    assert answer.item_ids.tolist() == [[3, 5, 0, 0, 0], [2, 0, 0, 0, 0], [3, 0, 0, 0, 0]]
    assert answer.scores[1, 0] == -1
    assert search_unseen_last(search, batch, None).item_ids.tolist()[0] == [6, 5, 4, 3, 2]


def test_append_unseen_does_not_change_full_lists() -> None:
    answer = by_number(requests(2), 3)
    assert append_unseen(answer, requests(2), mask(1)) is answer
    assert append_unseen(answer, requests(2), None) is answer


def test_unseen_candidates_are_ranked_after_the_others_of_their_request() -> None:
    candidates = Jagged.from_rows([[3, 5, 1, 2], [5, 2], [4], [2, 2, 6]])
    scores = torch.tensor([1.0, 9, 2, 8, 3, 4, 7, 5, 5, -3])
    answer = top_candidates(candidates, scores, requests(4), 4, num_items=N, unseen=mask(2, 5))
    assert answer.item_ids.tolist() == [[1, 3, 2, 5], [2, 5, 0, 0], [4, 0, 0, 0], [6, 2, 0, 0]]
    assert answer.scores[0].tolist() == [2, 1, 0, 0]
    assert answer.scores[3, :2].tolist() == [-3, -4]
    plain = top_candidates(candidates, scores, requests(4), 4, num_items=N)
    assert plain.item_ids.tolist()[0] == [5, 2, 1, 3]
