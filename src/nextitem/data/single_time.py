"""One time of a request, read as a column of a data set with this value alone is read (data/times.py)."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time

import polars as pl

from nextitem.data.time_formats import format_of
from nextitem.data.times import SECONDS_BELOW


def milliseconds_of(value: object) -> int:
    """Return a time as milliseconds since 1970 UTC.

    Args:
        value: seconds or milliseconds since 1970, also as text; a text such as 2024-05-31 18:30:00; or a date.

    Raises:
        ValueError: it is no time.

    """
    if isinstance(value, str):
        return _of_text(value.strip())
    if isinstance(value, date):
        moment = value if isinstance(value, datetime) else datetime.combine(value, time())
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1e6) // 1000
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no time")
    is_seconds = abs(value) < SECONDS_BELOW
    if value == int(value):
        return int(value) * 1000 if is_seconds else int(value)
    return round(value * (1e6 if is_seconds else 1e3)) // 1000


def _of_text(text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        form = format_of(text)
        ticks = None if form is None else pl.select(form.ticks(pl.lit(text))).item()
        if ticks is None:
            raise ValueError(f"{text!r} is no time") from None
        return int(ticks) // 1000
    return milliseconds_of(int(text) if text.lstrip("+-").isdecimal() else number)
