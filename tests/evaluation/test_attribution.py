"""Attribution of events to shown items: by request first, then by user, item and time; nothing counts twice."""

from __future__ import annotations

from typing import Any

import polars as pl

from nextitem.evaluation.attribution import DEFAULT_OUTCOMES, EVENT_SCHEMA, Attribution, attribute, outcomes_of

HOUR = 3_600_000


def impressions(*rows: tuple[str, str | None, str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["impression_id", "user_id", "item_id", "timestamp"], orient="row")


def events(*rows: tuple[str, str, str | None, int, str | None]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


LISTS = impressions(
    ("r1", "ada", "x", 0), ("r1", "ada", "y", 0), ("r2", "ada", "x", 5 * HOUR), ("r3", None, "x", 6 * HOUR)
)  # fmt: skip


def clicked_rows(result: Attribution, outcome: str = "click") -> list[int]:
    return [row for row, value in enumerate(result.impressions[outcome].to_list()) if value]


def attributed(*rows: tuple[str, str, str | None, int, str | None], **options: Any) -> Attribution:
    return attribute(LISTS, events(*rows), outcomes=DEFAULT_OUTCOMES, **options)


def test_an_event_belongs_to_the_list_that_it_names_whatever_the_time() -> None:
    result = attributed(("ada", "x", "click", 900 * HOUR, "r1"), ("someone", "x", "view", 0, "r3"))
    assert clicked_rows(result) == [0, 3]
    assert (result.by_request, result.by_item, result.unattributed) == (2, 0, 0)


def test_an_event_without_a_request_belongs_to_the_latest_list_within_the_window() -> None:
    assert clicked_rows(attributed(("ada", "x", "click", 4 * HOUR, None))) == [0]
    assert clicked_rows(attributed(("ada", "x", "click", 6 * HOUR, None))) == [2]
    assert clicked_rows(attributed(("ada", "x", "click", 6 * HOUR, None), window_ms=HOUR - 1)) == []
    assert clicked_rows(attributed(("ada", "x", "click", 6 * HOUR, None), window_ms=HOUR)) == [2]
    assert clicked_rows(attributed(("ada", "x", "click", 0, None), window_ms=0)) == []
    early = attributed(
        ("ada", "x", "click", -1, None), ("bob", "x", "click", HOUR, None), ("ada", "z", "click", 1, None)
    )
    assert (clicked_rows(early), early.unattributed) == ([], 3)


def test_an_unknown_request_and_one_without_the_item_fall_back_to_the_item() -> None:
    result = attributed(("ada", "y", "click", HOUR, "r9"), ("ada", "x", "click", 6 * HOUR, "r0"))
    assert (clicked_rows(result), result.by_item) == ([1, 2], 2)
    assert clicked_rows(attributed(("ada", "y", "click", 6 * HOUR, "r2"))) == [1]


def test_many_events_of_an_item_count_once_and_a_purchase_is_a_click() -> None:
    result = attributed(*[("ada", "x", action, HOUR, "r1") for action in ("View", "click", "BUY", "click")])
    assert [clicked_rows(result, name) for name in ("click", "purchase", "any")] == [[0], [0], [0]]
    assert result.by_request == 4
    assert set(result.impressions.columns) == {*LISTS.columns, "click", "purchase", "any"}


def test_what_was_only_seen_or_returned_is_no_answer_and_other_actions_are_any() -> None:
    result = attributed(
        ("ada", "x", "seen", 1, "r1"),
        ("ada", "y", "return", 1, "r1"),
        ("ada", "x", "like", 1, "r2"),
        ("eve", "x", None, 1, "r3"),
    )
    assert [clicked_rows(result, name) for name in ("click", "any")] == [[], [2, 3]]


def test_outcomes_can_be_replaced_and_added() -> None:
    outcomes = outcomes_of({"click": ["Tap"], "save": ["save", "pin"]})
    assert [outcome.name for outcome in outcomes] == ["click", "purchase", "any", "save"]
    rows = events(("ada", "x", "tap", 1, "r1"), ("ada", "y", "click", 1, "r1"), ("ada", "x", "pin", 1, "r2"))
    result = attribute(LISTS, rows, outcomes=outcomes)
    assert (clicked_rows(result), clicked_rows(result, "save")) == ([0], [2])


def test_logs_without_users_or_events_work() -> None:
    anonymous = LISTS.with_columns(user_id=pl.lit(None, pl.String))
    result = attribute(anonymous, events(("ada", "x", "click", 1, "r1")), outcomes=DEFAULT_OUTCOMES)
    assert clicked_rows(result) == [0]
    assert clicked_rows(attribute(LISTS, events(), outcomes=DEFAULT_OUTCOMES)) == []
