"""CSV files: values keep their digits, and other files are refused with the way out."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.csv_files import read_csv
from nextitem.data.readers import load_dataset

LOG = "user_id,item_id,timestamp\nu1,a,1700000000\nu1,b,1700000060\nu2,a,1700000120\n"


def write(folder: Path, **files: str | bytes) -> Path:
    """Write a dataset folder, and return its path; text is written in UTF-8 with unchanged line endings."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        file = folder / ("dataset.toml" if name == "toml" else f"{name}.csv")
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def load(folder: Path, **files: str | bytes) -> Dataset:
    return load_dataset(write(folder, **files))


@pytest.mark.parametrize(
    "values",
    [
        ["007", "7", "8"],
        ["1.10", "1.1", "2.5"],
        ["1e5", "100000", "1"],
        ["+1", "1", "2"],
        ["1.0", "1", "2"],
        ["-0", "0", "1"],
        ["12345678901234567890", "12345678901234567891", "3"],
        ["0x10", "16", "1"],
    ],
)
@pytest.mark.parametrize("kind", ["categorical", "text", None, "id"])
def test_values_that_look_like_numbers_keep_their_digits(tmp_path: Path, values: list[str], kind: str | None) -> None:
    if kind == "id":
        log = "user_id,item_id,position\n" + "".join(f"u{row},{value},{row}\n" for row, value in enumerate(values))
        dataset = load(tmp_path, interactions=log)
        assert sorted(dataset.catalog.ids.external.to_list()) == sorted(values)
        return
    items = "item_id,size\n" + "".join(f"{item},{value}\n" for item, value in zip("abc", values, strict=True))
    toml = f'[items]\ntext = "{{size}}"\nfeatures = {{ size = "{kind}" }}' if kind else '[items]\ntext = "{size}"'
    catalog = load(tmp_path, interactions=LOG, items=items, toml=toml).catalog
    assert catalog.table["size"].to_list() == values
    assert catalog.text is not None
    assert catalog.text.to_list() == values


def test_integers_are_integers_and_declared_numbers_are_numbers(tmp_path: Path) -> None:
    items = "item_id,count,price,empty\na,10,1.50,\nb,,2,\nc,-3,1e3,\n"
    toml = '[items]\nfeatures = { price = "numeric" }'
    table = load(tmp_path, interactions=LOG, items=items, toml=toml).catalog.table
    assert table["count"].to_list() == [10, None, -3]
    assert table["price"].to_list() == [1.5, 2.0, 1000.0]
    assert table["empty"].to_list() == [None] * 3


def test_renamed_columns_are_read_like_columns_with_standard_names(tmp_path: Path) -> None:
    rows = "1,1e5,1700000000\n1,18446744073709551616,1700000060\n2,12.5,1700000120\n"
    standard = load(tmp_path / "own", interactions="user_id,item_id,timestamp\n" + rows)
    toml = '[interactions]\nrename = { user_id = "uid", item_id = "iid", timestamp = "ts" }'
    renamed = load(tmp_path / "renamed", interactions="uid,iid,ts\n" + rows, toml=toml)
    assert standard.catalog.ids.external.to_list() == ["12.5", "18446744073709551616", "1e5"]
    assert renamed.fingerprint == standard.fingerprint


def test_byte_order_marks_and_windows_line_endings_do_not_matter(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    items = 'item_id,title\na,"two words"\nb,x\n'
    plain = load(tmp_path / "plain", interactions=LOG, items=items, toml="repeats = false\n")
    windows = load(
        tmp_path / "windows",
        interactions=mark + LOG.replace("\n", "\r\n").encode(),
        items=mark + items.replace("\n", "\r\n").encode(),
        toml=mark + b"repeats = false\r\n",
    )
    assert windows.fingerprint == plain.fingerprint
    assert windows.repeats is False
    assert windows.catalog.table["title"].to_list() == ["two words", "x"]


def test_spaces_at_the_ends_of_names_and_values_are_removed(tmp_path: Path) -> None:
    spaced = load(
        tmp_path,
        interactions="user_id , item_id, timestamp\nu1 , a, 1700000000\nu1 , b , 1700000060\n\n , ,\n"
        "u2, a, 1700000120\n",
        items="item_id,title\n a,One\nb ,Two\n",
    )
    assert (
        spaced.fingerprint
        == load(tmp_path / "plain", interactions=LOG, items="item_id,title\na,One\nb,Two\n").fingerprint
    )
    assert any("2 of user_id, 3 of item_id, 3 of timestamp" in note for note in spaced.notes)
    assert any("items.csv" in note and "2 of item_id" in note for note in spaced.notes)


def test_columns_without_a_name_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(",a,,b,\n0,1,x,2,\n1,3,y,4,\n")
    assert read_csv(file)[0].to_dict(as_series=False) == {"a": [1, 3], "b": [2, 4]}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (LOG.encode("utf-16"), ("UTF-16", "save it as UTF-8")),
        (LOG.encode("utf-16-le"), ("zero bytes", "save it as UTF-8")),
        (b"\x1f\x8b\x08\x00", ("gzip", "unpack")),
        (b"PK\x03\x04rest", ("Excel", "CSV UTF-8")),
        (b"PAR1rest", ("Parquet", ".parquet")),
        (LOG.replace("\n", "\r").encode(), ("carriage return", "Unix or Windows")),
        (b"user_id,item_id,item_id,timestamp\n1,2,3,4\n", ("'item_id' twice", "rename")),
        (b"user_id, item_id,item_id ,timestamp\n1,2,3,4\n", ("'item_id' twice", "rename")),
        (b"user_id\titem_id\ttimestamp\n1\t2\t3,5\n", ("another separator", "commas")),
        (LOG.encode() + b"u3,a,1700000000,x\n", ("row 4 (line 5)", "4 fields")),
    ],
)
def test_other_formats_are_refused_with_the_way_out(tmp_path: Path, content: bytes, parts: tuple[str, ...]) -> None:
    folder = write(tmp_path / "set", interactions=content)
    with pytest.raises(UserError) as caught:
        load_dataset(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder / "interactions.csv"))
    assert not [part for part in parts if part not in message], message


def test_a_message_names_the_line_of_a_row_after_long_texts(tmp_path: Path) -> None:
    items = f'item_id,title\na,"{"long " * 100_000}\nb"\n,x\n'
    with pytest.raises(UserError, match=r"items.csv: column 'item_id', row 2 \(line 4\): the id is missing"):
        load(tmp_path, interactions=LOG, items=items)


def test_the_type_of_a_column_depends_on_all_of_its_values(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a\n" + "1\n" * 5000 + "01\n")
    assert read_csv(file)[0].schema == {"a": pl.String}
