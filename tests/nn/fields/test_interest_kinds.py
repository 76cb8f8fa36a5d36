"""Fields of interest: hand-computed codes, equality with plain loops, no event at or after the request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION, Catalog, ColumnEncoding
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.nn.fields.event_weights import DAY_MS, SESSION_GAP_MS
from nextitem.nn.fields.fields import Fields
from nextitem.nn.fields.interest_kinds import COUNT_SCALE, PRIOR_EVENTS, SHARE_SCALE
from nextitem.nn.fields.kinds import logarithmic

MINUTE_MS = 60_000
NOW = 100 * DAY_MS
COLOURS = (0, 2, 1, 2, 0)  # codes of the colours of padding and the items: red, blue, red, none
SHARES = (0.0, 1 / 3, 2 / 3)  # of the items with a colour, by code
FAST, SLOW = 3.0, 30.0  # half-lives in days


def catalog() -> Catalog:
    ids = pl.Series("item_id", ["a", "b", "c", "d"])
    table = pl.DataFrame({"item_id": ids, "colour": ["red", "blue", "red", None]})
    actions = ColumnEncoding("categorical", pl.Series(["buy", "view"]))
    return Catalog(
        IdMap(ids), table, features={"colour": "categorical"}, events={ACTION: actions}, labels=("click", "buy")
    )


def requests(items: list[list[int]], ages: list[list[int]], candidates: list[list[int]]) -> SequenceBatch:
    """Return requests at NOW; `ages` are those of the events in milliseconds."""
    history = Jagged.from_rows(items)
    return SequenceBatch(
        history,
        timestamps=history.with_values(NOW - Jagged.from_rows(ages).values),
        request_times=torch.full((len(items),), NOW),
        candidates=Jagged.from_rows(candidates),
    )


def codes_of(name: str, batch: SequenceBatch, **arguments: float) -> list[int]:
    """Return the codes of one field, of the candidates or of the requests."""
    codes = Fields(catalog(), (name,), half_lives=(FAST, SLOW), **arguments)(batch)  # type: ignore[arg-type]
    return torch.cat([codes.request.flatten(), codes.candidate.flatten()]).tolist()


def share_code(own: float, total: float, prior: float) -> int:
    """Return the code of a share, from the events with a value, all events, and the catalogue's share."""
    return code((own + PRIOR_EVENTS * prior) / (total + PRIOR_EVENTS) * SHARE_SCALE)


def code(value: float) -> int:
    """Return the code of a number on the logarithmic scale."""
    return int(logarithmic(torch.tensor(value, dtype=torch.float64)))


def test_share_of_a_category_halves_with_each_half_life() -> None:
    # Red 30 days ago, blue 3 days ago, an item without colour a day ago.
    batch = requests([[1, 2, 4]], [[30 * DAY_MS, 3 * DAY_MS, DAY_MS]], [[3, 2, 4]])
    slow_red, slow_blue = 0.5, 0.5 ** (3 / SLOW)
    fast_red, fast_blue = 0.5**10, 0.5
    slow, fast = slow_red + slow_blue, fast_red + fast_blue
    assert codes_of("cross.colour.slow", batch) == [
        share_code(slow_red, slow, 2 / 3),
        share_code(slow_blue, slow, 1 / 3),
        0,
    ]
    assert codes_of("cross.colour.fast", batch) == [
        share_code(fast_red, fast, 2 / 3),
        share_code(fast_blue, fast, 1 / 3),
        0,
    ]
    assert codes_of("cross.id.slow", batch)[:2] == [
        share_code(0, slow + 0.5 ** (1 / SLOW), 1 / 4),
        share_code(slow_blue, slow + 0.5 ** (1 / SLOW), 1 / 4),
    ]
    assert codes_of("history.slow", batch) == [code((slow + 0.5 ** (1 / SLOW)) * COUNT_SCALE)]


def test_share_of_a_user_without_events_is_missing() -> None:
    batch = requests([[], [1]], [[], [DAY_MS]], [[1], [1]])
    first, second = codes_of("cross.colour.slow", batch)
    assert first == 0
    assert second > share_code(0, 0, 2 / 3)
    assert codes_of("history.slow", batch)[0] == 0


def test_share_counts_one_action_alone() -> None:
    batch = requests([[1, 1, 2]], [[0, 0, 0]], [[1, 2]])
    batch = replace(batch, actions=batch.items.with_values(torch.tensor([1, 2, 2])), timestamps=None)
    buy, view = 0.5 ** (2 / SLOW), (0.5 ** (1 / SLOW), 1.0)  # without times ages are numbers of events
    assert codes_of("cross.colour.slow.buy", batch) == [share_code(buy, buy, 2 / 3), share_code(0, buy, 1 / 3)]
    assert codes_of("cross.colour.slow.view", batch) == [
        share_code(view[0], sum(view), 2 / 3),
        share_code(view[1], sum(view), 1 / 3),
    ]


def test_share_of_an_action_is_missing_without_actions() -> None:
    batch = requests([[1]], [[DAY_MS]], [[1]])
    assert codes_of("cross.colour.slow.buy", batch) == [0]


def test_session_ends_at_a_gap_of_more_than_half_an_hour() -> None:
    gap = SESSION_GAP_MS
    # First request: the last two events belong to the session. Second: its only event is older. Third: no event.
    batch = requests([[1, 2, 2], [1], []], [[2 * gap + 1, gap, 1], [gap + 1], []], [[1, 2], [1], [1]])
    assert codes_of("cross.colour.session", batch) == [share_code(0, 2, 2 / 3), share_code(2, 2, 1 / 3), 0, 0]
    assert codes_of("session.events", batch) == [code(2 * COUNT_SCALE), 0, 0]
    assert codes_of("session.minutes", batch) == [code(gap / MINUTE_MS + 1), 0, 0]


def test_session_is_missing_without_times() -> None:
    batch = replace(requests([[1]], [[1]], [[1]]), timestamps=None)
    assert [codes_of(name, batch) for name in ("cross.colour.session", "session.events", "session.minutes")] == [
        [0]
    ] * 3


def with_shown_items(
    batch: SequenceBatch, items: list[list[int]], ages: list[list[int]], labels: list[float]
) -> SequenceBatch:
    """Return the requests with items that were shown, at ages in milliseconds, and the label click."""
    shown_items = Jagged.from_rows(items)
    return replace(
        batch,
        shown_items=shown_items,
        shown_times=shown_items.with_values(NOW - Jagged.from_rows(ages).values),
        shown_labels={"click": shown_items.with_values(torch.tensor(labels))},
    )


def test_items_shown_without_a_click_count_until_they_decay() -> None:
    batch = requests([[], []], [[], []], [[1, 3, 2, 4], [1]])
    month = 30 * DAY_MS
    # Two reds in vain, one red clicked, one blue with an unknown label; the second user was shown nothing.
    batch = with_shown_items(batch, [[1, 3, 1, 2], []], [[month, 2 * month, month, month], []], [0, 0, 1, float("nan")])
    red = code(0.75 * COUNT_SCALE)
    assert codes_of("shown.colour", batch) == [red, red, 0, 0, 0]
    assert codes_of("shown.id", batch) == [code(0.5 * COUNT_SCALE), code(0.25 * COUNT_SCALE), 0, 0, 0]


def test_label_that_may_still_arrive_does_not_count() -> None:
    batch = with_shown_items(requests([[]], [[]], [[1]]), [[1, 1]], [[3 * 3_600_000, 3_600_000]], [0, 0])
    assert codes_of("shown.id", batch, delay_hours=2.0) == [code(0.5 ** (3 / 24 / SLOW) * COUNT_SCALE)]


def test_shown_items_are_missing_without_impressions() -> None:
    assert codes_of("shown.id", requests([[1]], [[1]], [[1, 2]])) == [0, 0]


def references(batch: SequenceBatch) -> dict[str, list[int]]:
    """Compute the codes of all fields of interest event by event and candidate by candidate."""
    assert batch.timestamps is not None
    assert batch.candidates is not None
    codes: dict[str, list[int]] = {}
    rows = zip(batch.items.to_lists(), batch.timestamps.to_lists(), batch.candidates.to_lists(), strict=True)
    for items, times, candidates in rows:
        first_of_session = NOW
        for time in reversed(times):
            if first_of_session - time > SESSION_GAP_MS:
                break
            first_of_session = time
        ages = [NOW - time for time in times]
        weights: dict[str, Callable[[int], float]] = {
            "fast": lambda age: 0.5 ** (age / DAY_MS / FAST) if age > 0 else 0.0,
            "slow": lambda age: 0.5 ** (age / DAY_MS / SLOW) if age > 0 else 0.0,
            "session": lambda age, first=first_of_session: float(0 < age <= NOW - first),  # type: ignore[misc]
        }
        for name, weight in weights.items():
            values = [weight(age) for age in ages]
            coloured = [value for value, item in zip(values, items, strict=True) if COLOURS[item]]
            for candidate in candidates:
                colour = COLOURS[candidate]
                own = sum(value for value, item in zip(values, items, strict=True) if COLOURS[item] == colour)
                is_missing = not colour or not sum(coloured)
                share = 0 if is_missing else share_code(own, sum(coloured), SHARES[colour])
                codes.setdefault(f"cross.colour.{name}", []).append(share)
            evidence = "session.events" if name == "session" else f"history.{name}"
            codes.setdefault(evidence, []).append(code(sum(values) * COUNT_SCALE))
    return codes


histories = st.lists(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 40)), max_size=6), min_size=1, max_size=4
)  # items, and ages in units of 10 minutes
candidate_rows = st.lists(st.integers(1, 4), max_size=4)


@given(histories, st.data())
@settings(max_examples=60, deadline=None)
def test_codes_equal_those_of_plain_loops(rows: list[list[tuple[int, int]]], data: st.DataObject) -> None:
    ordered = [sorted(row, key=lambda event: -event[1]) for row in rows]
    batch = requests(
        [[item for item, _ in row] for row in ordered],
        [[age * 10 * MINUTE_MS for _, age in row] for row in ordered],
        [data.draw(candidate_rows) for _ in rows],
    )
    for name, expected in references(batch).items():
        assert codes_of(name, batch) == expected, name


NAMES = ("cross.colour.fast", "cross.colour.slow", "cross.id.session", "history.slow", "session.events", "shown.colour")


@given(st.lists(st.integers(1, 4), max_size=5), st.lists(st.integers(-3, 0), max_size=5))
@settings(max_examples=30, deadline=None)
def test_events_at_or_after_the_request_count_nothing(items: list[int], ages: list[int]) -> None:
    past = requests([[1, 2]], [[DAY_MS, MINUTE_MS]], [[1, 2, 3]])
    past = with_shown_items(past, [[1]], [[DAY_MS]], [0])
    count = min(len(items), len(ages))
    later, later_ages = items[:count], [age * MINUTE_MS for age in sorted(ages[:count], reverse=True)]
    full = requests([[1, 2, *later]], [[DAY_MS, MINUTE_MS, *later_ages]], [[1, 2, 3]])
    full = with_shown_items(full, [[1, *later]], [[DAY_MS, *later_ages]], [0.0] * (1 + count))
    for name in NAMES:
        assert codes_of(name, past) == codes_of(name, full), name


def test_codes_do_not_depend_on_the_other_requests_of_a_batch() -> None:
    batch = requests([[1, 2], [3], [], [2, 2, 4]], [[9, 5], [7], [], [8, 6, 1]], [[1], [2, 3], [4, 1], [2]])
    batch = with_shown_items(batch, [[1], [2, 3], [], [1]], [[4], [9, 8], [], [5]], [0, 0, 0, 0])
    for name in NAMES:
        single = [codes_of(name, batch.select(torch.tensor([row]))) for row in range(4)]
        assert codes_of(name, batch) == [code for row in single for code in row], name
