"""From a user, a history or a list of users to recommended items, with the request's filters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.dataset import Dataset, Users
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.core.interactions import Interactions
from nextitem.core.recommendations import Recommendations, Relaxation
from nextitem.core.recommender import Recommender
from nextitem.data.requests import RequestBuilder, request_values
from nextitem.data.validation import SECONDS_BELOW
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


def history_requests(
    history: Sequence[Any] | pl.DataFrame, catalog: Catalog, *, context: Mapping[str, Any] | None = None
) -> tuple[SequenceBatch, tuple[str, ...]]:
    """Build the request of a visitor, and return it with the ids in the history that no item has.

    `history` holds item ids, oldest first, or is a frame with a column item_id and, if known, timestamp, action and
    other columns of events. `context` holds what is known of the request by the names of `catalog.requests`. Raises
    UserError if the history names no known item at all: that is more likely a mistake than a new visitor.
    """
    frame = history if isinstance(history, pl.DataFrame) else pl.DataFrame({"item_id": [str(item) for item in history]})
    ids = frame["item_id"].cast(pl.String).str.strip_chars()
    item_ids = catalog.ids.encode(ids)
    unknown = ids.filter(pl.Series(item_ids == 0)).to_list()
    if unknown and len(unknown) == len(ids):
        known = ", ".join(str(item) for item in catalog.ids.external.head(3))
        raise UserError(f"--history: no item is called {', '.join(unknown[:5])}; item ids look like {known}")
    frame, item_ids = frame.filter(pl.Series(item_ids > 0)), item_ids[item_ids > 0]
    times = _milliseconds(frame["timestamp"]) if "timestamp" in frame.columns else None
    log = Interactions(
        np.ones(len(item_ids), np.int32),
        item_ids,
        1,
        catalog.num_items,
        timestamps=times,
        columns=frame.drop("item_id", "timestamp", strict=False),
    )
    visitor = Dataset("history", log, catalog, Users(IdMap(pl.Series("id", ["visitor"]))))
    ends = log.offsets[1:]
    now = None if times is None or not len(times) else times[-1:] + 1
    requests = RequestBuilder(visitor).build(log.offsets[:-1], ends, times=now)
    return replace(requests, context=_context(context or {}, catalog)), tuple(unknown)


def _milliseconds(times: pl.Series) -> NDArray[np.int64]:
    if times.dtype.is_temporal():
        return times.cast(pl.Datetime("ms")).to_physical().cast(pl.Int64).to_numpy().copy()
    whole = times.cast(pl.Int64).to_numpy().copy()
    return whole * 1000 if len(whole) and int(whole.max()) < SECONDS_BELOW else whole


def _context(context: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """One request's context, encoded; UserError for a name that the model does not know."""
    for name in context:
        if name not in catalog.requests:
            known = ", ".join(catalog.requests) or "nothing"
            raise UserError(f"context {name!r}: this model knows {known} of a request")
    columns = pl.DataFrame({name: pl.Series(name, [value]) for name, value in context.items()})
    return dict(request_values(columns, {name: catalog.requests[name] for name in context}))


def user_requests(dataset: Dataset, users: Sequence[Any] | None) -> SequenceBatch:
    """Build requests of these users (external ids; None: all), made right after the last event of the log.

    The history of each is the user's whole history. Requests come from RequestBuilder, as those of every split do.
    """
    log = dataset.interactions
    numbers = user_numbers(dataset, users)
    now = None
    if log.timestamps is not None and len(log):
        now = np.full(len(numbers), int(log.timestamps.max()) + 1)
    return RequestBuilder(dataset).build(
        log.offsets[numbers - 1], log.offsets[numbers], times=now, user_ids=numbers.astype(np.int32)
    )


def user_numbers(dataset: Dataset, users: Sequence[Any] | None) -> NDArray[np.int64]:
    """Numbers 1..U of users by their external ids (None: all users); UserError for an unknown one."""
    if users is None:
        return np.arange(1, dataset.interactions.num_users + 1)
    ids = pl.Series([str(user).strip() for user in users], dtype=pl.String)
    numbers = dataset.users.ids.encode(ids).astype(np.int64)
    unknown = ids.filter(pl.Series(numbers == 0)).to_list()
    if unknown:
        known = ", ".join(str(user) for user in dataset.users.ids.external.head(3))
        raise UserError(f"no user is called {', '.join(unknown[:5])}; user ids look like {known}")
    return numbers


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
    requests, all_numbers = user_requests(dataset, users), user_numbers(dataset, users)
    parts = []
    start = 0
    for found in _lists(model, requests, k=k, exclude_seen=exclude_seen, filters=filters):
        ids, scores = found.item_ids, found.scores
        rows, columns = (ids > 0).nonzero(as_tuple=True)
        numbers = all_numbers[(start + rows).numpy()]
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
