"""Requests from users or histories, with filters, and the answers of a model to them in external item ids."""

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
from nextitem.core.catalog import Catalog, ColumnEncoding
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
from nextitem.data.single_time import milliseconds_of
from nextitem.data.times import SECONDS_BELOW
from nextitem.nn.fields.fields import Fields
from nextitem.pipeline.explanations import Explanation, recommend_explained

BATCH_USERS = 256  # number of users that a model answers at once, if many are to be answered


@dataclass(frozen=True)
class Filters:
    """Filters on the items that a request may return.

    Attributes:
        only: conditions column=value on the items table; an item must satisfy all of them.
        exclude_items: external ids of items that must not be recommended.

    """

    only: tuple[str, ...] = ()
    exclude_items: tuple[Any, ...] = ()


@dataclass(frozen=True)
class RecommendationList:
    """Items recommended for one request, best first. Iteration yields the item ids.

    Attributes:
        item_ids: ids of the items, as in the data set.
        scores: score of each item; scores are comparable within one model only.
        titles: title of each item, or its id if items have no titles.
        fallback: True if the most popular items were returned instead of an answer of the model.
        skipped: ids of the history that the model does not know.
        channels: for a cascade, name of the channel that retrieved each item; otherwise empty.
        relaxed: rules of re-ranking that no candidate could satisfy, as text.
        unknown_exclusions: ids in `exclude_items` that no item has.
        guided: whether the guide of a generator had a score for any allowed item; None: there is no guide.
        explanation: why these items, if it was asked for; otherwise None.

    """

    item_ids: list[Any]
    scores: list[float]
    titles: list[str]
    fallback: bool
    skipped: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    relaxed: tuple[str, ...] = ()
    unknown_exclusions: tuple[str, ...] = ()
    guided: bool | None = None
    explanation: Explanation | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.item_ids)

    def __len__(self) -> int:
        return len(self.item_ids)

    def to_frame(self) -> pl.DataFrame:
        """Return a data frame with the columns item_id, title, score and rank (from 1), one row for each item."""
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
        """Return the public format of `nextitem recommend --json`."""
        rows = zip(self.item_ids, self.scores, self.titles, strict=True)
        items = [{"item_id": item, "score": score, "title": title} for item, score, title in rows]
        for item, channel in zip(items, self.channels, strict=False):
            item["channel"] = channel
        relaxed = {"relaxed": list(self.relaxed)} if self.relaxed else {}
        guided = {} if self.guided is None else {"guided": self.guided}
        explanation = {} if self.explanation is None else {"explanation": self.explanation.to_json()}
        return {"items": items, "fallback": self.fallback, **guided, **relaxed, **explanation}


def history_requests(
    history: Sequence[Any] | pl.DataFrame, catalog: Catalog, *, context: Mapping[str, Any] | None = None
) -> tuple[SequenceBatch, tuple[str, ...]]:
    """Build the request of a visitor from a history.

    Args:
        history: item ids, oldest first; or a frame with a column item_id and, if available, timestamp, action and other
            columns of events.
        catalog: catalogue of the model.
        context: features of the request, by the names in `catalog.requests`.

    Returns:
        The request, and the ids of the history that no item has.

    Raises:
        UserError: an unknown name in `context`, or a history of unknown items alone, which is more likely a mistake
            than a new visitor.

    """
    frame = history if isinstance(history, pl.DataFrame) else pl.DataFrame({"item_id": [str(item) for item in history]})
    ids = frame["item_id"].cast(pl.String).str.strip_chars()
    item_ids = catalog.ids.encode(ids)
    unknown = ids.filter(pl.Series(item_ids == 0)).to_list()
    if unknown and len(unknown) == len(ids):
        examples = ", ".join(str(item) for item in catalog.ids.external.head(3))
        raise UserError(f"history: no item is called {', '.join(unknown[:5])}; item ids look like {examples}")
    frame, item_ids = frame.filter(pl.Series(item_ids > 0)), item_ids[item_ids > 0]
    frame = _with_times(frame, catalog.events, "history: column")
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
    """Return times (dates, seconds or milliseconds since 1970) as milliseconds since 1970."""
    if times.dtype.is_temporal():
        return times.cast(pl.Datetime("ms")).to_physical().cast(pl.Int64).to_numpy().copy()
    whole = times.cast(pl.Int64).to_numpy().copy()
    return whole * 1000 if len(whole) and int(whole.max()) < SECONDS_BELOW else whole


def _context(context: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """Encode the features of one request. Raises UserError for a name that the model does not know."""
    for name in context:
        if name not in catalog.requests:
            names = ", ".join(catalog.requests) or "no features"
            raise UserError(f"context {name!r}: no such feature; of a request this model reads {names}")
    columns = pl.DataFrame({name: pl.Series(name, [value]) for name, value in context.items()})
    columns = _with_times(columns, catalog.requests, "context")
    return dict(request_values(columns, {name: catalog.requests[name] for name in context}))


def _with_times(frame: pl.DataFrame, encodings: Mapping[str, ColumnEncoding], place: str) -> pl.DataFrame:
    """Return a frame whose columns of kind timestamp are milliseconds since 1970, read as those of a data set.

    Raises UserError if a value is no time.
    """
    columns = []
    for name, encoding in encodings.items():
        if encoding.kind == "timestamp" and name in frame.columns and not frame[name].dtype.is_temporal():
            try:
                values = [None if value is None else milliseconds_of(value) for value in frame[name]]
            except ValueError as error:
                raise UserError(f"{place} {name!r}: {error}; write seconds since 1970 or 2026-01-31T18:00:00") from None
            columns.append(pl.Series(name, values, dtype=pl.Int64))
    return frame.with_columns(columns)


def user_requests(source: Dataset | RequestBuilder, users: Sequence[Any] | None) -> SequenceBatch:
    """Build one request for each user, at the time right after the end of the log (data.last_time).

    Histories are whole. RequestBuilder builds these requests, as it does those of every split.

    Args:
        source: a data set, or a RequestBuilder of one. A builder reads the whole log once, so reuse it for many calls.
        users: external ids of users; None: all users.

    Raises:
        UserError: an unknown user.

    """
    builder = source if isinstance(source, RequestBuilder) else RequestBuilder(source)
    log = builder.log
    numbers = user_numbers(builder.dataset, users)
    starts, ends = log.offsets[numbers - 1], log.offsets[numbers]
    now = None
    if log.timestamps is not None and builder.end_time is not None:
        # One stray date in the future must not age everybody's history; a user's own events still precede the request.
        last_times = np.where(ends > starts, log.timestamps[np.maximum(ends - 1, 0)], 0)
        now = np.maximum(last_times, builder.end_time) + 1
    return builder.build(starts, ends, times=now, user_ids=numbers.astype(np.int32))


def user_numbers(dataset: Dataset, users: Sequence[Any] | None) -> NDArray[np.int64]:
    """Return the numbers 1..U of users by their external ids (None: all users). Raises UserError for an unknown id."""
    if users is None:
        return np.arange(1, dataset.interactions.num_users + 1)
    ids = pl.Series([str(user).strip() for user in users], dtype=pl.String)
    numbers = dataset.users.ids.encode(ids).astype(np.int64)
    unknown = ids.filter(pl.Series(numbers == 0)).to_list()
    if unknown:
        examples = ", ".join(str(user) for user in dataset.users.ids.external.head(3))
        raise UserError(f"no user is called {', '.join(unknown[:5])}; user ids look like {examples}")
    return numbers


def answer(
    model: Recommender,
    requests: SequenceBatch,
    *,
    k: int,
    exclude_seen: bool,
    filters: Filters,
    explain: bool = False,
) -> list[RecommendationList]:
    """Return one list of at most k items for each request, under the filters, with explanations if `explain`."""
    unknown = unknown_items(model.catalog, filters.exclude_items)
    titles, answers = model.catalog.titles(), []
    for batch in _constrained(model, requests, exclude_seen=exclude_seen, filters=filters):
        if explain:
            lists, explanations = recommend_explained(model, batch, k, titles)
            decoded = decoded_lists(model.catalog, lists, titles)
            answers += [replace(part, explanation=why) for part, why in zip(decoded, explanations, strict=True)]
        else:
            answers += decoded_lists(model.catalog, model.recommend(batch, k), titles)
    return [replace(part, unknown_exclusions=unknown) for part in answers]


def decoded_lists(catalog: Catalog, lists: Recommendations, titles: pl.Series) -> list[RecommendationList]:
    """Return the lists of a batch in external ids; `titles` are those of the catalogue."""
    is_item = lists.item_ids.cpu() > 0
    items, lengths = lists.item_ids.cpu()[is_item].numpy(), is_item.sum(1).tolist()
    ids, names = catalog.ids.decode(items).to_list(), titles[items - 1].to_list()
    scores = [round(score, 6) for score in lists.scores.cpu()[is_item].tolist()]
    fallbacks = [False] * len(lengths) if lists.fallback is None else lists.fallback.tolist()
    answers, end = [], 0
    for row, length in enumerate(lengths):
        start, end = end, end + length
        channels = () if lists.channel is None else lists.channel[row, :length].tolist()
        relaxations = [relaxation for relaxation in lists.relaxations if relaxation.request == row]
        answers.append(
            RecommendationList(
                ids[start:end],
                scores[start:end],
                names[start:end],
                fallbacks[row],
                channels=() if fallbacks[row] else tuple(lists.channels[channel] for channel in channels),
                relaxed=tuple(_relaxation_text(relaxation) for relaxation in relaxations),
                guided=None if lists.guided is None else bool(lists.guided[row]),
            )
        )
    return answers


def lacking_features(model: Recommender) -> dict[str, int]:
    """Return for each column the number of requests so far that lacked it or had a value unknown from training."""
    num_requests: dict[str, int] = {}
    for part in model.modules():
        if isinstance(part, Fields):
            for name, count in part.missing.items():
                num_requests[name] = max(num_requests.get(name, 0), count)
    return num_requests


def _relaxation_text(relaxation: Relaxation) -> str:
    """Return the text of a relaxed rule: the rule and, if it concerns one, the slot in the list."""
    return relaxation.rule if relaxation.slot is None else f"{relaxation.rule}, at slot {relaxation.slot}"


def answer_table(
    model: Recommender,
    data: Dataset | RequestBuilder,
    users: Sequence[Any] | None,
    *,
    k: int,
    exclude_seen: bool,
    filters: Filters,
) -> pl.DataFrame:
    """Recommend k items to many users.

    Args:
        model: the model.
        data: the data set with the users' histories, or a builder of its requests, which is made only once.
        users: external ids of users; None: all users.
        k: maximum number of items for each user.
        exclude_seen: whether to exclude the items of the history.
        filters: filters on the items.

    Returns:
        A frame with the columns user_id, item_id, score and rank (from 1), in the order of `users`.

    """
    builder = data if isinstance(data, RequestBuilder) else RequestBuilder(data)
    dataset = builder.dataset
    requests, numbers = user_requests(builder, users), user_numbers(dataset, users)
    parts, start = [], 0
    for batch in _constrained(model, requests, exclude_seen=exclude_seen, filters=filters):
        lists = model.recommend(batch, k)
        end = start + len(lists.item_ids)
        parts.append(_list_frame(model, lists).with_columns(_decoded(dataset.users.ids, numbers[start:end])))
        start = end
    columns = ["user_id", "item_id", "score", "rank"]
    return pl.concat([part.select(columns) for part in parts]) if parts else pl.DataFrame(schema=columns)


def _decoded(ids: IdMap, numbers: NDArray[np.int64]) -> pl.Expr:
    """Return an expression for the column user_id, from the row number in the column `request`."""
    return pl.lit(ids.decode(numbers)).gather(pl.col("request")).alias("user_id")


def _list_frame(model: Recommender, lists: Recommendations) -> pl.DataFrame:
    """Return lists as a frame with the columns request (row of the lists), item_id, score and rank (from 1)."""
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
    """Order candidates by a model for one request, best first.

    Args:
        model: the model.
        requests: one request.
        candidates: external ids of the items to order; duplicates count once.
        user: value of the column user_id; None: null.

    Returns:
        A frame with the columns user_id, item_id, score and rank (from 1).

    Raises:
        UserError: an unknown candidate, or no candidates.

    """
    ids = pl.Series([str(item).strip() for item in candidates], dtype=pl.String)
    numbers = model.catalog.ids.encode(ids).astype(np.int64)
    unknown = ids.filter(pl.Series(numbers == 0)).to_list()
    if unknown or not len(ids):
        examples = ", ".join(str(item) for item in model.catalog.ids.external.head(3))
        problem = f"no item is called {', '.join(unknown[:5])}" if unknown else "there are none"
        raise UserError(f"candidates: {problem}; item ids look like {examples}")
    distinct = np.unique(numbers)
    allowed = torch.zeros(1, model.num_items + 1, dtype=torch.bool)
    allowed[0, torch.from_numpy(distinct)] = True
    rows = Jagged(torch.from_numpy(distinct), torch.tensor([0, len(distinct)]))
    batch = replace(requests, allowed=allowed, candidates=rows).to(model.popularity.device)
    frame = _list_frame(model, model.recommend(batch, len(distinct)))
    user_ids = pl.Series("user_id", [user] * frame.height, dtype=pl.Null if user is None else None)
    return frame.select(user_ids, "item_id", "score", "rank")


def similar_items(model: Recommender, item: Any, *, k: int) -> pl.DataFrame:
    """Return the k items that are most similar to one item, without the item itself.

    The frame has the columns item_id, score and rank (from 1). Raises UserError for an unknown item, and for a model
    without vectors or similarities of items (`similarity_scores`).
    """
    number = int(model.catalog.ids.encode(pl.Series([str(item).strip()], dtype=pl.String))[0])
    if not number:
        examples = ", ".join(str(external) for external in model.catalog.ids.external.head(3))
        raise UserError(f"no item is called {item}; item ids look like {examples}")
    scores = similarity_scores(model, number)
    batch = SequenceBatch(Jagged.from_rows([[number]]), excluded=Jagged.from_rows([[number]]))
    lists = top_items(scores[None].clone(), batch, min(k, model.num_items))
    return _list_frame(model, lists).select("item_id", "score", "rank")


def similarity_scores(model: Recommender, item: int) -> Tensor:
    """Return the similarity of every item to one item, [N + 1] float32; -inf for dissimilar items.

    It is that of roles.KnowsSimilarItems, or the cosine of the item vectors of a VectorModel. Raises UserError for
    another model.
    """
    if isinstance(model, KnowsSimilarItems):
        return model.similarity_to(item).float().cpu()
    if isinstance(model, VectorModel):
        vectors = torch.nn.functional.normalize(model.item_vectors().detach().float(), dim=1)
        return (vectors @ vectors[item]).cpu()
    raise UserError(
        f"{type(model).__name__} has neither vectors nor similarities of items; use item-cf, swing, sasrec, "
        "two-tower, content-neighbours, ..."
    )


def _constrained(
    model: Recommender, requests: SequenceBatch, *, exclude_seen: bool, filters: Filters
) -> Iterator[SequenceBatch]:
    """Yield the requests in batches, in order, with the filters."""
    allowed = allowed_items(model.catalog, filters)
    for batch in requests.split(BATCH_USERS):
        batch = replace(batch, allowed=allowed, excluded=batch.items if exclude_seen else None)
        yield batch.to(model.popularity.device)


def allowed_items(catalog: Catalog, filters: Filters) -> Tensor | None:
    """Return which items the filters allow, bool [1, N + 1], or None if they allow all.

    Raises UserError for a malformed condition, an unknown column, or conditions that no item satisfies.
    """
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
        mask &= _equals(catalog.table[column], value)
        if not mask.any():
            raise UserError(f"--only {text!r}: no item is left; some values are {_first_values(catalog.table[column])}")
    excluded = catalog.ids.encode(pl.Series([str(item).strip() for item in filters.exclude_items], dtype=pl.String))
    mask[excluded[excluded > 0] - 1] = False
    return torch.from_numpy(np.concatenate([[False], mask]))[None, :]


def unknown_items(catalog: Catalog, item_ids: Sequence[Any]) -> tuple[str, ...]:
    """Return the ids that no item has, as text."""
    ids = pl.Series([str(item).strip() for item in item_ids], dtype=pl.String)
    return tuple(ids.filter(pl.Series(catalog.ids.encode(ids) == 0)).to_list())


def history_frame(history: Any) -> pl.DataFrame | Sequence[Any]:
    """Return a history as a list of ids, or as a polars frame if it is a table.

    Tables are polars, pandas and Arrow tables and dicts of columns. Raises UserError if one has no column item_id.
    """
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


def _equals(column: pl.Series, value: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return whether each value, as text, equals `value`, bool [N]; of a list, whether one of its elements does."""
    if column.dtype.is_nested():
        is_equal = column.list.eval(pl.element().cast(pl.String) == value).list.any()
    else:
        is_equal = column.cast(pl.String) == value
    return is_equal.fill_null(False).to_numpy()


def _first_values(column: pl.Series) -> str:
    """Return the first five distinct values of a column, as text for a message."""
    values = column.explode() if column.dtype.is_nested() else column
    return ", ".join(str(value) for value in values.drop_nulls().unique(maintain_order=True).head(5))
