"""Formats of times written as text: ISO 8601 and similar formats."""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars as pl

TIME_PATTERN = re.compile(
    r"(?P<date>\d{4}(?P<sep>[-/.])\d{1,2}(?P=sep)\d{1,2}|\d{8})"  # 2024-05-31, 2024/5/1, 20240531
    r"(?:(?P<gap>[Tt ]\s*)"
    r"(?P<clock>\d{1,2}:\d\d(?P<seconds>:\d\d(?P<fraction>[.,]\d+)?)?|\d{4}|\d{6})"  # 18:30:00.250, 183000
    r"(?P<space>\s*)(?P<utc>[Zz]|UTC|GMT|Etc/UTC)?(?P<offset>[+-]\d\d(?::?\d\d)?)?"  # Z, +02:00, GMT+0200
    r"(?P<region>(?<=\d)\[[\w/+-]+\])?)?"  # [Europe/Paris] after an offset, as Java writes it
)


@dataclass(frozen=True)
class TimeFormat:
    """A format of times, with which the texts of a column are parsed.

    Attributes:
        pattern: the format in the notation of strptime.
        has_zone: whether such a text contains a time zone.
        has_comma: whether a comma is before the fraction of a second.

    """

    pattern: str
    has_zone: bool
    has_comma: bool = False

    def ticks(self, text: pl.Expr) -> pl.Expr:
        """Return microseconds since 1970 UTC; null if the text has another format."""
        if self.has_comma:
            text = text.str.replace(",", ".", literal=True)
        return text.str.to_datetime(self.pattern, time_unit="us", strict=False).dt.timestamp("us")


def format_of(text: str) -> TimeFormat | None:
    """Return the format of a time, or None if it cannot be read without ambiguity.

    Dates begin with the year. A text without a zone, or a date alone, has no zone.
    """
    match = TIME_PATTERN.fullmatch(text)
    if match is None:
        return None
    sep, clock = match["sep"] or "", match["clock"]
    pattern = f"%Y{sep}%m{sep}%d"
    if clock is None:
        return TimeFormat(pattern, has_zone=False)
    pattern += match["gap"]
    if ":" in clock:
        pattern += "%H:%M" + (":%S" if match["seconds"] else "") + ("%.f" if match["fraction"] else "")
    else:
        pattern += "%H%M%S" if len(clock) == 6 else "%H%M"
    has_zone = bool(match["utc"] or match["offset"])
    pattern += match["space"] + (match["utc"] or "") + ("%#z" if match["offset"] else "") + (match["region"] or "")
    return TimeFormat(pattern, has_zone, has_comma=bool(match["fraction"]) and "," in match["fraction"])
