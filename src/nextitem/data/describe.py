"""Summary of a data set in numbers, for `nextitem data describe`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.data.protocols import default_protocol

QUANTILES = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "90%": 0.9, "max": 1.0}


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return a summary of a data set as a dictionary of JSON values.

    Some of its keys:
        users: number of users with events (of sessions, if the log is anonymous).
        items: number of items of the catalogue.
        searches: number of events without an item.
        period: first and last time, ISO 8601 in UTC, or None.
        density: distinct (user, item) pairs / (users x items).
        repeat_share: share of events for which the user has an earlier event with the same item.
        missing: in words, what the data lacks and what it would be used for.
    """
    log, catalog = dataset.interactions, dataset.catalog
    lengths = np.diff(log.offsets)
    lengths = lengths[lengths > 0]
    num_events = int((log.item_ids > 0).sum())
    num_pairs = _distinct_pairs(log)
    protocol, reason = default_protocol(dataset)
    impressions = dataset.impressions
    return {
        "name": dataset.name,
        "users": len(lengths),
        "users_are": "sessions" if dataset.anonymous else "users",
        "items": catalog.num_items,
        "items_with_events": int((np.bincount(log.item_ids, minlength=1)[1:] > 0).sum()),
        "events": num_events,
        "searches": len(log) - num_events,
        "impressions": 0 if impressions is None else len(impressions.item_ids),
        "impression_requests": 0 if impressions is None else len(np.unique(impressions.request_ids)),
        "period": _period(dataset),
        "actions": _actions(log),
        "target_events": len(log.targets_only()),
        "density": num_pairs / (len(lengths) * catalog.num_items) if len(lengths) else 0.0,
        "events_per_user": _quantiles(lengths),
        "repeat_share": (num_events - num_pairs) / num_events if num_events else 0.0,
        "seen_items_may_recur": dataset.repeats,
        "default_protocol": protocol,
        "default_protocol_reason": reason,
        "columns": _columns(dataset),
        "missing": _missing(dataset),
        "notes": list(dataset.notes),
        "fingerprint": dataset.fingerprint,
    }


def _distinct_pairs(log: Interactions) -> int:
    """Return the number of distinct (user, item) pairs of a log."""
    has_item = log.item_ids > 0
    keys = log.user_ids[has_item] * np.int64(log.num_items + 1) + log.item_ids[has_item]
    keys.sort()
    return int((np.diff(keys) != 0).sum()) + 1 if len(keys) else 0


def _period(dataset: Dataset) -> list[str] | None:
    """Return the first and last time of the events (of the impressions, if events have no times), ISO 8601 in UTC."""
    times = dataset.interactions.timestamps
    if times is None and dataset.impressions is not None:
        times = dataset.impressions.timestamps
    if times is None or not len(times):
        return None
    return [datetime.fromtimestamp(int(t) / 1000, UTC).isoformat() for t in (times.min(), times.max())]


def _actions(log: Interactions) -> dict[str, int]:
    """Return the number of events of each action, the most frequent first."""
    if "action" not in log.columns.columns:
        return {}
    counts = log.columns["action"].drop_nulls().value_counts(sort=True)
    return {str(action): int(count) for action, count in counts.iter_rows()}


def _quantiles(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    """Return the QUANTILES and the mean of the numbers of events of users."""
    if not len(lengths):
        return {}
    values = {name: float(np.quantile(lengths, share)) for name, share in QUANTILES.items()}
    return values | {"mean": float(lengths.mean())}


def _columns(dataset: Dataset) -> dict[str, list[str]]:
    """Return the names of the columns of each table."""
    impressions = dataset.impressions
    return {
        "interactions": dataset.interactions.columns.columns,
        "items": dataset.catalog.table.columns,
        "users": dataset.users.table.columns,
        "impressions": [] if impressions is None else impressions.columns.columns,
    }


def _missing(dataset: Dataset) -> list[str]:
    """Return in words what the data set lacks, and what it would be used for."""
    catalog, log = dataset.catalog, dataset.interactions
    content = [
        name
        for name, kind in catalog.table.schema.items()
        if name.startswith("content_") and isinstance(kind, pl.List) and kind.inner.is_numeric()
    ]
    num_empty = 0 if catalog.text is None else int((catalog.text.str.strip_chars(" .,") == "").sum())
    missing_parts = [
        (len(log) == 0, "interactions: sequence models have nothing to learn from"),
        (len(log) > 0 and log.timestamps is None, "times: neither the time protocol nor recency is possible"),
        (catalog.text is None and not content, "item text or content_ columns: semantic IDs need one of them"),
        (num_empty > 0, f"text of {num_empty} of {catalog.num_items} items"),
        (not catalog.features, "item features: [items] features in dataset.toml declares them"),
        (dataset.impressions is None, "impressions: ranking models and policy evaluation learn from them"),
    ]
    return [description for is_missing, description in missing_parts if is_missing]
