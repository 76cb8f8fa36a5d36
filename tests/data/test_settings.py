"""Settings in dataset.toml: names with another meaning are refused with the way out."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from nextitem.core.errors import UserError
from nextitem.data.readers import dataset_from_frames
from nextitem.data.settings import parse_settings
from nextitem.nn.fields.fields import Fields


def refusal(settings: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse_settings(settings, where="dataset.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"items": {"features": {"id": "categorical"}}}, ("[items] features", "'id'", 'rename = { my_id = "id" }')),
        ({"items": {"features": {"popularity": "numeric"}}}, ("'popularity'", "my_popularity")),
        ({"items": {"features": {"trend": "numeric"}}}, ("'trend'",)),
        ({"items": {"features": {"age": "numeric"}, "released": "born"}}, ("'age'", "my_age")),
        ({"items": {"features": {"brand": "categorical", "brand.last": "categorical"}}}, ("'brand.last'",)),
        ({"items": {"features": {"item_id": "categorical"}}}, ("'item_id'", "always read")),
        ({"users": {"features": {"user_id": "categorical"}}}, ("[users] features", "'user_id'")),
        ({"impressions": {"labels": ["slot"]}}, ("[impressions] labels", "'slot'", "always read")),
        ({"impressions": {"labels": ["click"], "context": {"click": "numeric"}}}, ("'click'", "declared twice")),
        ({"impressions": {"labels": ["click", "click"]}}, ("'click'", "declared twice")),
        ({"impressions": {"labels": ["teacher"]}}, ("'teacher'", "my_teacher")),
        (
            {"impressions": {"context": {"item.id": "categorical"}}},
            ("[impressions] context", "'item.id'", "my_item_id"),
        ),
        ({"impressions": {"context": {"user.country": "categorical"}}}, ("'user.country'",)),
        ({"interactions": {"context": {"session_id": "categorical"}}}, ("[interactions] context", "'session_id'")),
        ({"interactions": {"context": {"action": "categorical"}}}, ("'action'", "always read")),
        ({"interactions": {"labels": ["timestamp"]}}, ("'timestamp'",)),
        ({"interactions": {"duplicates": "remove"}}, ("duplicates", "'remove'", "keep")),
        ({"interactions": {"positive": {"rating": {"min": 4}}}}, ("positive.rating",)),
    ],
)
def test_names_with_another_meaning_are_refused(settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    message = refusal(settings)
    assert not [part for part in parts if part not in message], message


def test_the_rename_that_a_message_proposes_works() -> None:
    log = {"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1_700_000_000, 1_700_000_001]}
    items = pl.DataFrame({"item_id": [1, 2], "id": ["x", "y"], "age": [3, 4]})
    settings = {"rename": {"my_id": "id"}, "features": {"my_id": "categorical", "age": "numeric"}}
    catalog = dataset_from_frames({"interactions": log, "items": items}, {"items": settings}).catalog
    assert {"item.id", "item.my_id", "item.age"} <= set(Fields(catalog).names)


def test_every_built_in_item_field_is_reserved() -> None:
    log = {"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1_700_000_000, 1_700_000_001]}
    items = {"item_id": [1, 2], "born": ["2020-01-01", "2021-01-01"]}
    catalog = dataset_from_frames({"interactions": log, "items": items}, {"items": {"released": "born"}}).catalog
    built_in_names = [name.removeprefix("item.") for name in Fields(catalog).names if name.startswith("item.")]
    for name in built_in_names:
        assert f"{name!r}" in refusal({"items": {"features": {name: "numeric"}, "released": "born"}})
