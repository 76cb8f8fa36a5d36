"""Merge of sorted lists, compared with a heap and with sorting all items."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.ops.merge_lists import SortedLists, merge_lists, merge_lists_reference


@settings(max_examples=80, deadline=None)
@given(items=st.integers(1, 40), lists=st.integers(1, 9), k=st.integers(1, 50), seed=st.integers(0, 999))
def test_merge_equals_a_full_sort_and_the_heap(items: int, lists: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    list_numbers = torch.randint(lists, (items + 1,), generator=generator)
    own_scores, list_scores = torch.randn(items + 1, generator=generator), torch.randn(3, lists, generator=generator)
    merged = SortedLists.from_list_numbers(list_numbers, own_scores, num_lists=lists)
    merged_items, scores = merge_lists(list_scores, merged, k)
    heap = merge_lists_reference(list_scores, merged, k)
    for row in range(3):
        totals = (list_scores[row][list_numbers] + own_scores)[1:]
        best = totals.argsort(descending=True)[:k]
        assert merged_items[row, : len(best)].tolist() == (best + 1).tolist() == [item for _, item in heap[row]]
        torch.testing.assert_close(scores[row, : len(best)], totals[best])
        assert not bool(merged_items[row, len(best) :].any())


def test_lists_are_sorted_by_score_and_contain_each_item_once() -> None:
    list_numbers, own_scores = torch.tensor([0, 2, 0, 2, 2]), torch.tensor([9.0, 1.0, 5.0, 3.0, 3.0])
    lists = SortedLists.from_list_numbers(list_numbers, own_scores, num_lists=4)
    assert lists.items.tolist() == [2, 3, 4, 1]
    assert lists.offsets.tolist() == [0, 1, 1, 4, 4]
