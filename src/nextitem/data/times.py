"""Read times in the formats that occur in logs, as ticks since 1970 UTC."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from nextitem.core.errors import UserError
from nextitem.data.tables import Table
from nextitem.data.time_formats import TimeFormat, format_of

SECONDS_BELOW = 10**11  # whole-number times below this are seconds: 1e11 s is the year 5138, 1e11 ms is 1973
LATEST_MS = 4_102_444_800_000  # 2100-01-01
YEAR_MS = 365 * 86_400_000
MAX_FORMATS = 20  # maximal number of formats in one column; each region of a time zone is a separate format
# Whole numbers written like dates: number of digits, name of such numbers, pattern, example of the way out.
DATE_DIGITS = (
    (4, "years", "%Y", "1999-01-01"),
    (6, "months written YYYYMM", "%Y%m", "2024-05-01"),
    (8, "dates written YYYYMMDD", "%Y%m%d", "2024-05-31"),
    (10, "hours written YYYYMMDDHH", "%Y%m%d%H", "2024-05-31 18:00"),
    (12, "times written YYYYMMDDHHMM", "%Y%m%d%H%M", "2024-05-31 18:30"),
    (14, "times written YYYYMMDDHHMMSS", "%Y%m%d%H%M%S", "2024-05-31 18:30:00"),
)
NO_TIME = ("{value} is no time after 1970", "write seconds or milliseconds since 1970")


def time_ticks(table: Table, column: str, *, nulls: bool = False, is_feature: bool = False) -> tuple[pl.Expr, int]:
    """Return times as Int64 ticks since 1970 UTC, and the number of ticks in a millisecond (1 or 1000).

    Numbers, also as text, are seconds if all are below 1e11, otherwise milliseconds; fractions are preserved. Text is
    ISO 8601 or similar. Times without a zone are UTC, others are converted to UTC. Times with parts of a millisecond
    are returned in microseconds, so that these parts can decide the order.

    Args:
        table: the table, for checks and messages.
        column: the column of times.
        nulls: times may be missing.
        is_feature: the times are a feature, not times of events: they may be missing, before 1970 or after 2099.

    Raises:
        UserError: there are nulls (unless `nulls` or `is_feature`), numbers that are written like dates (20240531), or
            texts with and without a zone. Of times of events also: two units, or times before 1970 or after 2099.

    """
    return _Times(table, column, nulls=nulls or is_feature, is_feature=is_feature).ticks()


@dataclass(frozen=True)
class _Times:
    """Reader of one column of times; see `time_ticks` for its fields."""

    table: Table
    column: str
    nulls: bool
    is_feature: bool

    def ticks(self) -> tuple[pl.Expr, int]:
        """Return the ticks, and their number in a millisecond."""
        kind, column = self.table.schema[self.column], pl.col(self.column)
        if kind == pl.String:
            text = column.str.strip_chars()
            return self._text(pl.when(text != "").then(text))
        if kind.is_integer():
            return self._whole(column, column.is_not_null()), 1
        if kind.is_float() or kind.is_decimal():
            return self._fractional(column.cast(pl.Float64).fill_nan(None))
        if kind == pl.Date:
            return self._in_range(column.cast(pl.Datetime("ms")).to_physical(), 1)
        if isinstance(kind, pl.Datetime):
            is_fine = kind.time_unit != "ms"
            ticks, per_ms = column.dt.timestamp("us" if is_fine else "ms"), 1000 if is_fine else 1
            return self._in_range(ticks, per_ms)
        if kind == pl.Null:
            return self._in_range(column.cast(pl.Int64), 1)
        raise self._problem(f"times are of type {kind}", "store integer seconds or milliseconds, or datetimes")

    def _text(self, text: pl.Expr) -> tuple[pl.Expr, int]:
        """Return the ticks of texts, which are all numbers or all times, and the number of ticks in a millisecond."""
        numbers = text.cast(pl.Float64, strict=False).fill_nan(None)
        first = self.table.collect(numbers.filter(text.is_not_null()).first().alias("number"))["number"][0]
        if first is not None:
            # If the first value is a number, a text that is none is the mistake, although dates could be read too.
            self._refuse(
                numbers.is_null() & text.is_not_null(),
                "{value!r} is no time, and the first one is a number",
                "write seconds or milliseconds since 1970 in every row",
            )
            if not self.table.count(text.cast(pl.Int64, strict=False).is_null() & text.is_not_null()):
                return self._whole(text, text.is_not_null()), 1
            return self._fractional(numbers)
        return self._in_range(self._parsed(text), 1000)

    def _parsed(self, text: pl.Expr) -> pl.Expr:
        """Return texts as microseconds since 1970 UTC, each parsed by the first format that fits."""
        formats: list[TimeFormat] = []
        ticks = pl.lit(None, pl.Int64)
        while True:
            # Nearly all columns have one format: the first value determines it, and one pass confirms it.
            unread = text.filter(ticks.is_null() & text.is_not_null()).first()
            value = self.table.collect(unread.alias("value"))["value"][0]
            if value is None:
                break
            form = format_of(value)
            if form is None or form in formats or len(formats) == MAX_FORMATS:
                raise self._problem(
                    f"{value!r} is no time",
                    "write 2024-05-31 18:30:00, 2024-05-31, or seconds or milliseconds since 1970",
                    row=self.table.first_row(ticks.is_null() & text.is_not_null()),
                )
            formats.append(form)
            ticks = pl.coalesce(time_format.ticks(text) for time_format in formats)
        is_with_zone = [form.ticks(text).is_not_null() for form in formats if form.has_zone]
        if 0 < len(is_with_zone) < len(formats):
            has_zone, first = pl.any_horizontal(is_with_zone), formats[0].has_zone
            self._refuse(
                text.is_not_null() & (has_zone != first),
                "{value!r} has "
                + ("no time zone, and the first one has one" if first else "a time zone, others have none"),
                "write all of them with a zone, or all of them in UTC without one",
            )
        return ticks

    def _whole(self, times: pl.Expr, is_present: pl.Expr) -> pl.Expr:
        """Return whole seconds or milliseconds as milliseconds; rows in which `is_present` is true must be numbers."""
        numbers = times.cast(pl.Int64, strict=False)
        is_wrong = is_present & numbers.is_null() if self.is_feature else is_present & ~(numbers >= 0).fill_null(False)
        self._refuse(is_wrong, *NO_TIME)
        self._no_nulls(numbers)
        extremes = self.table.collect(numbers.min().alias("low"), numbers.max().alias("high")).row(0)
        self._not_date_digits(numbers, extremes)
        unit = self._unit(numbers, extremes)
        return numbers * 1000 if unit == "seconds" else numbers

    def _fractional(self, times: pl.Expr) -> tuple[pl.Expr, int]:
        """Return seconds or milliseconds as microseconds if some have a fraction, otherwise as `_whole` does.

        The second value is the number of ticks in a millisecond.
        """
        if not self.table.count((times != times.round()).fill_null(False)):
            return self._whole(times, times.is_not_null()), 1
        self._refuse(times.is_infinite() if self.is_feature else times.is_infinite() | (times < 0), *NO_TIME)
        self._no_nulls(times)
        extremes = self.table.collect(times.min().alias("low"), times.max().alias("high")).row(0)
        unit = self._unit(times, extremes)
        return (times * (1e6 if unit == "seconds" else 1e3)).round().cast(pl.Int64), 1000

    def _unit(self, times: pl.Expr, extremes: tuple[float | None, float | None]) -> str:
        """Return "seconds" or "milliseconds", the unit of all times; `extremes` are the lowest and the highest time.

        Raises UserError if some times of events have one unit and some the other, or times are after 2099. Adds a note
        if all are in 1970.
        """
        low, high = extremes
        if low is None or high is None:
            return "seconds"
        if self.is_feature:
            return "seconds" if max(abs(low), abs(high)) < SECONDS_BELOW else "milliseconds"
        unit = "seconds" if high < SECONDS_BELOW else "milliseconds"
        latest = LATEST_MS // 1000 if unit == "seconds" else LATEST_MS
        if high >= latest:
            finer = next(
                (name for digits, name in ((17, "nanoseconds"), (14, "microseconds")) if high >= 10**digits), ""
            )
            hint = f"they look like {finer}, " if finer else ""
            self._refuse(
                times >= latest,
                f"{{value}} read as {unit} lies after 2099",
                f"{hint}write seconds or milliseconds since 1970",
            )
        if unit == "milliseconds" and low < SECONDS_BELOW:
            self._refuse(
                times < SECONDS_BELOW,
                f"{{value}} looks like seconds while others, up to {high}, are milliseconds",
                "write all times in one unit",
            )
        if high * (1000 if unit == "seconds" else 1) < YEAR_MS:
            self.table.note(
                f"column {self.table.own_name(self.column)!r}: the latest time, {high}, is read as {unit} since 1970, "
                "so all events are in the year 1970; the order is right, ages and hours are not"
            )
        return unit

    def _not_date_digits(self, numbers: pl.Expr, extremes: tuple[int | None, int | None]) -> None:
        """Raise UserError if all numbers are written like dates, for example 20240531."""
        low, high = extremes
        if low is None or high is None or low <= 0 or len(str(low)) != len(str(high)):
            return
        for digits, name, pattern, example in DATE_DIGITS:
            if len(str(low)) != digits or not 1900 <= int(str(low)[:4]) <= int(str(high)[:4]) < 2100:
                continue
            # Numbers of the same length are dates if each of them is a valid one.
            text = numbers.cast(pl.String) + {4: "0101", 6: "01", 8: ""}.get(digits, "")
            form = {4: "%Y%m%d", 6: "%Y%m%d"}.get(digits, pattern)
            if digits == 10:
                text, form = text + "00", "%Y%m%d%H%M"
            is_date = text.str.to_datetime(form, time_unit="ms", strict=False).is_not_null()
            if not self.table.count(numbers.is_not_null() & ~is_date):
                row = self.table.first_row(numbers.is_not_null())
                raise self._problem(
                    f"{low} looks like one of {name}, and would be read as a time since 1970",
                    f"write such times as {example}, or as seconds since 1970",
                    row=row,
                )

    def _in_range(self, ticks: pl.Expr, per_ms: int) -> tuple[pl.Expr, int]:
        """Return the arguments; raise UserError if a time of an event is before 1970 or after 2099."""
        self._no_nulls(ticks)
        if not self.is_feature:
            self._refuse(
                ~ticks.is_between(0, LATEST_MS * per_ms, closed="left"),
                "{value} is not between 1970 and 2099",
                "correct the time or remove the row",
            )
        return ticks, per_ms

    def _no_nulls(self, times: pl.Expr) -> None:
        """Raise UserError if a time is missing and `nulls` is false."""
        if not self.nulls:
            self._refuse(
                times.is_null(),
                "the time is missing",
                "fill it in, remove the row, or add a column position with the order of each user's events",
            )

    def _refuse(self, is_wrong: pl.Expr, what: str, remedy: str) -> None:
        """Raise UserError for the first row in which `is_wrong` is true; {value} in `what` is the value of the row."""
        row = self.table.first_row(is_wrong)
        if row is not None:
            raise self._problem(what.format(value=self.table.value(self.column, row)), remedy, row=row)

    def _problem(self, what: str, remedy: str, *, row: int | None = None) -> UserError:
        """Return the error for the column, or for one row (from 1) of it."""
        return self.table.problem(self.column, what, remedy, row=row)
