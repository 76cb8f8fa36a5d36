"""Times in the formats that occur in logs: read, or refused with the way out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.readers import dataset_from_frames

NOON = 1_577_880_000_000  # 2020-01-01 12:00 UTC


def log(times: Any) -> pl.DataFrame:
    times = times if isinstance(times, pl.Series) else pl.Series(times)
    users = pl.int_range(1, len(times) + 1, eager=True)
    return pl.DataFrame({"user_id": users, "item_id": users, "timestamp": times})


def read(times: Any) -> Dataset:
    return dataset_from_frames({"interactions": log(times)})


def milliseconds(times: Any) -> list[int]:
    timestamps = read(times).interactions.timestamps
    assert timestamps is not None
    return [int(time) for time in timestamps]


def refusal(times: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(times)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-01 12:00:00",
        "2020-01-01 12:00",
        "2020-01-01T12:00:00",
        "2020-01-01t12:00:00z",
        "2020-01-01 12:00:00 UTC",
        "2020-01-01 12:00:00UTC",
        "2020-01-01 12:00:00 GMT",
        "2020-01-01 12:00:00.000000 UTC",
        "2020-01-01T12:00Z",
        "2020-01-01T13:00:00+01:00",
        "2020-01-01T13:00:00+0100",
        "2020-01-01 13:00:00+01",
        "2020-01-01 06:30:00 -05:30",
        "2020-01-01T13:00:00+01:00[Europe/Paris]",
        "2020-01-01 14:00:00 GMT+02:00",
        "2020/01/01 12:00:00",
        "2020.01.01 12:00",
        "20200101T120000Z",
        "2020-01-01T12:00:00,000Z",
        " 2020-01-01 12:00:00 ",
        "1577880000",
        "1577880000000",
        "1577880000.0",
        "1.577880e9",
    ],
)
def test_one_time_is_read_from_texts_in_all_formats(text: str) -> None:
    assert milliseconds([text, text]) == [NOON, NOON]


def test_dates_alone_and_fractions_of_seconds() -> None:
    assert milliseconds(["2020-01-01", "2020/1/2"]) == [NOON - 43_200_000, NOON + 43_200_000]
    assert milliseconds(["2020-01-01 12:00:00.5", "2020-01-01 12:00:00.123456789"]) == [NOON + 500, NOON + 123]
    assert milliseconds([1577880000.25, 1577880001.0]) == [NOON + 250, NOON + 1000]
    assert milliseconds(["1577880000.25", "1577880001"]) == [NOON + 250, NOON + 1000]
    assert milliseconds([1577880000123.75, 1577880001000.0]) == [NOON + 123, NOON + 1000]


def test_whole_numbers_of_other_types_are_read() -> None:
    assert milliseconds(pl.Series([1577880000.0, 1577880060.0])) == [NOON, NOON + 60_000]
    assert milliseconds(pl.Series(["1577880000", "1577880060"], dtype=pl.Categorical).cast(pl.String))[0] == NOON
    assert milliseconds(pl.Series([1577880000, 1577880060]).cast(pl.Decimal(20, 0))) == [NOON, NOON + 60_000]


def test_fractions_decide_the_order() -> None:
    frame = log([1577880000.0002, 1577880000.0001, 1577880000.0]).with_columns(user_id=pl.Series([1, 1, 2]))
    dataset = dataset_from_frames({"interactions": frame})
    assert dataset.catalog.ids.decode(dataset.interactions.item_ids).to_list() == [2, 1, 3]


def test_times_with_a_zone_are_converted() -> None:
    zone = timezone(timedelta(hours=2))
    times = [datetime(2020, 1, 1, 14, tzinfo=zone), datetime(2020, 1, 1, 12, 1, tzinfo=UTC)]
    assert milliseconds(pl.Series(times)) == [NOON, NOON + 60_000]
    assert milliseconds(pl.Series(times).dt.convert_time_zone("Asia/Tokyo")) == [NOON, NOON + 60_000]
    mixed = refusal(["2020-01-01 12:00:00Z", "2020-01-01 12:00:00"])
    assert "row 2" in mixed
    assert "no time zone, and the first one has one" in mixed
    mixed = refusal(["2020-01-01", "2020-01-01 12:00:00+01:00"])
    assert "row 2" in mixed
    assert "a time zone, others have none" in mixed


@pytest.mark.parametrize(
    ("times", "words", "way_out"),
    [
        ([20240530, 20240531], "dates written YYYYMMDD", "2024-05-31"),
        ([1999, 2021], "years", "1999-01-01"),
        ([199912, 202101], "months written YYYYMM", "2024-05-01"),
        ([2024053118, 2024053119], "hours written YYYYMMDDHH", "2024-05-31 18:00"),
        ([202405311830, 202405311831], "times written YYYYMMDDHHMM", "2024-05-31 18:30"),
        ([20240531183000, 20240531183059], "times written YYYYMMDDHHMMSS", "2024-05-31 18:30:00"),
        (["20240530", "20240531"], "dates written YYYYMMDD", "2024-05-31"),
        ([20240530.0, 20240531.0], "dates written YYYYMMDD", "2024-05-31"),
        ([1_700_000_000_000_000] * 2, "microseconds", "seconds or milliseconds"),
        ([1_700_000_000_000_000_000] * 2, "nanoseconds", "seconds or milliseconds"),
    ],
)
def test_numbers_that_are_not_seconds_or_milliseconds_are_refused(times: list[Any], words: str, way_out: str) -> None:
    message = refusal(times)
    assert words in message
    assert way_out in message


def test_numbers_are_seconds_unless_all_are_valid_dates() -> None:
    assert milliseconds([20240531, 20240532]) == [20240531000, 20240532000]
    assert milliseconds([1899, 2021]) == [1899000, 2021000]
    assert any("in the year 1970" in note for note in read([1899, 2021]).notes)
    assert read([1_700_000_000, 1_700_000_001]).notes == ()


@pytest.mark.parametrize(
    ("times", "parts"),
    [
        (["31.05.2024", "2024-05-31"], ("row 1", "'31.05.2024'", "2024-05-31 18:30:00")),
        (["05/31/2024", "2024-05-31"], ("row 1", "'05/31/2024'")),
        (["1700000000", "2024-05-31"], ("row 2", "'2024-05-31'", "the first one is a number")),
        (["2024-05-31", "1700000000"], ("row 2", "'1700000000'", "no time")),
        ([-1, 5], ("row 1", "-1", "1970")),
        (["1969-12-31 23:00:00", "2024-05-31"], ("row 1", "1970 and 2099")),
        ([datetime(1950, 1, 1), datetime(2020, 1, 1)], ("row 1", "1950", "1970 and 2099")),
        ([datetime(2020, 1, 1), datetime(9999, 12, 31)], ("row 2", "9999", "1970 and 2099")),
        ([1.5, float("nan")], ("row 2", "missing")),
        ([None, None], ("row 1", "missing")),
        ([True, False], ("Boolean", "seconds")),
    ],
)
def test_other_formats_are_refused_with_their_row(times: list[Any], parts: tuple[str, ...]) -> None:
    message = refusal(times)
    assert not [part for part in parts if part not in message], message


def features(times: Any, *, settings: dict[str, Any]) -> Dataset:
    times = times if isinstance(times, pl.Series) else pl.Series(times)
    frame = log([1_700_000_000 + row for row in range(len(times))])
    items = pl.DataFrame({"item_id": frame["item_id"], "day": times})
    return dataset_from_frames({"interactions": frame, "items": items}, {"items": settings})


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["1950-06-01", "2020-01-01 12:00:00", ""], [-618_105_600_000, NOON, 0]),
        ([-618_105_600, 1_577_880_000, None], [-618_105_600_000, NOON, 0]),
        ([-618_105_600_000, NOON, None], [-618_105_600_000, NOON, 0]),
        ([datetime(1950, 6, 1), datetime(2020, 1, 1, 12), None], [-618_105_600_000, NOON, 0]),
        (["1970-01-01", "9999-12-31", "0001-01-01"], [1, 253_402_214_400_000, -62_135_596_800_000]),
        # A date of 1971 in milliseconds is small enough to be seconds; a feature is not refused for that.
        ([31_536_000_000, NOON, 0], [31_536_000_000, NOON, 1]),
    ],
)
def test_features_may_be_of_any_time(times: list[Any], expected: list[int]) -> None:
    dataset = features(times, settings={"released": "day", "features": {"day": "timestamp"}})
    assert dataset.catalog.released_ms is not None
    assert dataset.catalog.released_ms.tolist() == expected  # 0 is a missing date
    days = dataset.catalog.table["day"].to_physical()
    assert days.null_count() == expected.count(0)
    assert days.to_list()[1] == expected[1]


@pytest.mark.parametrize("setting", ["released", "features"])
def test_years_and_dates_written_as_numbers_are_refused_as_features(setting: str) -> None:
    item_settings: dict[str, Any] = {"released": "day"} if setting == "released" else {"features": {"day": "timestamp"}}
    for times, words in (([1999, 2010, 2021], "years"), ([19990101, 20100101, None], "YYYYMMDD")):
        with pytest.raises(UserError, match=rf"'day', row 1: .*{words}.*1970; write"):
            features(times, settings=item_settings)


@settings(max_examples=60, deadline=None)
@given(st.datetimes(datetime(1970, 1, 2), datetime(2099, 12, 30)), st.integers(-14 * 4, 14 * 4), st.booleans())
def test_every_iso_text_is_read(time: datetime, quarters: int, has_zone: bool) -> None:
    zone = timezone(timedelta(minutes=15 * quarters))
    aware = time.replace(tzinfo=zone if has_zone else UTC)
    text = (aware if has_zone else time).isoformat()
    expected = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if 0 <= expected < 4_102_444_800_000:
        assert milliseconds([text, text]) == [expected, expected]
