"""Annotations of lists, which leave items and scores as they are."""

from __future__ import annotations

import pytest
import torch

from nextitem.core.recommendations import Recommendations


def test_annotated_lists_share_items_and_scores() -> None:
    lists = Recommendations(torch.tensor([[2, 1]]), torch.tensor([[1.0, 0.5]]))
    other = lists.annotated(fallback=torch.tensor([True]), channels=("a",))
    assert other.item_ids is lists.item_ids
    assert other.scores is lists.scores
    assert other.fallback is not None
    assert other.fallback.tolist() == [True]
    assert lists.fallback is None
    assert (other.channels, lists.channels) == (("a",), ())


def test_items_are_no_annotation() -> None:
    lists = Recommendations(torch.tensor([[2, 1]]), torch.tensor([[1.0, 0.5]]))
    with pytest.raises(ValueError, match="annotations are"):
        lists.annotated(item_ids=torch.tensor([[3, 3]]))
