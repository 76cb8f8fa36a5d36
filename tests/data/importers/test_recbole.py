"""Import of RecBole's atomic files: typed headers, splits, sequences, content vectors, missing values."""

from __future__ import annotations

import pytest
from support.layouts import Files, Imported, Layouts

from nextitem.core.errors import UserError

INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\tweather:token\ttags:token_seq\n"
    "007\t9\t4\t881250949\tsun\ta b\n"
    "007\t10\t3.5\t881250950.5\train\tc\n"
    "8\t9\t1\t881250951\t\t\n"
    "\t9\t1\t881250951\tsun\t\n"
)
ITEM = (
    "item_id:token\tmovie_title:token_seq\tclass:token_seq\trelease_year:token\tprice:float\n"
    '9\tToy "Story\tAnimation Comedy\t1995\t1.5\n'
    "10\tHeat\t\t1995\t\n"
)
USER = "user_id:token\tage:float\tgender:token\n007\t24\tM\n8\t53\tF\n"


def test_columns_are_read_by_the_types_in_the_header(imported: Imported, layouts: Layouts) -> None:
    files: Files = {"ml/ml.inter": INTER, "ml/ml.item": ITEM, "ml/ml.user": USER, "ml/ml.kg": "head_id:token\n"}
    dataset, messages = imported("recbole", layouts.zip(files))
    assert (dataset.name, dataset.repeats, len(dataset.interactions)) == ("ml", False, 3)
    assert dataset.users.ids.external.to_list() == ["007", "8"]
    assert dataset.context == {"weather": "categorical", "tags": "categorical-list"}
    assert dataset.labels == ("rating",)
    assert dataset.interactions.timestamps is not None
    assert dataset.interactions.timestamps.tolist() == [881250949000, 881250950500, 881250951000]
    assert dataset.catalog.titles().to_list() == ["Heat", 'Toy "Story']
    assert dataset.catalog.features == {
        "class": "categorical-list",
        "release_year": "categorical",
        "price": "numeric",
    }
    assert dataset.catalog.text is not None
    assert dataset.catalog.text[1] == 'Toy "Story. Animation, Comedy'
    assert dataset.users.features == {"age": "numeric", "gender": "categorical"}
    assert "left out 1 rows of ml/ml.inter without user_id or item_id or timestamp" in messages
    assert "ml/ml.kg is left out" in messages


def test_a_published_split_becomes_the_column_split(imported: Imported, layouts: Layouts) -> None:
    header, *rows = INTER.splitlines()[:4]
    files: Files = {
        "x.train.inter": "\n".join([header, rows[0], rows[2]]),
        "x.valid.inter": "\n".join([header, rows[1]]),
        "x.test.inter": "\n".join([header, "8\t10\t1\t881250952\tsun\t"]),
    }
    dataset, messages = imported("recbole", layouts.folder(files))
    assert dataset.interactions.columns["split"].to_list() == ["train", "valid", "train", "test"]
    assert "--protocol published" in messages


def test_sessions_without_times_keep_their_order(imported: Imported, layouts: Layouts) -> None:
    rows = "session_id:token\titem_id:token\n1\tb\n1\ta\n2\tb\n"
    dataset, messages = imported("recbole", layouts.folder({"s.inter": rows, "s.user": USER}))
    assert "s.user is left out" in messages
    assert dataset.anonymous
    assert dataset.repeats
    assert dataset.catalog.ids.decode(dataset.interactions.item_ids).to_list() == ["b", "a", "b"]
    assert "there are no times" in messages


def test_number_lists_are_content_vectors(imported: Imported, layouts: Layouts) -> None:
    files: Files = {
        "x.inter": INTER,
        "x.item": "item_id:token\temb:float_seq\tother:float_seq\n9\t0.5 1\t1\n10\t0 -1\t1 2\n",
    }
    dataset, messages = imported("recbole", layouts.folder(files))
    assert dataset.catalog.table["content_emb"].to_list() == [[0.0, -1.0], [0.5, 1.0]]
    assert "other is left out: some rows have none, or its number lists are not of one length" in messages


def test_names_with_another_meaning_are_changed(imported: Imported, layouts: Layouts) -> None:
    files: Files = {
        "x.inter": "user_id:token\titem_id:token\ttimestamp:float\tposition:float\tsplit:token\n"
        "1\t9\t5\t7\ta\n2\t8\t6\t7\tb\n",
        "x.item": "item_id:token\tpopularity:float\tgenre.main:token\n9\t5\tdrama\n",
    }
    dataset, _ = imported("recbole", layouts.folder(files))
    assert dataset.context == {"position_value": "numeric", "split_value": "categorical"}
    assert dataset.catalog.features == {"popularity_value": "numeric", "genre_main": "categorical"}


def test_invalid_numbers_are_missing_values(imported: Imported, layouts: Layouts) -> None:
    items = "item_id:token\tprice:float\n9\tnan\n10\t1.5\n"
    dataset, _ = imported("recbole", layouts.folder({"x.inter": INTER, "x.item": items}))
    assert dataset.catalog.table["price"].to_list() == [1.5, None]


def test_items_without_a_description_get_a_row(imported: Imported, layouts: Layouts) -> None:
    dataset, messages = imported(
        "recbole", layouts.folder({"x.inter": INTER, "x.item": "item_id:token\tname:token\n9\tA\n"})
    )
    assert dataset.catalog.table["title"].to_list() == [None, "A"]
    assert "1 values of item_id in the log are not described" in messages


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"x.inter": "user_id\titem_id\n1\t2\n"}, "the header 'user_id' is not name:type"),
        ({"x.inter": "uid:token\titem_id:token\n1\t2\n"}, "a log has item_id:token and user_id:token"),
        (
            {"x.inter": "user_id:token\titem_id_list:token_seq\titem_id:token\n1\t2 3\t4\n"},
            "every row contains a history",
        ),
        ({"x.inter": INTER, "y.inter": INTER}, "contains several logs"),
        ({"x.inter": "user_id:token\titem_id:token\ta.b:token\ta_b:float\n"}, "two columns have one name"),
        ({"x.train.inter": INTER}, r"a split is \.train\.inter, \.valid\.inter and \.test\.inter"),
        ({"x.inter": INTER, "x.item": "id:token\n1\n"}, "has no item_id:token"),
        ({"x.inter": ""}, "the file is empty"),
        ({"x.item": ITEM}, r"contains no \*\.inter; recbole expects NAME\.inter"),
        ({"x.inter": "user_id:token\titem_id:token\n\t\n\t2\n"}, "contains no usable row"),
    ],
)
def test_mistakes_are_named(imported: Imported, layouts: Layouts, files: Files, message: str) -> None:
    with pytest.raises(UserError, match=message):
        imported("recbole", layouts.folder(files))
