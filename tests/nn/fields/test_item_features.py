"""Features of items: each kind's value, what is missing, and that the order of rows decides nothing."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.nn.fields.item_features import ItemFeatures

D = 3
ROWS: dict[str, list[Any]] = {
    "item_id": ["a", "b", "c", "d", "e"],
    "brand": ["oak", None, "ash", "oak", "elm"],
    "size": [3, 1, None, 3, 2],
    "tags": [["x", "y"], [], ["y"], None, ["z", None, "x"]],
    "price": [2.0, 4.0, None, math.inf, 9.0],
    "story": ["a tale", "", None, "more", "end"],
}
FEATURES = {
    "brand": "categorical",
    "size": "categorical",
    "tags": "categorical-list",
    "price": "numeric",
    "story": "text",
}
CONTENT = torch.arange(10, dtype=torch.float32).view(5, 2)
ALL = torch.arange(6)


def catalog(order: list[int] | None = None) -> Catalog:
    """The rows in the given order, numbered in that order."""
    order = order or [0, 1, 2, 3, 4]
    table = pl.DataFrame(ROWS, strict=False)[order]
    content = torch.cat([torch.zeros(1, 2), CONTENT[order]])
    return Catalog(IdMap(table["item_id"]), table, features=FEATURES, content=content)


def features_of(*columns: str, order: list[int] | None = None, merge: Any = "sum") -> ItemFeatures:
    torch.manual_seed(0)
    features = ItemFeatures(catalog(order), columns, width=D, merge=merge)
    with torch.no_grad():
        for parameter in features.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return features


def read(features: ItemFeatures, item_ids: Tensor = ALL) -> Tensor:
    vectors: Tensor = features(torch.zeros(*item_ids.shape, D), item_ids)
    return vectors.detach()


def weight(features: ItemFeatures, name: str) -> Tensor:
    """A parameter of the first feature."""
    return features.get_parameter(f"parts.0.{name}").detach()


def test_a_category_is_its_embedding() -> None:
    features = features_of("brand")
    rows = weight(features, "embedding.weight")  # missing, ash, elm, oak
    assert torch.equal(read(features), rows[[0, 3, 0, 1, 3, 2]])
    numbers = features_of("size")
    assert torch.equal(read(numbers), weight(numbers, "embedding.weight")[[0, 3, 1, 0, 3, 2]])


def test_a_list_is_the_mean_of_its_members() -> None:
    features = features_of("tags")
    missing, x, y, z = weight(features, "embedding.weight")
    expected = torch.stack([missing, (x + y) / 2, missing, y, missing, (z + x) / 2])
    torch.testing.assert_close(read(features), expected)


def test_a_number_is_standardised_over_what_is_known() -> None:
    features = features_of("price")
    mean, deviation = 5.0, math.sqrt((9 + 1 + 16) / 3)
    values = torch.tensor([[(price - mean) / deviation] for price in (2.0, 4.0, 9.0)])
    expected = values @ weight(features, "linear.weight").T + weight(features, "linear.bias")
    torch.testing.assert_close(read(features)[[1, 2, 5]], expected)
    assert torch.equal(read(features)[[0, 3, 4]], weight(features, "missing").expand(3, D))


def test_content_goes_through_a_linear_layer() -> None:
    features = features_of("content")
    expected = CONTENT @ weight(features, "linear.weight").T + weight(features, "linear.bias")
    torch.testing.assert_close(read(features)[1:], expected)


def test_columns_are_added_or_set_side_by_side() -> None:
    columns = ("brand", "tags", "price", "content")
    own, ids = torch.randn(2, 2, D), torch.tensor([[1, 2], [5, 0]])
    summed = features_of(*columns)
    parts = [part(ids) for part in summed.parts]
    assert all(part.shape == (2, 2, D) for part in parts)
    torch.testing.assert_close(summed(own, ids), own + sum(parts))
    beside = features_of(*columns, merge="concat")
    assert beside.project is not None
    expected = beside.project(torch.cat([own, *(part(ids) for part in beside.parts)], -1))
    torch.testing.assert_close(beside(own, ids), expected)


@pytest.mark.parametrize("merge", ["sum", "concat"])
def test_the_order_of_rows_decides_nothing(merge: str) -> None:
    columns = ("brand", "size", "tags", "price", "content")
    order = [3, 0, 4, 2, 1]
    there = torch.tensor([0, *(place + 1 for place in order)])
    first, second = features_of(*columns, merge=merge), features_of(*columns, order=order, merge=merge)
    assert torch.equal(read(first, there), read(second))


def test_the_catalogue_is_no_part_of_the_weights() -> None:
    features = features_of("brand", "tags", "price", "content")
    assert set(features.state_dict()) == {name for name, _ in features.named_parameters()}


def test_every_parameter_learns() -> None:
    features = features_of("brand", "tags", "price", "content", merge="concat")
    features(torch.randn(6, D), ALL).pow(2).sum().backward()
    for name, parameter in features.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize(
    ("column", "reason"),
    [("colour", "there is no such feature"), ("story", "it is of type text"), ("item_id", "no such")],
)
def test_a_column_that_cannot_be_read_is_named_beside_those_that_can(column: str, reason: str) -> None:
    with pytest.raises(
        UserError, match=rf"'{column}' cannot be read: .*{reason}.*; choose among brand \(categorical\)"
    ):
        features_of("brand", column)


def test_columns_without_any_value() -> None:
    table = pl.DataFrame(
        {"item_id": [1, 2], "a": [None, None], "b": [None, None], "c": [None, None]},
        schema_overrides={"a": pl.String, "b": pl.List(pl.String), "c": pl.Float64},
    )
    kinds = {"a": "categorical", "b": "categorical-list", "c": "numeric"}
    features = ItemFeatures(Catalog(IdMap(table["item_id"]), table, features=kinds), tuple(kinds), width=D, merge="sum")
    found = read(features, torch.tensor([1, 2]))
    assert bool(torch.isfinite(found).all())
    assert torch.equal(found[0], found[1])
