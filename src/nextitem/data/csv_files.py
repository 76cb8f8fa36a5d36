"""Read CSV files into frames without changing how any value is written."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from nextitem.core.errors import UserError

# First bytes of a file that is not CSV in UTF-8 -> its actual format, and the way out.
OTHER_FORMATS = {
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8 (in Excel: CSV UTF-8)"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8 (in Excel: CSV UTF-8)"),
    b"\x1f\x8b": ("compressed by gzip", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstandard", "unpack it"),
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it, or export the sheet as CSV UTF-8"),
    b"PAR1": ("a Parquet file", "give it the ending .parquet"),
}
FIRST_BYTES = 65_536  # number of bytes at the start of a file within which its first line should end
OTHER_SEPARATORS = ";\t|"
csv.field_size_limit(2**31 - 1)  # one text may be longer than the 128 KiB that the module allows by default


def read_csv(path: Path) -> tuple[pl.DataFrame, list[str]]:
    """Read a CSV file, and return its rows and notes about what was changed.

    A column becomes Int64 if every value of the whole file, printed as an integer, is the same text again. Otherwise
    the column stays text. So "00123", "1.10", "1e5", "+1" and ids beyond 64 bits keep their digits. Readers of numbers
    and times parse text themselves. Spaces at the ends of names and values are removed. Empty values are null, lines
    without a value and columns without a name are skipped.

    Raises UserError if the file is not CSV text in UTF-8 with one distinct name for each column.
    """
    names = _header(path)
    try:
        frame = pl.read_csv(path, infer_schema=False, glob=False)
    except pl.exceptions.NoDataError:
        raise UserError(f"{path}: the file is empty; the first line must name the columns") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _problem(path, error) from None
    if frame.width != len(names):
        raise UserError(
            f"{path}: the header names {len(names)} columns, the rows have {frame.width}; write the header on one line"
        )
    columns = [column.alias(name) for name, column in zip(names, frame, strict=True) if name]
    num_stripped: dict[str, int] = {}
    for place, column in enumerate(columns):
        text = column.str.strip_chars()
        if num_changed := int(((text != column) & (text != "")).sum()):
            num_stripped[column.name] = num_changed
        columns[place] = text.set(text == "", None)
    frame = pl.DataFrame(columns)
    if frame.width:
        frame = frame.filter(pl.any_horizontal(pl.all().is_not_null()))  # csv_records counts in the same way
    notes = []
    if num_stripped:
        counts = ", ".join(f"{count:,} of {name}" for name, count in num_stripped.items())
        notes.append(f"{path}: spaces at the ends of values are no part of them; took them off these values: {counts}")
    return frame.select(as_integers(column) for column in frame), notes


def as_integers(text: pl.Series) -> pl.Series:
    """Return the column as Int64 if every text is an integer in its usual form ("7", not "07"), else the text."""
    if text.null_count() == len(text):
        return text
    integers = text.cast(pl.Int64, strict=False)
    is_same = integers.null_count() == text.null_count() and bool((integers.cast(pl.String) == text).all())
    return integers if is_same else text


def line_of_row(path: Path, row: int) -> int:
    """Return the number of the line of the file on which a row begins; lines and rows count from 1."""
    for number, (line, _) in enumerate(_records(path)):
        if number == row:
            return line
    raise AssertionError(f"{path} has no row {row}")


def _header(path: Path) -> list[str]:
    """Return the names of the columns, "" for a column without a name.

    Raises UserError if they cannot be read, or if a name occurs twice.
    """
    with path.open("rb") as file:
        first = file.read(FIRST_BYTES)
    for mark, (what, remedy) in OTHER_FORMATS.items():
        if first.startswith(mark):
            raise UserError(f"{path}: is {what}; {remedy}")
    if b"\0" in first:
        raise UserError(f"{path}: contains zero bytes, so it is UTF-16 or not text; save it as UTF-8")
    if b"\r" in first and b"\n" not in first:
        raise UserError(f"{path}: lines end with a carriage return alone; save it with line endings of Unix or Windows")
    names = [name.strip() for name in next(_records(path), (1, []))[1]]
    if any(_is_not_utf8(name) for name in names):
        raise UserError(f"{path}: line 1, the header: not UTF-8 text; save the file as UTF-8")
    if len(names) == 1 and any(mark in names[0] for mark in OTHER_SEPARATORS):
        raise UserError(
            f"{path}: the header is one column {names[0]!r}: it seems to use another separator than the comma; "
            "write it with commas"
        )
    for place, name in enumerate(names):
        if name and name in names[:place]:
            raise UserError(f"{path}: the header names {name!r} twice; rename one of the columns or remove it")
    return names


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a file with the number of the line on which each begins; keep bytes that are not UTF-8."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        line = 1
        for record in reader:
            if any(value.strip() for value in record):
                yield line, record
            line = reader.line_num + 1


def _is_not_utf8(text: str) -> bool:
    """Tell whether a text contains bytes that are not UTF-8, which `_records` keeps as surrogates."""
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def _problem(path: Path, error: Exception) -> UserError:
    """Return an error that names the first record that is not UTF-8 or has too many fields, else the reader's error."""
    header: list[str] = []
    for row, (line, record) in enumerate(_records(path)):
        header = header or record
        for column, value in enumerate(record):
            if _is_not_utf8(value):
                name = header[column].strip() if column < len(header) else str(column + 1)
                return UserError(
                    f"{path}: column {name!r}, row {row} (line {line}): not UTF-8 text; save the file as UTF-8"
                )
        if len(record) > len(header):
            return UserError(
                f"{path}: row {row} (line {line}) has {len(record)} fields, the header has {len(header)}; "
                "put quotes around values that contain a comma"
            )
    reason = str(error).splitlines()[0]
    return UserError(f"{path}: not a well-formed CSV file ({reason}); close every quote, and save it as UTF-8")
