"""CatalogueView: what a page shows of a model's catalogue: search, columns to filter by, and the tree of semantic IDs.

Shapes: N items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel

from nextitem.core.catalog import Catalog
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.decoding.trie import PrefixTrie

MAX_WORDS = 8  # of a search
MAX_TEXT = 300  # characters of a value
MAX_MEMBERS = 20  # of a list in a column
MAX_VALUES = 200  # of a column, to choose from
MAX_DISTINCT = 2_000  # values of a column that is worth filtering by
NUM_TITLES = 3  # examples of a prefix

Numbers = NDArray[np.int64]


class CatalogueItem(BaseModel):
    """An item with its columns."""

    item_id: str | int
    title: str
    columns: dict[str, str | bool | int | float | list[str] | None]
    """Other columns of the items table; long texts and lists are cut."""
    codes: list[int] | None = None
    """Semantic ID; none if the model has none."""


class ColumnValues(BaseModel):
    """A column of the items table by which lists can be filtered."""

    name: str
    values: list[str]
    """Its most frequent values as text, the most frequent first."""
    num_values: int
    """Number of all its values."""


class Child(BaseModel):
    """One continuation of a semantic-ID prefix."""

    codes: list[int]
    num_items: int
    titles: list[str]
    """Titles of the most popular items below it."""


class Prefix(BaseModel):
    """A semantic-ID prefix, with its continuations or, if it is a whole semantic ID, its items."""

    model: str
    codes: list[int]
    num_levels: int
    """Number of codes of a whole semantic ID."""
    num_items: int
    """Number of items below the prefix."""
    children: list[Child]
    """Continuations, in the order of their codes."""
    items: list[CatalogueItem]
    """Items with this semantic ID, if it is whole."""


class CatalogueView:
    """The catalogue of one model, as a page shows it. Indexes are built at the first use."""

    def __init__(self, model: Recommender) -> None:
        self.model, self.catalog = model, model.catalog
        self.titles = model.catalog.titles()
        self._popularity: NDArray[np.float32] = model.popularity.cpu().float().numpy()

    @cached_property
    def _by_popularity(self) -> Numbers:
        """All item numbers, the most popular first."""
        return np.argsort(-self._popularity[1:], kind="stable") + 1

    @cached_property
    def _search_text(self) -> pl.Series:
        """Title and id of every item in small letters, the most popular item first."""
        ids = self.catalog.ids.external.cast(pl.String)
        return (self.titles + " " + ids).str.to_lowercase()[self._by_popularity - 1]

    @cached_property
    def _trie(self) -> PrefixTrie:
        """The tree of semantic IDs. Raises UserError if the model has none."""
        if self.catalog.identifiers is None:
            raise UserError("the items of this model have no semantic IDs; choose a generator, such as tiger")
        return PrefixTrie.from_table(self.catalog.identifiers)

    def search(self, text: str, limit: int) -> tuple[list[CatalogueItem], int]:
        """Return the most popular items whose title or id contains every word, and the number of all such items."""
        is_match = pl.Series([True]).new_from_index(0, len(self._search_text))
        for word in text.lower().split()[:MAX_WORDS]:
            is_match &= self._search_text.str.contains(word, literal=True)
        places = np.flatnonzero(is_match.to_numpy())
        return self.items(self._by_popularity[places[:limit]]), len(places)

    def lookup(self, item_ids: Sequence[str]) -> list[CatalogueItem]:
        """Return the items with these ids; unknown ids are skipped."""
        numbers = self.catalog.ids.lookup([item.strip() for item in item_ids]).astype(np.int64)
        return self.items(numbers[numbers > 0])

    def items(self, numbers: Numbers) -> list[CatalogueItem]:
        """Return items by their numbers, in this order."""
        if not len(numbers):
            return []
        rows = self.catalog.table[numbers - 1].to_dicts()
        table = self.catalog.identifiers
        codes = [None] * len(numbers) if table is None else table.codes[numbers].tolist()
        ids, titles = self.catalog.ids.decode(numbers).to_list(), self.titles[numbers - 1].to_list()
        return [
            CatalogueItem(
                item_id=item,
                title=title[:MAX_TEXT],
                columns={name: _printable(value) for name, value in row.items() if name not in ("item_id", "title")},
                codes=item_codes,
            )
            for item, title, row, item_codes in zip(ids, titles, rows, codes, strict=True)
        ]

    @cached_property
    def columns(self) -> list[ColumnValues]:
        """The columns that lists can be filtered by: texts, truth values and whole numbers with few distinct values."""
        columns = []
        for name in self.catalog.table.columns:
            if name not in ("item_id", "title"):
                counts = _value_counts(self.catalog, name)
                if counts is not None and 1 < len(counts) <= MAX_DISTINCT:
                    columns.append(ColumnValues(name=name, values=counts[:MAX_VALUES], num_values=len(counts)))
        return columns

    def prefix(self, model: str, codes: Sequence[int]) -> Prefix:
        """Return a prefix of semantic IDs with what follows it; `model` is the model's name.

        Raises:
            UserError: the model has no semantic IDs, or no item has this prefix.

        """
        trie, node = self._trie, PrefixTrie.root
        num_levels = len(trie.codebook_sizes)
        for level, code in enumerate(codes):
            children = _children(trie, node) if level < num_levels else range(0)
            node = next((child for child in children if int(trie.codes[child]) == code), -1)
            if node < 0:
                raise UserError(f"codes: no semantic ID begins with {', '.join(map(str, codes[: level + 1]))}")
        is_whole = len(codes) == num_levels
        children = range(0) if is_whole else _children(trie, node)
        below = self._items_below(node)
        return Prefix(
            model=model,
            codes=list(codes),
            num_levels=num_levels,
            num_items=len(below),
            children=[self._child([*codes, int(trie.codes[child])], child) for child in children],
            items=self.items(self._most_popular(below, MAX_VALUES)) if is_whole else [],
        )

    def _child(self, codes: list[int], node: int) -> Child:
        below = self._items_below(node)
        titles = self.titles[self._most_popular(below, NUM_TITLES) - 1].to_list()
        return Child(codes=codes, num_items=len(below), titles=[title[:MAX_TEXT] for title in titles])

    def _items_below(self, node: int) -> Numbers:
        start, end = self._trie.item_starts[node : node + 2].tolist()
        numbers: Numbers = self._trie.items[start:end].numpy().astype(np.int64)
        return numbers

    def _most_popular(self, numbers: Numbers, count: int) -> Numbers:
        """Return the most popular of some items, the best first; of equally popular ones, the first."""
        order = np.argsort(-self._popularity[numbers], kind="stable")
        return numbers[order[:count]]


def _children(trie: PrefixTrie, node: int) -> range:
    """Return the child nodes of an inner node."""
    start, end = trie.first_child[node : node + 2].tolist()
    return range(start, end)


def _value_counts(catalog: Catalog, name: str) -> list[str] | None:
    """Return the distinct values of a column as text, the most frequent first; None for numbers, texts, vectors."""
    column = catalog.table[name]
    if column.dtype == pl.List(pl.String):
        column = column.explode()
    is_text = column.dtype == pl.String or isinstance(column.dtype, pl.Categorical | pl.Enum)
    if not (is_text or column.dtype == pl.Boolean or column.dtype.is_integer()):
        return None
    texts = column.drop_nulls().cast(pl.String)
    if texts.n_unique() > MAX_DISTINCT:
        return None
    counts = texts.alias("value").value_counts().sort(["count", "value"], descending=[True, False])
    return counts["value"].to_list()


def _printable(value: Any) -> str | bool | int | float | list[str] | None:
    """Return a value of a table as JSON has it; a vector becomes nothing."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        if value and isinstance(value[0], float):
            return None
        return [str(member)[:MAX_TEXT] for member in value[:MAX_MEMBERS]]
    text = str(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
