"""Reader of events: targets, rows logged twice, owners' columns with reserved names, and columns that are read."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.readers import dataset_from_frames

LOG: dict[str, list[Any]] = {
    "user_id": [1, 1, 2, 2],
    "item_id": [5, 6, 5, 7],
    "timestamp": [1_700_000_000 + row for row in range(4)],
}


def read(settings: dict[str, Any] | None = None, **columns: list[Any] | pl.Series) -> Dataset:
    return dataset_from_frames({"interactions": LOG | columns}, {"interactions": settings or {}})


def refusal(settings: dict[str, Any], **columns: list[Any]) -> str:
    with pytest.raises(UserError) as caught:
        read(settings, **columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def positive(dataset: Dataset) -> list[bool] | None:
    rows = dataset.interactions.positive
    return None if rows is None else rows.tolist()


@pytest.mark.parametrize(
    ("condition", "values", "expected"),
    [
        (">= 4", [5, 1, 4, None], [True, False, True, False]),
        (">4", [5, 1, 4, None], [True, False, False, False]),
        ("< 2.5", ["1.5", "2.5", "", "2"], [True, False, False, True]),
        ("!= 0", [0, 1, -1, None], [False, True, True, False]),
        (5, [5, 1, 4, 5.0], [True, False, False, True]),
        ((4, 5), [5, 1, 4, None], [True, False, True, False]),
        (True, ["True", "no", "yes", None], [True, False, True, False]),
        (True, [True, False, True, None], [True, False, True, False]),
        (("done", "paid"), ["done", "open", " paid", None], [True, False, True, False]),
    ],
)
def test_conditions_select_the_targets(condition: Any, values: list[Any], expected: list[bool]) -> None:
    column = values if isinstance(values[0], str) else pl.Series(values, strict=False)
    assert positive(read({"positive": {"rating": condition}}, rating=column)) == expected


def test_a_target_must_meet_all_conditions_and_have_a_positive_action() -> None:
    columns: dict[str, Any] = {
        "action": ["buy", "buy", "view", "buy"],
        "rating": [5, 2, 5, 4],
        "paid": ["y", "y", "y", "n"],
    }
    dataset = read({"positive_actions": ["buy"], "positive": {"rating": ">= 4", "paid": True}}, **columns)
    assert positive(dataset) == [True, False, False, False]
    assert dataset.interactions.columns.columns == ["action"]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"positive": {"stars": ">= 4"}}, ("[interactions] positive in settings", "'stars'", "rating")),
        ({"positive": {"rating": ">= four"}}, ("'>= four'", "'rating'", ">= 4")),
        ({"positive": {"rating": 9}}, ("'rating'", "never contains 9", "correct")),
        ({"positive": {"rating": "> 9"}}, ("no row meets", "'> 9'")),
        ({"positive": {"note": ">= 4"}}, ("'note', row 1", "'good' is no number", "[interactions] positive")),
    ],
)
def test_conditions_that_no_row_can_meet_are_refused(settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    message = refusal(settings, rating=[5, 1, 4, 2], note=["good", "bad", "", ""])
    assert not [part for part in parts if part not in message], message


def test_a_note_describes_targets_unless_settings_select_them() -> None:
    for name, values, way_out in (
        ("rating", [5, 1, 4, None], '{ rating = ">= 4" }'),
        ("value", ["0.5", "1", "", "0"], '{ value = ">= 1" }'),
    ):
        notes = [note for note in read(None, **{name: values}).notes if "target" in note]
        assert len(notes) == 1
        assert f"whatever its {name}" in notes[0]
        assert way_out in notes[0]
        assert "or positive = {} if all count" in notes[0]
        assert not [n for n in read({"positive": {}}, **{name: values}).notes if "target" in n]
    like = read({"labels": ["like"]}, like=[1, 0, 1, None])
    assert any("whatever its like (0 to 1)" in note for note in like.notes)
    actions = ["like", "dislike", "like", None]
    assert any("(dislike 1, like 2)" in note for note in read(None, action=actions).notes)
    assert not read({"positive_actions": ["like"]}, action=actions).notes
    assert not read(None, action=["buy"] * 4, rating=[3] * 4).notes


def test_codes_of_actions_may_be_integers() -> None:
    dataset = read({"positive_actions": ["2"]}, action=[1, 2, None, 2])
    assert dataset.interactions.columns["action"].to_list() == ["1", "2", None, "2"]
    assert positive(dataset) == [False, True, False, True]
    assert read(None, action=["view", "", " view ", "buy"]).interactions.columns["action"].to_list() == [
        *("view", None, "view", "buy")
    ]


def test_owners_columns_with_reserved_names_are_accepted_and_ignored() -> None:
    dataset = read(
        None,
        value=["red", "blue", "", "red"],
        rating=["good", "bad", "bad", "good"],
        price=["1,50", "2,00", "?", ""],
        quantity=["two", "", "", ""],
        query=[1, 2, 3, 4],
    )
    assert dataset.interactions.columns.columns == []
    assert not dataset.notes
    declared = read(
        {"labels": ["rating"], "context": {"price": "numeric"}}, rating=[5, 1, 2, 4], price=["1.5", "2", "", "3"]
    )
    assert declared.interactions.columns.columns == ["rating", "price"]
    assert "'value', row 1" in refusal({"labels": ["value"]}, value=["red", "", "", ""])


def twice(**columns: list[Any]) -> dict[str, list[Any]]:
    return {name: values * 2 for name, values in (LOG | columns).items()}


def test_rows_logged_twice_are_noted_and_can_be_dropped() -> None:
    frames = {"interactions": twice()}
    complete = dataset_from_frames(frames)
    assert len(complete.interactions) == 8
    assert any("4 of 8 events are copies" in note and 'duplicates = "drop"' in note for note in complete.notes)
    dropped = dataset_from_frames(frames, {"interactions": {"duplicates": "drop"}})
    assert dropped.fingerprint == read().fingerprint
    assert any("left out 4 of 8 events" in note for note in dropped.notes)
    assert not dataset_from_frames(frames, {"interactions": {"duplicates": "keep"}}).notes


@pytest.mark.parametrize(
    ("columns", "settings", "count"),
    [
        ({"rating": [1, 2, 3, 4, 1, 2, 3, 5]}, {"positive": {}}, 3),
        ({"price": [1.0] * 4 + [1.0, None, 1.0, 2.0]}, {}, 2),
        ({"position": [0, 1, 0, 1, 0, 1, 0, 2]}, {}, 3),
        ({"session_id": ["a"] * 4 + ["a", "a", "b", "b"]}, {}, 2),
        ({"tags": [["x"], ["y"]] * 3 + [["x"], ["z"]]}, {"context": {"tags": "categorical-list"}}, 3),
        ({"device": ["x"] * 7 + ["y"]}, {"context": {"device": "categorical"}}, 3),
        ({"device": ["x"] * 7 + ["y"]}, {}, 4),
    ],
)
def test_copies_are_equal_in_every_column_that_is_read(
    columns: dict[str, Any], settings: dict[str, Any], count: int
) -> None:
    dataset = dataset_from_frames(
        {"interactions": twice() | columns}, {"interactions": settings | {"duplicates": "drop"}}
    )
    assert len(dataset.interactions) == 8 - count


def test_copies_of_events_without_a_time_are_found_by_their_position() -> None:
    log = {
        "user_id": [1, 1, 1, 2, 2],
        "item_id": [5, 6, 6, 5, 6],
        "timestamp": [1_700_000_000, None, None, None, None],
        "position": [0, 1, 1, 0, 0],
    }
    dataset = dataset_from_frames({"interactions": log}, {"interactions": {"duplicates": "drop"}})
    assert len(dataset.interactions) == 4


@pytest.mark.parametrize("kind", [pl.Int64, pl.String, pl.Float64])
def test_positions_of_every_type_order_the_events(kind: type[pl.DataType]) -> None:
    large = 0 if kind == pl.Float64 else 2**60
    positions = pl.Series([large + 2, large + 1, large, large]).cast(kind)
    dataset = dataset_from_frames({"interactions": LOG | {"timestamp": [None] * 4, "position": positions}})
    assert dataset.catalog.ids.decode(dataset.interactions.item_ids).to_list() == [6, 5, 5, 7]


def test_an_action_called_search_that_has_items_is_refused_with_the_way_out() -> None:
    assert "give this action another name" in refusal({}, action=["search", "view", "view", "view"], query=["a"] * 4)
