"""Fingerprint: a hash of everything in a data set that decides what is learned or what is judged.

It covers the settings (repeats, label and context columns, declared features), all ids, and every column of the log
and of the impressions that a data set carries (marks of a split, sessions, actions, labels, context, ...). Of users and
items it covers what a model can read: declared features, content sentences, vectors, release times, categories. It
does not cover names, notes, and columns of users and items that no model reads.

Equal data have equal fingerprints, however they are stored: hashed are values, not their representation.

* Numbers: whole ones exactly, whatever their type; others in single precision, in which models read them.
* Categories by their text, dates in milliseconds.
* Events in the order of the log, so that the order of rows in a file matters only where it decides the order of events.
  Sessions of a dated log are numbered in that order too; those of an undated log keep their order in the file, which
  decides the protocol `session`. Impressions keep the order of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.catalog import Catalog, ids_fingerprint
from nextitem.core.dataset import Dataset, Impressions, Users
from nextitem.core.interactions import Interactions

FORMAT = "nextitem-data-2"  # changes with everything below that changes fingerprints
ROWS_AT_ONCE = 1_048_576  # rows that are converted at a time, a multiple of 8 (missing values are packed into bits)
TEXTS_AT_ONCE = 65_536  # texts or lists that are hashed together: part of the format
LARGEST_WHOLE = 2.0**62  # whole numbers below it are hashed exactly
LIST_KINDS = ("categorical-list", "history")


def dataset_fingerprint(dataset: Dataset) -> str:
    """Return 16 hexadecimal digits, equal on every machine and for every file format of the same data."""
    digest = _Digest()
    digest.settings(FORMAT, repeats=dataset.repeats, anonymous=dataset.anonymous)
    _add_items(digest, dataset.catalog)
    _add_users(digest, dataset.users)
    digest.settings("interactions", labels=dataset.labels, context=list(dataset.context.items()))
    _add_events(digest, dataset.interactions, dataset.context)
    if dataset.impressions is not None:
        _add_impressions(digest, dataset.impressions)
    return digest.hexdigest()


def _add_items(digest: _Digest, catalog: Catalog) -> None:
    digest.settings("items", ids=ids_fingerprint(catalog.ids.external), features=list(catalog.features.items()))
    for name, column in sorted(_readable_columns(catalog).items()):
        digest.column(f"items.{name}", _with_texts(column), catalog.features.get(name))
    if catalog.text is not None:
        digest.texts("items: text", catalog.text)
    digest.array("items: released", catalog.released_ms)


def _readable_columns(catalog: Catalog) -> dict[str, pl.Series]:
    """Return the columns that models and tokenizers read: declared features, `category`, and lists of numbers."""
    return {
        column.name: column
        for column in catalog.table
        if column.name in catalog.features or column.name == "category" or _holds_vectors(column.dtype)
    }


def _with_texts(column: pl.Series) -> pl.Series:
    """Return the column with texts instead of categories: owners store tables of items and users either way."""
    return column.cast(pl.String) if isinstance(column.dtype, pl.Enum | pl.Categorical) else column


def _holds_vectors(kind: pl.DataType) -> bool:
    return isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric()


def _add_users(digest: _Digest, users: Users) -> None:
    digest.settings("users", ids=ids_fingerprint(users.ids.external), features=list(users.features.items()))
    for name, kind in users.features.items():
        digest.column(f"users.{name}", _with_texts(users.table[name]), kind)


def _add_events(digest: _Digest, log: Interactions, context: Mapping[str, str]) -> None:
    digest.array("user_ids", log.user_ids)
    digest.array("item_ids", log.item_ids)
    digest.array("timestamps", log.timestamps)
    digest.array("is_target", np.packbits(log.is_target()))
    for column in _by_name(log.columns):
        if column.name == "session_id":
            digest.array("session_id", _session_numbers(column.to_numpy(), is_dated=log.timestamps is not None))
        else:
            digest.column(column.name, column, context.get(column.name))


def _session_numbers(ids: NDArray[np.integer], *, is_dated: bool) -> NDArray[np.int32]:
    """Number the sessions of the events [T] from 0: dated ones by first event, others by the order of their ids."""
    if not len(ids):
        return np.zeros(0, np.int32)
    if not is_dated:
        numbers = (np.cumsum(np.bincount(ids) > 0) - 1).astype(np.int32)
    else:
        runs = ids[np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))]  # far fewer than events
        first = np.empty(int(ids.max()) + 1, np.int64)
        first[runs[::-1]] = np.arange(len(runs))[::-1]  # of equal ids the last assignment stays: the first run
        new = runs[first[runs] == np.arange(len(runs))]
        numbers = np.empty(len(first), np.int32)
        numbers[new] = np.arange(len(new))
    sessions: NDArray[np.int32] = numbers[ids]
    return sessions


def _add_impressions(digest: _Digest, shown: Impressions) -> None:
    digest.settings("impressions", labels=shown.labels, context=list(shown.context.items()))
    digest.array("impressions: request_ids", shown.request_ids)
    digest.array("impressions: item_ids", shown.item_ids)
    digest.array("impressions: user_ids", shown.user_ids)
    digest.array("impressions: timestamps", shown.timestamps)
    for column in _by_name(shown.columns):
        digest.column(f"impressions.{column.name}", column, shown.context.get(column.name))


def _by_name(frame: pl.DataFrame) -> Iterator[pl.Series]:
    for name in sorted(frame.columns):
        yield frame[name]


class _Digest:
    """A hash of named values: each is preceded by its name and size, so that no two sequences of values are alike."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def hexdigest(self) -> str:
        """Return the first 16 digits."""
        return self._hash.hexdigest()[:16]

    def settings(self, name: str, **values: Any) -> None:
        """Add JSON values."""
        self._hash.update(json.dumps([name, values], sort_keys=True).encode())

    def array(self, name: str, values: NDArray[Any] | None) -> None:
        """Add an array of numbers of a fixed type."""
        self.settings(name, size=None if values is None else len(values))
        for start in range(0, 0 if values is None else len(values), ROWS_AT_ONCE):
            assert values is not None
            part = values[start : start + ROWS_AT_ONCE]
            self._hash.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).data)

    def column(self, name: str, column: pl.Series, kind: str | None) -> None:
        """Add a column by its feature type `kind`; without one, by the type in which it is stored."""
        stored = column.dtype
        if isinstance(stored, pl.List | pl.Array):
            inner = "numeric" if kind not in LIST_KINDS and _holds_vectors(stored) else "text"
            self._lists(name, column.arr.to_list() if isinstance(stored, pl.Array) else column, inner)
        elif stored.is_temporal():
            self._numbers(name, column.cast(pl.Datetime("ms")).to_physical())
        elif isinstance(stored, pl.Enum):
            self._categories(name, column, stored.categories)
        elif kind in ("categorical", "text") or not (stored.is_numeric() or stored in (pl.Boolean, pl.Null)):
            self.texts(name, column.cast(pl.String))
        else:
            self._numbers(name, column)

    def texts(self, name: str, column: pl.Series) -> None:
        """Add strings; line ends of Windows count as others, since programs that copy a file change them."""
        self.settings(name, texts=len(column))
        for part in _parts(column, TEXTS_AT_ONCE):
            part = part.str.replace_all("\r\n", "\n", literal=True)
            self._hash.update(part.str.len_bytes().cast(pl.Int64).fill_null(-1).to_numpy().data)
            self._hash.update(part.fill_null("").str.join("")[0].encode())

    def _numbers(self, name: str, column: pl.Series) -> None:
        if column.dtype.is_float():
            column = column.fill_nan(None)
        kind = pl.Int64() if _is_whole(column) else pl.Float32()
        self.settings(name, numbers=len(column), missing=column.null_count(), type=str(kind))
        for part in _parts(column, ROWS_AT_ONCE):
            if column.null_count():
                self._hash.update(np.packbits(part.is_null().to_numpy()).data)
            self._hash.update(np.ascontiguousarray(part.cast(kind).fill_null(0).to_numpy()).data)

    def _categories(self, name: str, column: pl.Series, texts: pl.Series) -> None:
        """Add an Enum column: the texts that occur, in ascending order, and for each row which one it is (0: none)."""
        occurring = column.to_physical().unique().drop_nulls().cast(pl.Int64).sort().to_numpy()
        self.texts(name, texts.gather(occurring).sort())
        self.settings(name, rows=len(column))
        ranks = np.zeros(len(texts) + 1, np.int32)  # by physical code + 1
        ranks[occurring + 1] = texts.gather(occurring).rank("ordinal").to_numpy()
        for part in _parts(column, ROWS_AT_ONCE):
            self._hash.update(ranks[part.to_physical().cast(pl.Int64).fill_null(-1).to_numpy() + 1].data)

    def _lists(self, name: str, column: pl.Series, inner: str) -> None:
        self.settings(name, lists=len(column))
        for part in _parts(column, TEXTS_AT_ONCE):
            self.array(name, part.list.len().cast(pl.Int32).fill_null(-1).to_numpy())
            members = part.filter(part.list.len() > 0).explode()
            self.texts(name, members.cast(pl.String)) if inner == "text" else self._numbers(name, members)


def _parts(column: pl.Series, rows: int) -> Iterator[pl.Series]:
    for start in range(0, len(column), rows):
        yield column.slice(start, rows)


def _is_whole(column: pl.Series) -> bool:
    """Tell whether all values are whole numbers that an Int64 can hold."""
    if not column.dtype.is_float() and not column.dtype.is_decimal():
        return column.dtype not in (pl.UInt64, pl.Int128, pl.UInt128) or float(column.max() or 0) < LARGEST_WHOLE  # type: ignore[arg-type]
    for part in _parts(column, ROWS_AT_ONCE):
        numbers = part.cast(pl.Float64)
        if not bool(((numbers.floor() == numbers) & (numbers.abs() < LARGEST_WHOLE)).all()):
            return False
    return True
