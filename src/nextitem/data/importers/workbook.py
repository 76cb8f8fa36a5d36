"""Read the rows of Excel workbooks (.xlsx) as a stream of XML; cells are text, or None if they are empty."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, iterparse

from nextitem.core.errors import UserError

MAX_PART = 4 << 30  # maximal number of bytes of one unpacked part

_NAMESPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_SHEET = re.compile(r"xl/worksheets/sheet(\d+)\.xml")


def sheets(file: Path, *, where: str) -> Iterator[Iterator[list[str | None]]]:
    """Yield the sheets of a workbook in their order; each is an iterator of rows, all as long as its first.

    Numbers and dates are returned as Excel stores them: a date is a number of days since 1899-12-30. Raises UserError
    if the file is not a workbook, or is damaged.
    """
    with _damage_as_user_error(where), zipfile.ZipFile(file) as archive:
        parts = {int(match[1]): name for name in archive.namelist() if (match := _SHEET.fullmatch(name))}
        if not parts:
            raise UserError(f"{where}: is no Excel workbook: it has no sheet")
        shared_texts: list[str] = []
        if "xl/sharedStrings.xml" in archive.namelist():
            shared_texts = ["".join(entry.itertext()) for entry in _elements(archive, "xl/sharedStrings.xml", "si")]
        for _, name in sorted(parts.items()):
            yield _rows(archive, name, shared_texts, where)


def _rows(archive: zipfile.ZipFile, name: str, shared_texts: list[str], where: str) -> Iterator[list[str | None]]:
    """Yield the rows of a sheet; `shared` are the texts of the workbook that cells refer to by number."""
    width = 0
    with _damage_as_user_error(where):
        for row in _elements(archive, name, "row"):
            cells: dict[int, str] = {}
            for position, cell in enumerate(row.iter(f"{_NAMESPACE}c")):
                value = cell.find(f"{_NAMESPACE}v")
                text = "".join(cell.itertext()) if value is None else value.text
                if text:
                    letters = re.sub(r"\d", "", cell.get("r", ""))
                    number = _column_number(letters) if letters else position
                    cells[number] = shared_texts[int(text)] if cell.get("t") == "s" else text
            width = width or 1 + max(cells, default=-1)
            yield [cells.get(number) for number in range(width)]


@contextmanager
def _damage_as_user_error(where: str) -> Iterator[None]:
    """Turn errors of a damaged workbook into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, ParseError, KeyError, IndexError, ValueError, EOFError) as error:
        raise UserError(f"{where}: is no Excel workbook, or a damaged one ({error})") from None


def _elements(archive: zipfile.ZipFile, name: str, tag: str) -> Iterator[Element]:
    """Yield the elements of a part of a workbook, one at a time; each is removed from memory after its use."""
    if archive.getinfo(name).file_size > MAX_PART:
        raise UserError(f"{archive.filename}: {name} unpacks to more than {MAX_PART >> 30} GiB")
    with archive.open(name) as stream:
        for _, element in iterparse(stream):
            if element.tag == f"{_NAMESPACE}{tag}":
                yield element
                element.clear()


def _column_number(letters: str) -> int:
    """Return the number of a column, from 0: A is 0, AA is 26."""
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1
