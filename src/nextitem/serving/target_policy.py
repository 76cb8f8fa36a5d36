"""Probabilities with which a run would have selected the items of logged lists, for off-policy estimates.

The run answers the request of each explored list again, from the history that its user had then. A policy that explores
samples from the best items of its list without replacement, an item of rank r with weight r ** (-1 / temperature).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.pipeline.runs import Run
from nextitem.serving.engine import Engine
from nextitem.serving.exploration import head_size, log_weights
from nextitem.serving.requests import HistoryEvent, ServedRequest

REQUESTS_AT_ONCE = 64

Event = tuple[int, HistoryEvent]  # time in milliseconds from which on lists can know it, and the event


def target_probabilities(
    run: Run, impressions: pl.DataFrame, events: pl.DataFrame, *, temperature: float
) -> pl.DataFrame:
    """Return impression_id, slot and probability of the items that explored lists of users have.

    Lists of visitors without an id are left out, as their history is not in the log. Neither are filters and context of
    requests: every list is answered without.

    Args:
        run: the run of the target policy.
        impressions: the log, in the layout of impressions.parquet, timestamps in milliseconds.
        events: events of the users since the data set of the run (`attribution.EVENT_SCHEMA`).
        temperature: how much the target policy leaves to chance, above 0.

    Raises:
        UserError: the temperature is not above 0.

    """
    if not temperature > 0:
        raise UserError(f"temperature {temperature:g}: a policy that is estimated needs a temperature above 0")
    engine, rows = Engine(run.model, run.dataset), []
    by_user = _events_by_user(events, impressions)
    for lists in _rounds(impressions):
        requests = [ServedRequest(user_id=each["user_id"], k=head_size(len(each["item_id"]))) for each in lists]
        before = {each["user_id"]: _before(by_user.get(each["user_id"], []), each["timestamp"]) for each in lists}
        answers = engine.recommend(requests, {user: part for user, part in before.items() if part})
        for each, answer in zip(lists, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            ranks = {str(item): rank for rank, item in enumerate(answer.item_ids)}
            places = [ranks.get(item, -1) for item in each["item_id"]]
            chances = list_probabilities(places, size=len(ranks), temperature=temperature)
            rows += [(each["impression_id"], slot, chance) for slot, chance in zip(each["slot"], chances, strict=True)]
    schema = {"impression_id": pl.String, "slot": pl.Int32, "probability": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def list_probabilities(places: Sequence[int], *, size: int, temperature: float) -> list[float]:
    """Return the probability of each item of a list given the items above.

    Args:
        places: rank of each item from 0; -1: an item that is never selected.
        size: number of items that the list is sampled from.
        temperature: as in `target_probabilities`.

    """
    weights: NDArray[np.float64] = np.exp(log_weights(size, temperature))
    result = []
    for place in places:
        if place < 0:
            result.append(0.0)
            continue
        result.append(float(weights[place] / weights.sum()))
        weights[place] = 0.0
    return result


def _rounds(impressions: pl.DataFrame) -> Iterator[list[dict[str, Any]]]:
    """Yield the explored lists of users, at most one of a user at a time."""
    is_explored = (pl.col("propensity") < 1).any().over("impression_id")
    lists = (
        impressions.filter(is_explored & pl.col("user_id").is_not_null())
        .sort("timestamp", "impression_id", "slot")
        .group_by("impression_id", maintain_order=True)
        .agg(pl.col("user_id", "timestamp").first(), pl.col("item_id", "slot"))
        .with_columns(pl.int_range(pl.len()).over("user_id").alias("#round"))
        .sort("#round", maintain_order=True)
    )
    for part in lists.partition_by("#round", maintain_order=True):
        for rows in part.iter_slices(REQUESTS_AT_ONCE):
            yield rows.to_dicts()


def _events_by_user(events: pl.DataFrame, impressions: pl.DataFrame) -> dict[str, list[Event]]:
    """Return the events of each user, oldest first, with the time from which on a list can know them.

    An event that names a list came after it, even if clocks differ, or events carry simulated times.
    """
    lists = impressions.select(
        pl.col("impression_id").alias("request_id"), pl.col("timestamp").alias("#shown")
    ).unique()
    joined = events.join(lists, on="request_id", how="left", maintain_order="left")
    rows = joined.select(
        "user_id", "item_id", "action", "timestamp", pl.max_horizontal("timestamp", "#shown").alias("#time")
    )
    result: dict[str, list[Event]] = {}
    for user, item, action, time, since in rows.sort("timestamp", maintain_order=True).iter_rows():
        result.setdefault(user, []).append((since, HistoryEvent(item, action, time)))
    return result


def _before(events: Sequence[Event], time: int) -> list[HistoryEvent]:
    return [event for when, event in events if when < time]
