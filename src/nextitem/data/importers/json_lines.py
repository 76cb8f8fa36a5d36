"""Read lines of JSON, or of Python literals as in old files; lines are parsed, never evaluated."""

from __future__ import annotations

import ast
import codecs
import json
from collections.abc import Iterator
from typing import Any

from nextitem.core.errors import UserError
from nextitem.data.importers.archive import Archive, Member
from nextitem.data.importers.report import Report

_DECODER = json.JSONDecoder()

MAX_UNREADABLE = 0.01  # share of lines that may be unreadable; a file with more is another one, or damaged


def json_rows(archive: Archive, member: Member, report: Report) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one object per line; skip empty lines.

    A line that is neither a JSON object nor a Python dict of literals is left out; a note counts these lines. Raises
    UserError if they are more than a hundredth of all lines.
    """
    num_lines = num_unreadable = first_unreadable = 0
    for number, line in enumerate(archive.lines(member), start=1):
        if not line.strip():
            continue
        num_lines += 1
        row = _parse_line(line)
        if row is None:
            num_unreadable += 1
            first_unreadable = first_unreadable or number
        else:
            yield row
    if num_unreadable > MAX_UNREADABLE * num_lines:
        raise UserError(
            f"{member.where}: {num_unreadable:,} of {num_lines:,} lines, the first of them line {first_unreadable}, "
            "are neither JSON objects nor Python dicts; it is another file, or a damaged one"
        )
    report.note_left_out(num_unreadable, f"unreadable lines of {member.name} (the first: line {first_unreadable})")


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line, or None if it has none. Literals may be of Python 2: u'text'."""
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError:
        return None
    try:
        row = _DECODER.decode(text)
    except (ValueError, RecursionError):
        try:
            row = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return None
    return row if isinstance(row, dict) else None


def id_of(value: object) -> str | None:
    """Return an id as text, with its spaces; None if it is empty, or neither text nor a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return _encodable(str(value)) or None


def whole_number_of(value: object) -> int | None:
    """Return a whole number of absolute value below 2**62; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if abs(value) < 2**62 else None


def text_of(value: object) -> str | None:
    """Return a value as text without spaces at its ends; None if it is missing, empty, or neither text nor number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return _encodable(str(value)).strip() or None


def _encodable(text: str) -> str:
    """Return a text that UTF-8 can encode: join surrogate pairs, as Python 2 writes them, and replace single halves."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def number_of(value: object) -> float | None:
    """Return a finite number, also from text with a currency sign ("$12.99"); None for anything else."""
    if isinstance(value, str):
        value = value.strip().removeprefix("$").replace(",", "")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 1e300 else None


def texts_of(value: object) -> list[str]:
    """Return the distinct texts of a list, or of lists in it, in order."""
    if isinstance(value, str):
        text = text_of(value)
        return [] if text is None else [text]
    if not isinstance(value, list | tuple):
        return []
    return list(dict.fromkeys(text for part in value for text in texts_of(part)))
