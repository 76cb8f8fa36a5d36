"""Item similarity: cosines of content, cosines of sets of values, missing values, unreadable columns."""

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
    """Return the similarities of all pairs of items, [K, K]."""
    cosines_to = similarity.among(torch.tensor([items]))
    return torch.cat([cosines_to(torch.tensor([place])) for place in range(len(items))])


def test_content_vectors_are_used_if_there_are_any() -> None:
    cosine_matrix = cosines(ItemSimilarity(shelf(["a"] * 5, content=CONTENT)), [1, 2, 3, 4, 5, 0])
    half = math.sqrt(0.5)
    expected = [[1, half, 0, -1], [half, 1, half, -half], [0, half, 1, 0], [-1, -half, 0, 1]]
    torch.testing.assert_close(cosine_matrix[:4, :4], torch.tensor(expected, dtype=torch.float64))
    assert not cosine_matrix[4:].any()


def test_categorical_values_are_used_without_content() -> None:
    tags = [["x", "y"], ["y", "x", "y"], ["z"], None, None]
    similarity = ItemSimilarity(shelf(["a", "b", "a", "x", None], tags=tags))
    cosine_matrix = cosines(similarity, [1, 2, 3, 4, 5, 0])
    third, sixth = 2 / 3, 1 / math.sqrt(6)
    expected = [[1, third, sixth, 0], [third, 1, 0, 0], [sixth, 0, 1, 0], [0, 0, 0, 1]]  # brand x is not tag x
    torch.testing.assert_close(cosine_matrix[:4, :4], torch.tensor(expected, dtype=torch.float64))
    assert not cosine_matrix[4:].any()


def test_similarity_of_values_equals_cosines_of_multi_hot_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    tags = [["u", "v", "w", "x"][n % 3 : 1 + n % 4] for n in range(30)]
    brands = ["abc"[int(torch.randint(3, (), generator=generator))] for _ in range(30)]
    multi_hot = torch.zeros(30, 7, dtype=torch.float64)
    for item, (brand, item_tags) in enumerate(zip(brands, tags, strict=True)):
        multi_hot[item, "abc".index(brand)] = 1
        for tag in item_tags:
            multi_hot[item, 3 + "uvwx".index(tag)] = 1
    unit = torch.nn.functional.normalize(multi_hot, dim=1)
    torch.testing.assert_close(cosines(ItemSimilarity(shelf(brands, tags=tags)), list(range(1, 31))), unit @ unit.T)


def test_state_dict_is_empty() -> None:
    assert not ItemSimilarity(shelf(["a", "b"])).state_dict()


def test_codes_of_columns() -> None:
    catalog = shelf(["b", None, "a"], tags=[["y"], [], ["x", "y"]])
    assert one_value(catalog, "brand").tolist() == [0, 2, 0, 1]
    assert column_values(catalog, "brand").tolist() == [[0], [2], [0], [1]]
    assert column_values(catalog, "tags").tolist() == [[0, 0], [2, 0], [0, 0], [1, 2]]


def test_errors_name_the_column_and_the_readable_ones() -> None:
    catalog = shelf(["a", "b"])
    with pytest.raises(UserError, match=r"'colour' is no feature of the items; choose a categorical or .*brand, tags"):
        column_values(catalog, "colour")
    with pytest.raises(UserError, match="'price' is of type numeric"):
        column_values(catalog, "price")
    with pytest.raises(UserError, match=r"'tags' is of type categorical-list; choose a categorical one \(brand\)"):
        one_value(catalog, "tags")
    with pytest.raises(UserError, match="neither content vectors nor categorical features"):
        ItemSimilarity(replace(catalog, features={"price": "numeric"}))
