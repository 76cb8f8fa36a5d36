"""Attribution: which items of the lists that were shown led to which events.

An event belongs to the list that it names (`request_id`), if that list contains its item. Else it belongs to the latest
list with this item that its user was shown, if that was not longer ago than a window. An item of a list counts once for
each outcome, however many events it led to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

PURCHASES = ("purchase", "purchased", "buy", "bought", "order", "ordered", "transaction", "paid")
CLICKS = ("click", "clicked", "view", "viewed", "open", "opened", "play", "played", "read", *PURCHASES)
# Actions that are no answer to a list: it was only seen, or an earlier purchase was undone.
SILENT = ("seen", "shown", "show", "impression", "exposure", "return", "returned", "refund", "refunded")
ANY = "any"
DAY_MS = 86_400_000

EVENT_SCHEMA = {
    "user_id": pl.String,
    "item_id": pl.String,
    "action": pl.String,
    "timestamp": pl.Int64,
    "request_id": pl.String,
}


@dataclass(frozen=True)
class Outcome:
    """A kind of answer to a list, such as a click.

    Attributes:
        name: name in reports.
        actions: actions of events that count, in small letters; None: all but those in `SILENT`.

    """

    name: str
    actions: tuple[str, ...] | None

    def counts(self) -> pl.Expr:
        """Return which events count, from their column `action`; one without an action counts only if all do."""
        action = pl.col("action").str.to_lowercase()
        if self.actions is None:
            return ~action.is_in(SILENT).fill_null(False)
        return action.is_in(self.actions).fill_null(False)


DEFAULT_OUTCOMES = (Outcome("click", CLICKS), Outcome("purchase", PURCHASES), Outcome(ANY, None))


@dataclass(frozen=True, eq=False)
class Attribution:
    """Shown items with their outcomes, and what became of the events that count for any of them.

    Attributes:
        impressions: the impressions, in their order, with a boolean column for each outcome.
        by_request: number of events that belong to the list that they name.
        by_item: number of events that belong to a list by user, item and time.
        unattributed: number of events that no list led to.

    """

    impressions: pl.DataFrame
    by_request: int
    by_item: int
    unattributed: int


def attribute(
    impressions: pl.DataFrame, events: pl.DataFrame, *, outcomes: Sequence[Outcome], window_ms: int = DAY_MS
) -> Attribution:
    """Return the impressions with a boolean column for each outcome.

    Args:
        impressions: shown items: impression_id, user_id (null: a visitor), item_id, timestamp in milliseconds.
        events: events as in `EVENT_SCHEMA`, timestamps in milliseconds.
        outcomes: the outcomes to look for.
        window_ms: longest time from a list to an event that does not name it, in milliseconds; 0: such events do not
            count.

    """
    flags = [outcome.counts().alias(outcome.name) for outcome in outcomes]
    names = [outcome.name for outcome in outcomes]
    counted = events.with_columns(flags).filter(pl.any_horizontal(names)).with_row_index("#event")
    rows = impressions.with_row_index("#row")
    named = counted.join(
        rows.select("#row", "impression_id", "item_id"),
        left_on=["request_id", "item_id"],
        right_on=["impression_id", "item_id"],
        how="inner",
    )
    unnamed = counted.join(named.select("#event"), on="#event", how="anti")
    matched = _by_item(rows, unnamed, window_ms)
    hits = (
        pl.concat([part.select("#row", *names) for part in (named, matched)]).group_by("#row").agg(pl.col(names).any())
    )
    result = rows.join(hits, on="#row", how="left", maintain_order="left").with_columns(pl.col(names).fill_null(False))
    by_request, by_item = named["#event"].n_unique(), matched.height
    return Attribution(result.drop("#row"), by_request, by_item, counted.height - by_request - by_item)


def _by_item(rows: pl.DataFrame, events: pl.DataFrame, window_ms: int) -> pl.DataFrame:
    """Return the events to which a list with their item was shown shortly before, each with the row of that item."""
    shown_items = rows.filter(pl.col("user_id").is_not_null()).select("#row", "user_id", "item_id", "timestamp")
    joined = events.sort("timestamp", maintain_order=True).join_asof(
        shown_items.sort("timestamp", maintain_order=True),
        on="timestamp",
        by=["user_id", "item_id"],
        strategy="backward",
        tolerance=window_ms,
        check_sortedness=False,
    )
    return joined.filter(pl.col("#row").is_not_null() & (window_ms > 0))


def outcomes_of(settings: Mapping[str, Sequence[str]]) -> tuple[Outcome, ...]:
    """Return the default outcomes, with these ones replaced or added: name -> actions."""
    own = {name: Outcome(name, tuple(action.lower() for action in actions)) for name, actions in settings.items()}
    defaults = {outcome.name: outcome for outcome in DEFAULT_OUTCOMES}
    return tuple((defaults | own).values())
