"""The merge of sorted lists: by heap, and by sorting everything."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.ops.merge_lists import SortedLists, merge_lists, merge_lists_reference


@settings(max_examples=80, deadline=None)
@given(items=st.integers(1, 40), lists=st.integers(1, 9), k=st.integers(1, 50), seed=st.integers(0, 999))
def test_the_merge_is_the_full_sort_and_the_heap(items: int, lists: int, k: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    owner = torch.randint(lists, (items + 1,), generator=draw)
    own, of_list = torch.randn(items + 1, generator=draw), torch.randn(3, lists, generator=draw)
    merged = SortedLists.from_list_numbers(owner, own, num_lists=lists)
    found, scores = merge_lists(of_list, merged, k)
    heap = merge_lists_reference(of_list, merged, k)
    for row in range(3):
        whole = (of_list[row][owner] + own)[1:]
        best = whole.argsort(descending=True)[:k]
        assert found[row, : len(best)].tolist() == (best + 1).tolist() == [item for _, item in heap[row]]
        torch.testing.assert_close(scores[row, : len(best)], whole[best])
        assert not bool(found[row, len(best) :].any())


def test_lists_fall_and_hold_each_item_once() -> None:
    owner, own = torch.tensor([0, 2, 0, 2, 2]), torch.tensor([9.0, 1.0, 5.0, 3.0, 3.0])
    lists = SortedLists.from_list_numbers(owner, own, num_lists=4)
    assert lists.items.tolist() == [2, 3, 4, 1]
    assert lists.offsets.tolist() == [0, 1, 1, 4, 4]
