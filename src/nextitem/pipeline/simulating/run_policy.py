"""A run as the policy of a simulated world: its model answers requests that are built as those of evaluation.

The history of a customer is that of the run's data, then what the customer clicked and bought since. Requests of all
customers who ask at once are one batch.

Shapes: B customers of a batch, C customers of the world, N items of the world.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import ACTION
from nextitem.core.dataset import Dataset, Users
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.data.requests import RequestBuilder
from nextitem.data.shop.truth import Ints
from nextitem.pipeline.runs import Run
from nextitem.simulation.answers import Answers, CustomerWorld
from nextitem.simulation.policies import Visits
from nextitem.simulation.rollout import SECONDS_PER_SLOT

BATCH = 512  # requests that a model answers at once


class RunPolicy:
    """A run that recommends items to the customers of a world."""

    def __init__(self, name: str, run: Run, world: CustomerWorld) -> None:
        """Prepare the histories of the customers.

        Raises:
            UserError: the run has items that the world does not have.

        """
        self.name, self._model = name, run.model.eval()
        ids = pl.Series(world.item_ids)
        self._numbers = self._model.catalog.ids.encode(ids).astype(np.int64)  # of the model, by row of the world
        self._rows = np.full(self._model.num_items + 1, -1)
        self._rows[self._numbers] = np.arange(len(ids))
        self._rows[0] = -1
        _check_items(run, world, self._rows)
        self._dataset = _of_customers(run.dataset, world.user_ids)
        self._log = self._dataset.interactions

    def heads(self, visits: Visits, count: int) -> Ints:
        """Return the best items of the model that are in stock, [B, count]; see simulation.policies.Policy."""
        log = self._log
        builder = RequestBuilder(replace(self._dataset, interactions=log))
        times = None if log.timestamps is None else (visits.times * 1000).astype(np.int64)
        batch = builder.build(
            log.offsets[visits.customers],
            log.offsets[visits.customers + 1],
            times=times,
            user_ids=(visits.customers + 1).astype(np.int32),
            exclude_seen=not self._dataset.repeats,
        )
        batch = replace(batch, allowed=self._in_stock(visits.stock))
        parts = [self._answers(part, count) for part in batch.split(BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, count), np.int64)

    def observe(self, visits: Visits, rows: Ints, answers: Answers) -> None:
        """Add what was clicked to the histories."""
        places, slots = np.nonzero(answers.clicks & (self._numbers[rows] > 0))
        if not len(places):
            return
        seconds = visits.times[places] + (slots + 1) * SECONDS_PER_SLOT
        actions = np.where(answers.purchases[places, slots], "purchase", "click")
        self._log = _appended(
            self._log,
            users=(visits.customers[places] + 1).astype(np.int32),
            items=self._numbers[rows[places, slots]].astype(np.int32),
            times=(seconds * 1000).astype(np.int64),
            actions=actions.tolist(),
        )

    def _answers(self, batch: SequenceBatch, count: int) -> Ints:
        """Return the rows of the best items for a batch of requests, [B, count]; -1: fewer are allowed."""
        lists = self._model.recommend(batch.to(self._model.popularity.device), count)
        rows: Ints = self._rows[lists.item_ids.cpu().numpy()]
        return rows

    def _in_stock(self, stock: NDArray[np.bool_]) -> torch.Tensor | None:
        """Return which items of the model there are, bool [1, items + 1]; None: all of them."""
        allowed = np.zeros(self._model.num_items + 1, dtype=np.bool_)
        allowed[self._numbers[stock]] = True
        allowed[0] = False
        return None if allowed[1:].all() else torch.from_numpy(allowed)[None]


def _check_items(run: Run, world: CustomerWorld, rows: Ints) -> None:
    """Raise UserError if the world lacks items of the run, or has others with their ids."""
    catalog = run.model.catalog
    unknown = np.flatnonzero(rows[1:] < 0)
    problem = ""
    if len(unknown):
        examples = ", ".join(str(item) for item in catalog.ids.decode(unknown[:3] + 1).to_list())
        problem = f"{len(unknown):,} of its {catalog.num_items:,} items are not in this world ({examples})"
    elif world.titles and "title" in catalog.table.columns:
        titles = np.array(world.titles, dtype=object)[rows[1:]]
        differs = np.flatnonzero(titles != np.array(catalog.table["title"].cast(pl.String).to_list(), dtype=object))
        if len(differs):
            item = catalog.ids.decode(differs[:1] + 1).to_list()[0]
            problem = f"its item {item} is another one in this world"
    if problem:
        raise UserError(
            f"{run.folder} was trained on other data than the simulated customers come from: {problem}; simulate runs "
            "of one data set"
        )


def _of_customers(dataset: Dataset, user_ids: list[str]) -> Dataset:
    """Return a data set whose users 1..C are the customers, with their events and impressions.

    Customers whom the data set does not contain have no events, and no features.
    """
    numbers = dataset.users.ids.encode(pl.Series(user_ids)).astype(np.int64)
    numbers = np.zeros_like(numbers) if dataset.anonymous else numbers
    customer_of = np.zeros(len(dataset.users.ids) + 1, dtype=np.int64)
    customer_of[numbers] = np.arange(1, len(numbers) + 1)
    customer_of[0] = 0
    log, impressions, table = dataset.interactions, dataset.impressions, dataset.users.table
    log = log.select(customer_of[log.user_ids] > 0)
    log = _sorted_by_user(log, customer_of[log.user_ids], len(user_ids))
    if impressions is not None:
        impressions = impressions.select(customer_of[impressions.user_ids] > 0)
        impressions = replace(impressions, user_ids=customer_of[impressions.user_ids].astype(np.int32))
    if table.width:
        blank = pl.DataFrame({name: pl.Series([None], dtype=kind) for name, kind in table.schema.items()})
        table = pl.concat([blank, table])[numbers]
    users = Users(IdMap(pl.Series("user_id", user_ids)), table, dataset.users.features)
    return replace(dataset, interactions=log, users=users, impressions=impressions)


def _sorted_by_user(log: Interactions, users: NDArray[np.int64], num_users: int) -> Interactions:
    """Return the events of a log with other users, sorted by these; the order of a user's events stays."""
    order = np.argsort(users, kind="stable")
    return Interactions(
        users[order].astype(np.int32),
        log.item_ids[order],
        num_users,
        log.num_items,
        timestamps=None if log.timestamps is None else log.timestamps[order],
        positive=None if log.positive is None else log.positive[order],
        columns=log.columns[order] if log.columns.width else log.columns,
    )


def _appended(
    log: Interactions, *, users: NDArray[np.int32], items: NDArray[np.int32], times: Ints, actions: list[str]
) -> Interactions:
    """Return a log with further events, each after the others of its user; columns that are not known are null."""
    columns = log.columns
    if columns.width:
        new = pl.DataFrame({name: pl.Series([None] * len(users), dtype=kind) for name, kind in columns.schema.items()})
        if ACTION in columns.columns:
            kind = columns.schema[ACTION]
            new = new.with_columns(pl.Series(ACTION, actions, dtype=pl.String).cast(kind, strict=False))
        columns = pl.concat([columns, new])
    joined = Interactions(
        np.zeros(len(log) + len(users), dtype=np.int32) + 1,
        np.concatenate([log.item_ids, items]),
        log.num_users,
        log.num_items,
        timestamps=None if log.timestamps is None else np.concatenate([log.timestamps, times]),
        positive=None if log.positive is None else np.concatenate([log.positive, np.ones(len(users), np.bool_)]),
        columns=columns,
    )
    return _sorted_by_user(joined, np.concatenate([log.user_ids, users]).astype(np.int64), log.num_users)
