"""Inputs of re-rankers: a small catalogue with brands, tags and release times, candidates and requests."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import torch

from nextitem.cascade.reranker import Reranker
from nextitem.core.batch import SequenceBatch
from nextitem.core.catalog import Catalog
from nextitem.core.config import parse
from nextitem.core.ids import IdMap
from nextitem.core.jagged import Jagged
from nextitem.core.recommendations import OrderedBy, Recommendations
from nextitem.core.registry import RERANKERS

DAY_MS = 86_400_000
NOW = 100 * DAY_MS


def shelf(
    brands: Sequence[str | None],
    *,
    tags: Sequence[Sequence[str] | None] | None = None,
    ages: Sequence[float] | None = None,
    content: torch.Tensor | None = None,
) -> Catalog:
    """Return a catalogue of items i1, i2, ... of these brands; `ages` in days before NOW; content [N, D]."""
    count = len(brands)
    ids = pl.Series("item_id", [f"i{n}" for n in range(1, count + 1)])
    columns = {"item_id": ids, "brand": pl.Series(brands, dtype=pl.String)}
    columns["tags"] = pl.Series(list(tags) if tags is not None else [None] * count, dtype=pl.List(pl.String))
    columns["price"] = pl.Series([1.0] * count)
    released = None
    if ages is not None:
        released = torch.tensor([NOW - int(age * DAY_MS) for age in ages], dtype=torch.int64).numpy()
    kinds = {"brand": "categorical", "tags": "categorical-list", "price": "numeric"}
    catalog = Catalog(IdMap(ids), pl.DataFrame(columns), features=kinds, released_ms=released)
    if content is None:
        return catalog
    return catalog.with_content(torch.cat([torch.zeros(1, content.shape[1]), content]))


def candidates(
    rows: Sequence[Sequence[int]], *, scores: Sequence[Sequence[float]] | None = None, channels: bool = False
) -> Recommendations:
    """Return candidates, best first; without `scores` these are n, n - 1, ... 1.

    With `channels` the channel of an item is its number modulo 3.
    """
    width = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64).reshape(len(rows), width)
    if scores is None:
        scores = [[float(len(row) - place) for place in range(len(row))] for row in rows]
    values = torch.tensor([[*row, *[-torch.inf] * (width - len(row))] for row in scores]).reshape(len(rows), width)
    channel_names = ("first", "second", "third") if channels else ()
    is_descending = all(list(row) == sorted(row, reverse=True) for row in scores)
    order: OrderedBy = "score" if is_descending else "generation"
    return Recommendations(ids, values, order, channel=ids % 3 if channels else None, channels=channel_names)


def requests(histories: Sequence[Sequence[int]], *, timed: bool = True) -> SequenceBatch:
    """Return a request for each history, at NOW or without a time."""
    times = torch.full((len(histories),), NOW) if timed else None
    return SequenceBatch(Jagged.from_rows(histories), request_times=times)


def build(name: str, catalog: Catalog, **settings: object) -> Reranker:
    """Return the registered re-ranker of that name."""
    kind = RERANKERS[name].load()
    built: Reranker = kind(parse(kind.Config, settings, where=name), catalog)
    return built


def lists(answer: Recommendations) -> list[list[int]]:
    """Return the item numbers of each list, without padding."""
    return [[item for item in row if item] for row in answer.item_ids.tolist()]
