"""From a user, a history or a list of users to recommended items, with the request's filters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations, Relaxation
from nextitem.core.recommender import Recommender
from nextitem.data.requests import context_of, user_context
from nextitem.nn.fields.fields import Fields


@dataclass(frozen=True)
class Filters:
    """What a request allows: `only` column=value (all must hold), and external ids that are kept out."""

    only: tuple[str, ...] = ()
    exclude_items: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Answer:
    """One list, best first, in external ids.

    `fallback`: popularity answered instead of the model; `skipped`: items of the history that the model does not know;
    `channels`: what brought each item, where a cascade says so; `relaxed`: rules that could not hold, in words.
    """

    item_ids: list[Any]
    scores: list[float]
    titles: list[str]
    fallback: bool
    skipped: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    relaxed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The public format of `nextitem recommend --json`."""
        rows = zip(self.item_ids, self.scores, self.titles, strict=True)
        items = [{"item_id": item, "score": score, "title": title} for item, score, title in rows]
        for item, channel in zip(items, self.channels, strict=False):
            item["channel"] = channel
        relaxed = {"relaxed": list(self.relaxed)} if self.relaxed else {}
        return {"items": items, "fallback": self.fallback, **relaxed}


def history_requests(history: Sequence[Any], catalog: Catalog) -> tuple[SequenceBatch, tuple[str, ...]]:
    """One request of a visitor with this history of external item ids, and the ids that no item has, left out.

    UserError where that leaves nothing of a history: it is more likely a mistake than a visitor.
    """
    ids = pl.Series([str(item).strip() for item in history], dtype=pl.String)
    items = catalog.ids.encode(ids)
    unknown = ids.filter(pl.Series(items == 0)).to_list()
    if unknown and len(unknown) == len(ids):
        known = ", ".join(str(item) for item in catalog.ids.external.head(3))
        raise UserError(f"--history: no item is called {', '.join(unknown[:5])}; item ids look like {known}")
    return SequenceBatch(Jagged.from_rows([items[items > 0].tolist()])), tuple(unknown)


def user_requests(dataset: Dataset, users: Sequence[Any] | None) -> SequenceBatch:
    """Requests of these users (external ids; None: all) with their whole history, made right after its last event."""
    log = dataset.interactions
    if users is None:
        rows = np.arange(1, log.num_users + 1)
    else:
        ids = pl.Series([str(user).strip() for user in users], dtype=pl.String)
        rows = dataset.users.ids.encode(ids).astype(np.int64)
        unknown = ids.filter(pl.Series(rows == 0)).to_list()
        if unknown:
            known = ", ".join(str(user) for user in dataset.users.ids.external.head(3))
            raise UserError(f"no user is called {', '.join(unknown[:5])}; user ids look like {known}")
    with_item = log.select(log.item_ids > 0) if bool((log.item_ids == 0).any()) else log
    index = torch.from_numpy(rows - 1)
    histories = with_item.histories()
    times, now = None, None
    if with_item.timestamps is not None and len(with_item):
        times = histories.with_values(torch.from_numpy(with_item.timestamps)).select(index)
        now = torch.full((len(index),), int(with_item.timestamps.max()) + 1)
    context = context_of(user_context(dataset), index + 1)
    return SequenceBatch(
        histories.select(index), user_ids=index + 1, timestamps=times, request_times=now, context=context
    )


def answer(
    model: Recommender, requests: SequenceBatch, *, k: int, exclude_seen: bool, filters: Filters
) -> list[Answer]:
    """One Answer a request."""
    catalog = model.catalog
    titles = catalog.titles()
    answers = []
    for found in _lists(model, requests, k=k, exclude_seen=exclude_seen, filters=filters):
        for row, (ids, scores) in enumerate(zip(found.item_ids, found.scores, strict=True)):
            real = ids[ids > 0].numpy()
            channels = () if found.channel is None else found.channel[row, : len(real)].tolist()
            fallback = found.fallback is not None and bool(found.fallback[row])
            answers.append(
                Answer(
                    catalog.ids.decode(real).to_list(),
                    [round(score, 6) for score in scores[: len(real)].tolist()],
                    titles.gather(real - 1).to_list(),
                    fallback,
                    channels=() if fallback else tuple(found.channels[channel] for channel in channels),
                    relaxed=tuple(_in_words(each) for each in found.relaxations if each.request == row),
                )
            )
    return answers


def lacking_features(model: Recommender) -> dict[str, int]:
    """By column: how many requests so far lacked it, or had a value that training had not seen."""
    found: dict[str, int] = {}
    for part in model.modules():
        if isinstance(part, Fields):
            for name, count in part.missing.items():
                found[name] = max(found.get(name, 0), count)
    return found


def _in_words(relaxation: Relaxation) -> str:
    return relaxation.rule if relaxation.slot is None else f"{relaxation.rule}, at place {relaxation.slot}"


def answer_table(
    model: Recommender,
    dataset: Dataset,
    users: Sequence[Any] | None,
    *,
    k: int,
    exclude_seen: bool,
    filters: Filters,
) -> pl.DataFrame:
    """Recommendations of many users: columns user_id, item_id, rank (from 1), score."""
    requests = user_requests(dataset, users)
    assert requests.user_ids is not None
    parts = []
    start = 0
    for found in _lists(model, requests, k=k, exclude_seen=exclude_seen, filters=filters):
        ids, scores = found.item_ids, found.scores
        rows, columns = (ids > 0).nonzero(as_tuple=True)
        numbers = requests.user_ids[start + rows].numpy()
        start += ids.shape[0]
        parts.append(
            pl.DataFrame(
                {
                    "user_id": dataset.users.ids.decode(numbers),
                    "item_id": model.catalog.ids.decode(ids[rows, columns].numpy()),
                    "rank": (columns + 1).numpy().astype(np.int32),
                    "score": scores[rows, columns].numpy(),
                }
            )
        )
    return pl.concat(parts)


def _lists(
    model: Recommender, requests: SequenceBatch, *, k: int, exclude_seen: bool, filters: Filters
) -> Iterator[Recommendations]:
    allowed = allowed_items(model.catalog, filters)
    for batch in requests.split(256):
        asked = replace(batch, allowed=allowed, excluded=batch.items if exclude_seen else None)
        yield model.recommend(asked, k)


def allowed_items(catalog: Catalog, filters: Filters) -> Tensor | None:
    """bool [1, N + 1], or None where the filters forbid nothing."""
    if not filters.only and not filters.exclude_items:
        return None
    mask = np.ones(catalog.num_items, dtype=np.bool_)
    for text in filters.only:
        column, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--only {text!r}: write it as column=value, for example category=Tents")
        if column not in catalog.table.columns:
            raise UserError(
                f"--only {text!r}: items have no column {column!r}; there are {', '.join(catalog.table.columns)}"
            )
        mask &= _holds(catalog.table[column], value)
        if not mask.any():
            raise UserError(f"--only {text!r}: no item is left; some values are {_some(catalog.table[column])}")
    excluded = catalog.ids.encode(pl.Series([str(item) for item in filters.exclude_items], dtype=pl.String))
    mask[excluded[excluded > 0] - 1] = False
    return torch.from_numpy(np.concatenate([[False], mask]))[None, :]


def _holds(column: pl.Series, value: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if column.dtype.is_nested():
        held = column.list.eval(pl.element().cast(pl.String) == value).list.any()
    else:
        held = column.cast(pl.String) == value
    return held.fill_null(False).to_numpy()


def _some(column: pl.Series) -> str:
    values = column.explode() if column.dtype.is_nested() else column
    return ", ".join(str(value) for value in values.drop_nulls().unique(maintain_order=True).head(5))
