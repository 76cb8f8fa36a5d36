"""Import of the data of LETTER: JSON of item numbers by user."""

from __future__ import annotations

import json

import pytest
from support.layouts import Files, Imported, Layouts

from nextitem.core.errors import UserError


def test_sequences_and_texts(imported: Imported, layouts: Layouts) -> None:
    items = {
        "0": {"title": "A", "description": "D", "brand": "B", "categories": "Toys,Games"},
        "1": {"title": "C", "description": "", "categories": "Toys"},
    }
    files: Files = {
        "Beauty/Beauty.inter.json": json.dumps({"0": [0, 1, 2], "1": [2, 0]}),
        "Beauty/Beauty.item.json": json.dumps(items),
        "Beauty/Beauty.index.json": "{}",
    }
    dataset, messages = imported("letter", layouts.folder(files))
    assert (dataset.name, dataset.repeats, len(dataset.interactions)) == ("beauty", False, 5)
    assert dataset.catalog.ids.decode(dataset.interactions.item_ids).to_list() == ["0", "1", "2", "2", "0"]
    assert dataset.catalog.titles().to_list() == ["A", "C", "2"]
    assert dataset.catalog.table["categories"].to_list() == [["Toys", "Games"], ["Toys"], None]
    assert "1 items of the log are not described" in messages


def test_repeats_are_detected(imported: Imported, layouts: Layouts) -> None:
    dataset, messages = imported("letter", layouts.folder({"x.inter.json": json.dumps({"0": [0, 1, 0], "1": [1, 0]})}))
    assert dataset.repeats
    assert "items have no features" in messages


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"0": [1, 2', "is no JSON, or is truncated"),
        ("[1, 2]", "is no JSON object of users or items"),
        ('{"0": {"a": 1}}', "is no list of item numbers"),
        ('{"0": [[1]]}', "is no list of item numbers"),
        ("{}", "contains no usable event"),
    ],
)
def test_other_files_are_refused(imported: Imported, layouts: Layouts, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        imported("letter", layouts.folder({"x.inter.json": content}))
