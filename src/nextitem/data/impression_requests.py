"""Build requests from impressions: the items shown are candidates with labels, after the history of the user."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.interactions import Interactions
from nextitem.core.jagged import Jagged, offsets_of
from nextitem.data.requests import Rows, build_requests, request_values, tensor


def impression_requests(dataset: Dataset, times: Rows, is_requested: NDArray[np.bool_]) -> SequenceBatch:
    """Return one request for each impression request in a mask.

    Candidates are the rows shown, in the file's order, with slot and propensity as features, and the labels as float32
    (NaN: not known). The history consists of the user's events strictly before the time of the request; it is empty for
    an unknown user or an undated log. Context is that of the request's first row. There are no targets.

    Args:
        dataset: a data set with impressions.
        times: time of each impression request in milliseconds, [R].
        is_requested: mask of the impression requests to build, [R].

    """
    impressions, log = dataset.impressions, dataset.interactions
    assert impressions is not None
    rows = np.flatnonzero(is_requested[impressions.request_ids])
    rows = rows[np.argsort(impressions.request_ids[rows], kind="stable")]
    requests, first, lengths = np.unique(impressions.request_ids[rows], return_index=True, return_counts=True)
    users, request_times = impressions.user_ids[rows[first]], times[requests]
    is_known = users > 0
    starts = np.where(is_known, log.offsets[users - 1], 0) if len(log) else np.zeros_like(request_times)
    ends = np.where(is_known, _row_after_last_event(log, users, request_times), starts)
    batch = build_requests(
        dataset, starts, ends, targets=None, times=request_times, user_ids=users if is_known.any() else None
    )
    offsets = offsets_of(torch.from_numpy(lengths.astype(np.int64)))

    def candidates(column: NDArray[np.generic]) -> Jagged:
        """Return a column of the selected impressions as a Jagged, one row per request."""
        return Jagged(tensor(column), offsets)

    columns = impressions.columns[rows] if impressions.columns.width else impressions.columns

    def numbers(name: str, *, missing: float) -> Jagged:
        """Return a numeric column of the selected impressions, one row per request; nulls become `missing`."""
        return candidates(columns[name].cast(pl.Float32).fill_null(missing).to_numpy())

    context = {name: column for name, column in dataset.catalog.requests.items() if name in columns.columns}
    return replace(
        batch,
        context={**batch.context, **(request_values(columns[first], context) if context else {})},
        candidates=candidates(impressions.item_ids[rows].astype(np.int64)),
        candidate_features={
            name: numbers(name, missing=0) for name in ("slot", "propensity") if name in columns.columns
        },
        candidate_labels={name: numbers(name, missing=float("nan")) for name in impressions.labels},
    )


def _row_after_last_event(log: Interactions, users: NDArray[np.int32], times: Rows) -> Rows:
    """Return for each user the row of the log at which the history before a time ends, [n].

    That is the row after the user's last event strictly before the time, or the user's first row without such an event.
    """
    if log.timestamps is None or not len(log):
        return log.offsets[users - 1] if len(log) else np.zeros(len(users), np.int64)
    # With ranks instead of times, (user, rank) fits into one sortable integer for all times.
    distinct = np.unique(log.timestamps)
    keys = log.user_ids * np.int64(len(distinct) + 1) + np.searchsorted(distinct, log.timestamps)
    return np.searchsorted(keys, users * np.int64(len(distinct) + 1) + np.searchsorted(distinct, times))
