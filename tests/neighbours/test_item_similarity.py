"""Likeness of items: cosines of content, shares of common values, what is missing, what cannot be read."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.small_catalog import shelf

from nextitem.core.errors import UserError
from nextitem.neighbours.item_similarity import ItemSimilarity, column_values, one_value

CONTENT = torch.tensor([[3.0, 0], [5, 5], [0, 2], [-1, 0], [0, 0]])


def cosines(similarity: ItemSimilarity, items: list[int]) -> torch.Tensor:
    """[K, K]."""
    among = similarity.among(torch.tensor([items]))
    return torch.cat([among(torch.tensor([place])) for place in range(len(items))])


def test_content_vectors_decide_where_there_are_any() -> None:
    found = cosines(ItemSimilarity(shelf(["a"] * 5, content=CONTENT)), [1, 2, 3, 4, 5, 0])
    half = math.sqrt(0.5)
    expected = [[1, half, 0, -1], [half, 1, half, -half], [0, half, 1, 0], [-1, -half, 0, 1]]
    torch.testing.assert_close(found[:4, :4], torch.tensor(expected, dtype=torch.float64))
    assert not found[4:].any()


def test_otherwise_the_values_that_two_items_share() -> None:
    tags = [["x", "y"], ["y", "x", "y"], ["z"], None, None]
    similarity = ItemSimilarity(shelf(["a", "b", "a", "x", None], tags=tags))
    found = cosines(similarity, [1, 2, 3, 4, 5, 0])
    third, sixth = 2 / 3, 1 / math.sqrt(6)
    expected = [[1, third, sixth, 0], [third, 1, 0, 0], [sixth, 0, 1, 0], [0, 0, 0, 1]]  # brand x is not tag x
    torch.testing.assert_close(found[:4, :4], torch.tensor(expected, dtype=torch.float64))
    assert not found[4:].any()


def test_it_equals_the_cosines_of_multi_hot_vectors() -> None:
    draw = torch.Generator().manual_seed(0)
    tags = [["u", "v", "w", "x"][n % 3 : 1 + n % 4] for n in range(30)]
    brands = ["abc"[int(torch.randint(3, (), generator=draw))] for _ in range(30)]
    hot = torch.zeros(30, 7, dtype=torch.float64)
    for item, (brand, own) in enumerate(zip(brands, tags, strict=True)):
        hot[item, "abc".index(brand)] = 1
        for tag in own:
            hot[item, 3 + "uvwx".index(tag)] = 1
    unit = torch.nn.functional.normalize(hot, dim=1)
    torch.testing.assert_close(cosines(ItemSimilarity(shelf(brands, tags=tags)), list(range(1, 31))), unit @ unit.T)


def test_nothing_of_it_is_a_weight() -> None:
    assert not ItemSimilarity(shelf(["a", "b"])).state_dict()


def test_values_of_columns() -> None:
    catalog = shelf(["b", None, "a"], tags=[["y"], [], ["x", "y"]])
    assert one_value(catalog, "brand").tolist() == [0, 2, 0, 1]
    assert column_values(catalog, "brand").tolist() == [[0], [2], [0], [1]]
    assert column_values(catalog, "tags").tolist() == [[0, 0], [2, 0], [0, 0], [1, 2]]


def test_what_cannot_be_read_is_said_in_one_line() -> None:
    catalog = shelf(["a", "b"])
    with pytest.raises(UserError, match=r"'colour' is no feature of the items; choose a categorical or .*brand, tags"):
        column_values(catalog, "colour")
    with pytest.raises(UserError, match="'price' is of type numeric"):
        column_values(catalog, "price")
    with pytest.raises(UserError, match=r"'tags' is of type categorical-list; choose a categorical one \(brand\)"):
        one_value(catalog, "tags")
    with pytest.raises(UserError, match="neither content vectors nor categorical features"):
        ItemSimilarity(replace(catalog, features={"price": "numeric"}))
