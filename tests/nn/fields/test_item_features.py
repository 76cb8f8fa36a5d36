"""ItemFeatures: vectors of each kind of feature, missing values, and no dependence on the order of rows."""

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
    """Return a catalogue of ROWS in some order; the items are numbered in that order."""
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


def feature_vectors(features: ItemFeatures, item_ids: Tensor = ALL) -> Tensor:
    vectors: Tensor = features(torch.zeros(*item_ids.shape, D), item_ids)
    return vectors.detach()


def first_parameter(features: ItemFeatures, name: str) -> Tensor:
    """Return a parameter of the first feature."""
    return features.get_parameter(f"parts.0.{name}").detach()


def test_category_is_read_as_its_embedding() -> None:
    features = features_of("brand")
    rows = first_parameter(features, "embedding.weight")  # missing, ash, elm, oak
    assert torch.equal(feature_vectors(features), rows[[0, 3, 0, 1, 3, 2]])
    numbers = features_of("size")
    assert torch.equal(feature_vectors(numbers), first_parameter(numbers, "embedding.weight")[[0, 3, 1, 0, 3, 2]])


def test_list_is_read_as_the_mean_of_its_members() -> None:
    features = features_of("tags")
    missing, x, y, z = first_parameter(features, "embedding.weight")
    expected = torch.stack([missing, (x + y) / 2, missing, y, missing, (z + x) / 2])
    torch.testing.assert_close(feature_vectors(features), expected)


def test_number_is_standardised_over_the_present_values() -> None:
    features = features_of("price")
    mean, deviation = 5.0, math.sqrt((9 + 1 + 16) / 3)
    values = torch.tensor([[(price - mean) / deviation] for price in (2.0, 4.0, 9.0)])
    expected = values @ first_parameter(features, "linear.weight").T + first_parameter(features, "linear.bias")
    torch.testing.assert_close(feature_vectors(features)[[1, 2, 5]], expected)
    assert torch.equal(feature_vectors(features)[[0, 3, 4]], first_parameter(features, "missing").expand(3, D))


def test_content_vectors_go_through_a_linear_layer() -> None:
    features = features_of("content")
    expected = CONTENT @ first_parameter(features, "linear.weight").T + first_parameter(features, "linear.bias")
    torch.testing.assert_close(feature_vectors(features)[1:], expected)


def test_feature_vectors_are_added_or_concatenated_and_projected() -> None:
    columns = ("brand", "tags", "price", "content")
    item_vectors, ids = torch.randn(2, 2, D), torch.tensor([[1, 2], [5, 0]])
    summed = features_of(*columns)
    parts = [part(ids) for part in summed.parts]
    assert all(part.shape == (2, 2, D) for part in parts)
    torch.testing.assert_close(summed(item_vectors, ids), item_vectors + sum(parts))
    concatenated = features_of(*columns, merge="concat")
    assert concatenated.project is not None
    expected = concatenated.project(torch.cat([item_vectors, *(part(ids) for part in concatenated.parts)], -1))
    torch.testing.assert_close(concatenated(item_vectors, ids), expected)


@pytest.mark.parametrize("merge", ["sum", "concat"])
def test_vectors_do_not_depend_on_the_order_of_rows_of_the_catalogue(merge: str) -> None:
    columns = ("brand", "size", "tags", "price", "content")
    order = [3, 0, 4, 2, 1]
    positions = torch.tensor([0, *(place + 1 for place in order)])
    first, second = features_of(*columns, merge=merge), features_of(*columns, order=order, merge=merge)
    assert torch.equal(feature_vectors(first, positions), feature_vectors(second))


def test_state_dict_contains_parameters_only() -> None:
    features = features_of("brand", "tags", "price", "content")
    assert set(features.state_dict()) == {name for name, _ in features.named_parameters()}


def test_every_parameter_has_a_gradient() -> None:
    features = features_of("brand", "tags", "price", "content", merge="concat")
    features(torch.randn(6, D), ALL).pow(2).sum().backward()
    for name, parameter in features.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize(
    ("column", "reason"),
    [("colour", "there is no such feature"), ("story", "it is of type text"), ("item_id", "no such")],
)
def test_error_for_an_unreadable_column_names_it_and_the_readable_ones(column: str, reason: str) -> None:
    with pytest.raises(
        UserError, match=rf"'{column}' cannot be read: .*{reason}.*; choose among brand \(categorical\)"
    ):
        features_of("brand", column)


def test_columns_without_any_value_have_finite_vectors() -> None:
    table = pl.DataFrame(
        {"item_id": [1, 2], "a": [None, None], "b": [None, None], "c": [None, None]},
        schema_overrides={"a": pl.String, "b": pl.List(pl.String), "c": pl.Float64},
    )
    kinds = {"a": "categorical", "b": "categorical-list", "c": "numeric"}
    features = ItemFeatures(Catalog(IdMap(table["item_id"]), table, features=kinds), tuple(kinds), width=D, merge="sum")
    vectors = feature_vectors(features, torch.tensor([1, 2]))
    assert bool(torch.isfinite(vectors).all())
    assert torch.equal(vectors[0], vectors[1])
