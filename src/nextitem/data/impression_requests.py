"""Requests of what was shown: candidates with labels, and the history before them."""

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


def impression_requests(dataset: Dataset, times: Rows, asked: NDArray[np.bool_]) -> SequenceBatch:
    """One request for each impression request in the mask `asked [R]`, made at `times [R]` (milliseconds).

    Candidates are the rows shown, in the file's order, with slot and propensity as features and the labels
    as float32 (NaN: not known). The history is the user's events strictly before the time; it is empty
    for an unknown user or an undated log. Context is that of the request's first row. There are no targets.
    """
    shown, log = dataset.impressions, dataset.interactions
    assert shown is not None
    rows = np.flatnonzero(asked[shown.request_ids])
    rows = rows[np.argsort(shown.request_ids[rows], kind="stable")]
    requests, first, lengths = np.unique(shown.request_ids[rows], return_index=True, return_counts=True)
    users, when = shown.user_ids[rows[first]], times[requests]
    known = users > 0
    starts = np.where(known, log.offsets[users - 1], 0) if len(log) else np.zeros_like(when)
    ends = np.where(known, _events_before(log, users, when), starts)
    batch = build_requests(dataset, starts, ends, targets=None, times=when, user_ids=users if known.any() else None)
    offsets = offsets_of(torch.from_numpy(lengths.astype(np.int64)))

    def candidates(column: NDArray[np.generic]) -> Jagged:
        return Jagged(tensor(column), offsets)

    columns = shown.columns[rows] if shown.columns.width else shown.columns

    def numbers(name: str, *, missing: float) -> Jagged:
        return candidates(columns[name].cast(pl.Float32).fill_null(missing).to_numpy())

    context = {name: column for name, column in dataset.catalog.requests.items() if name in columns.columns}
    return replace(
        batch,
        context={**batch.context, **(request_values(columns[first], context) if context else {})},
        candidates=candidates(shown.item_ids[rows].astype(np.int64)),
        candidate_features={
            name: numbers(name, missing=0) for name in ("slot", "propensity") if name in columns.columns
        },
        candidate_labels={name: numbers(name, missing=float("nan")) for name in shown.labels},
    )


def _events_before(log: Interactions, users: NDArray[np.int32], times: Rows) -> Rows:
    """The row after each user's last event strictly before a time, [n]; the user's first row if there is none."""
    if log.timestamps is None or not len(log):
        return log.offsets[users - 1] if len(log) else np.zeros(len(users), np.int64)
    # Ranks instead of times: (user, rank) then fits one sortable integer whatever the times are.
    distinct = np.unique(log.timestamps)
    keys = log.user_ids * np.int64(len(distinct) + 1) + np.searchsorted(distinct, log.timestamps)
    return np.searchsorted(keys, users * np.int64(len(distinct) + 1) + np.searchsorted(distinct, times))
