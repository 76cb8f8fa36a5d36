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
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import Recommendations, Relaxation
from nextitem.core.recommender import Recommender
from nextitem.core.roles import KnowsSimilarItems
from nextitem.core.top_items import top_items
from nextitem.core.vector_model import VectorModel
from nextitem.data.requests import RequestBuilder, request_values
from nextitem.data.times import SECONDS_BELOW
from nextitem.nn.fields.fields import Fields


@dataclass(frozen=True)
class Filters:
    """What a request allows: `only` column=value (all must hold), and external ids that must not be recommended."""

    only: tuple[str, ...] = ()
    exclude_items: tuple[Any, ...] = ()


@dataclass(frozen=True)
class RecommendationList:
    """The items recommended for one request, best first, in the ids of the data set. Iterates over the item ids.

    fallback             popularity answered instead of the model
    skipped              items of the history that the model does not know
    channels             what retrieved each item, if a cascade answered
    relaxed              rules that no candidate could satisfy, in words
    unknown_exclusions   ids in `exclude_items` that no item has
    """

    item_ids: list[Any]
    scores: list[float]
    titles: list[str]
    fallback: bool
    skipped: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    relaxed: tuple[str, ...] = ()
    unknown_exclusions: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.item_ids)

    def __len__(self) -> int:
        return len(self.item_ids)

    def to_frame(self) -> pl.DataFrame:
        """A data frame with the columns item_id, title, score and rank (from 1)."""
        rank = pl.Series("rank", range(1, len(self.item_ids) + 1), dtype=pl.Int32)
        columns = [
            pl.Series("item_id", self.item_ids),
            pl.Series("title", self.titles),
            pl.Series("score", self.scores),
        ]
        return pl.DataFrame([*columns, rank])

    def __repr__(self) -> str:
        rows = zip(self.item_ids, self.titles, self.scores, strict=True)
        lines = [
            f"{rank:3d}  {item}{'' if str(item) == title else '  ' + title}  {score:.4f}"
            for rank, (item, title, score) in enumerate(rows, start=1)
        ]
        return "\n".join(lines) or "no item is allowed by this request"

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
        raise UserError(f"history: no item is called {', '.join(unknown[:5])}; item ids look like {known}")
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


def user_requests(source: Dataset | RequestBuilder, users: Sequence[Any] | None) -> SequenceBatch:
    """Build requests of these users (external ids; None: all), made right after the end of the log (data.last_time).

    The history of each is the user's whole history. Requests come from RequestBuilder, as those of every split do; give
    the builder itself to ask one log many times: it reads the whole log once.
    """
    builder = source if isinstance(source, RequestBuilder) else RequestBuilder(source)
    log = builder.log
    numbers = user_numbers(builder.dataset, users)
    starts, ends = log.offsets[numbers - 1], log.offsets[numbers]
    now = None
    if log.timestamps is not None and builder.end_time is not None:
        # One stray date in the future must not age everybody's history; a user's own events still precede the request.
        own = np.where(ends > starts, log.timestamps[np.maximum(ends - 1, 0)], 0)
        now = np.maximum(own, builder.end_time) + 1
    return builder.build(starts, ends, times=now, user_ids=numbers.astype(np.int32))


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
) -> list[RecommendationList]:
    """Return one list for each request."""
    catalog = model.catalog
    titles = catalog.titles()
    unknown = unknown_items(catalog, filters.exclude_items)
    answers = []
    for found in _lists(model, requests, k=k, exclude_seen=exclude_seen, filters=filters):
        for row, (ids, scores) in enumerate(zip(found.item_ids, found.scores, strict=True)):
            real = ids[ids > 0].numpy()
            channels = () if found.channel is None else found.channel[row, : len(real)].tolist()
            fallback = found.fallback is not None and bool(found.fallback[row])
            answers.append(
                RecommendationList(
                    catalog.ids.decode(real).to_list(),
                    [round(score, 6) for score in scores[: len(real)].tolist()],
                    titles.gather(real - 1).to_list(),
                    fallback,
                    channels=() if fallback else tuple(found.channels[channel] for channel in channels),
                    relaxed=tuple(_in_words(each) for each in found.relaxations if each.request == row),
                    unknown_exclusions=unknown,
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
    """Return recommendations of many users (None: all): columns user_id, item_id, score, rank (from 1)."""
    requests, numbers = user_requests(dataset, users), user_numbers(dataset, users)
    parts, start = [], 0
    for lists in _lists(model, requests, k=k, exclude_seen=exclude_seen, filters=filters):
        end = start + len(lists.item_ids)
        parts.append(_list_frame(model, lists).with_columns(_decoded(dataset.users.ids, numbers[start:end])))
        start = end
    columns = ["user_id", "item_id", "score", "rank"]
    return pl.concat([part.select(columns) for part in parts]) if parts else pl.DataFrame(schema=columns)


def _decoded(ids: IdMap, numbers: NDArray[np.int64]) -> pl.Expr:
    """The users' ids of the rows of lists, by the column `request`."""
    return pl.lit(ids.decode(numbers)).gather(pl.col("request")).alias("user_id")


def _list_frame(model: Recommender, lists: Recommendations) -> pl.DataFrame:
    """Columns request (row of the lists), item_id, score, rank (from 1); padding left out."""
    items, scores = lists.item_ids.cpu(), lists.scores.cpu()
    rows, columns = (items > 0).nonzero(as_tuple=True)
    return pl.DataFrame(
        {
            "request": rows.numpy(),
            "item_id": model.catalog.ids.decode(items[rows, columns].numpy()),
            "score": scores[rows, columns].numpy(),
            "rank": (columns + 1).numpy().astype(np.int32),
        }
    )


def ranked_candidates(
    model: Recommender, requests: SequenceBatch, candidates: Sequence[Any], *, user: Any | None = None
) -> pl.DataFrame:
    """Return candidates (item ids) in the model's order for one request: user_id, item_id, score, rank (from 1).

    Raises UserError for an unknown candidate, and if there is none.
    """
    ids = pl.Series([str(item).strip() for item in candidates], dtype=pl.String)
    numbers = model.catalog.ids.encode(ids).astype(np.int64)
    unknown = ids.filter(pl.Series(numbers == 0)).to_list()
    if unknown or not len(ids):
        known = ", ".join(str(item) for item in model.catalog.ids.external.head(3))
        problem = f"no item is called {', '.join(unknown[:5])}" if unknown else "there are none"
        raise UserError(f"candidates: {problem}; item ids look like {known}")
    distinct = np.unique(numbers)
    allowed = torch.zeros(1, model.num_items + 1, dtype=torch.bool)
    allowed[0, torch.from_numpy(distinct)] = True
    rows = Jagged(torch.from_numpy(distinct), torch.tensor([0, len(distinct)]))
    batch = replace(requests, allowed=allowed, candidates=rows).to(model.popularity.device)
    frame = _list_frame(model, model.recommend(batch, len(distinct)))
    owner = pl.Series("user_id", [user] * frame.height, dtype=pl.Null if user is None else None)
    return frame.select(owner, "item_id", "score", "rank")


def similar_items(model: Recommender, item: Any, *, k: int) -> pl.DataFrame:
    """Return the k items most like one item: item_id, score, rank (from 1); roles.KnowsSimilarItems."""
    number = int(model.catalog.ids.encode(pl.Series([str(item).strip()], dtype=pl.String))[0])
    if not number:
        known = ", ".join(str(each) for each in model.catalog.ids.external.head(3))
        raise UserError(f"no item is called {item}; item ids look like {known}")
    scores = similarity_scores(model, number)
    batch = SequenceBatch(Jagged.from_rows([[number]]), excluded=Jagged.from_rows([[number]]))
    lists = top_items(scores[None].clone(), batch, min(k, model.num_items))
    return _list_frame(model, lists).select("item_id", "score", "rank")


def similarity_scores(model: Recommender, item: int) -> Tensor:
    """How alike every item is to one item, [N + 1] float32; -inf: not at all. UserError if the model does not say."""
    if isinstance(model, KnowsSimilarItems):
        return model.similarity_to(item).float().cpu()
    if isinstance(model, VectorModel):
        vectors = torch.nn.functional.normalize(model.item_vectors().detach().float(), dim=1)
        return (vectors @ vectors[item]).cpu()
    raise UserError(
        f"{type(model).__name__} holds neither vectors nor similarities of items; ask item-cf, swing, sasrec, "
        "two-tower, content-neighbours, ..."
    )


def _lists(
    model: Recommender, requests: SequenceBatch, *, k: int, exclude_seen: bool, filters: Filters
) -> Iterator[Recommendations]:
    allowed = allowed_items(model.catalog, filters)
    for batch in requests.split(256):
        batch = replace(batch, allowed=allowed, excluded=batch.items if exclude_seen else None)
        yield model.recommend(batch.to(model.popularity.device), k)


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
    excluded = catalog.ids.encode(pl.Series([str(item).strip() for item in filters.exclude_items], dtype=pl.String))
    mask[excluded[excluded > 0] - 1] = False
    return torch.from_numpy(np.concatenate([[False], mask]))[None, :]


def unknown_items(catalog: Catalog, item_ids: Sequence[Any]) -> tuple[str, ...]:
    """Return the ids that no item has, as text."""
    ids = pl.Series([str(item).strip() for item in item_ids], dtype=pl.String)
    return tuple(ids.filter(pl.Series(catalog.ids.encode(ids) == 0)).to_list())


def history_frame(history: Any) -> pl.DataFrame | Sequence[Any]:
    """Return a history as ids, or as a polars frame if it is a table (polars, pandas, Arrow, a dict of columns)."""
    if isinstance(history, Mapping):
        frame = pl.DataFrame(dict(history))
    elif isinstance(history, pl.DataFrame):
        frame = history
    elif hasattr(history, "columns") or hasattr(history, "column_names"):
        frame = pl.DataFrame(
            pl.from_dataframe(history) if hasattr(history, "__dataframe__") else pl.from_arrow(history)
        )
    else:
        ids: Sequence[Any] = list(history)
        return ids
    if "item_id" not in frame.columns:
        raise UserError(f"history: column 'item_id' is missing, there are {', '.join(frame.columns)}; rename one")
    return frame


def _holds(column: pl.Series, value: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if column.dtype.is_nested():
        held = column.list.eval(pl.element().cast(pl.String) == value).list.any()
    else:
        held = column.cast(pl.String) == value
    return held.fill_null(False).to_numpy()


def _some(column: pl.Series) -> str:
    values = column.explode() if column.dtype.is_nested() else column
    return ", ".join(str(value) for value in values.drop_nulls().unique(maintain_order=True).head(5))
