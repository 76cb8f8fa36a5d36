"""Fingerprint of a data set: a hash of everything in it that affects training or evaluation.

It covers the settings (repeats, label and context columns, declared features), all ids, and every column of the log
and of the impressions that a data set contains (marks of a split, sessions, actions, labels, context, ...). Of users
and items it covers what a model can read: declared features, content sentences, vectors, release times, categories. It
does not cover names, notes, and columns of users and items that no model reads.

Equal data have equal fingerprints in every file format: values are hashed, not their representation.

* Whole numbers are hashed exactly, independently of their type. Other numbers are hashed in single precision, in which
  models read them.
* Categories are hashed by their text, dates in milliseconds.
* Events are hashed in the order of the log. So the order of rows in a file matters only if it decides the order of
  events. Sessions of a dated log are numbered in that order too. Those of an undated log keep their order in the file,
  which decides the protocol `session`. Impressions keep the order of the file.
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

FORMAT = "nextitem-data-2"  # version of the format: change it with any change below that changes fingerprints
ROWS_AT_ONCE = 1_048_576  # number of rows converted at a time, a multiple of 8 (missing values are packed into bits)
TEXTS_AT_ONCE = 65_536  # number of texts or lists that are hashed together: part of the format
LARGEST_WHOLE = 2.0**62  # whole numbers below it are hashed exactly
LIST_KINDS = ("categorical-list", "history")


def dataset_fingerprint(dataset: Dataset) -> str:
    """Return the fingerprint: 16 hexadecimal digits, equal on every machine and for every file format of the data."""
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
    """Add the ids of items, and the columns that models read."""
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
        if column.name in catalog.features or column.name == "category" or _is_vector_type(column.dtype)
    }


def _with_texts(column: pl.Series) -> pl.Series:
    """Return the column with texts instead of categories, since tables of items and users may use either."""
    return column.cast(pl.String) if isinstance(column.dtype, pl.Enum | pl.Categorical) else column


def _is_vector_type(kind: pl.DataType) -> bool:
    """Tell whether a column of this type contains lists of numbers."""
    return isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric()


def _add_users(digest: _Digest, users: Users) -> None:
    """Add the ids and the declared features of users."""
    digest.settings("users", ids=ids_fingerprint(users.ids.external), features=list(users.features.items()))
    for name, kind in users.features.items():
        digest.column(f"users.{name}", _with_texts(users.table[name]), kind)


def _add_events(digest: _Digest, log: Interactions, context: Mapping[str, str]) -> None:
    """Add all events and their columns; `context` maps a context column to its feature type."""
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
    """Return the session numbers of the events [T], from 0.

    Dated sessions are numbered by their first event, others by the order of their ids.
    """
    if not len(ids):
        return np.zeros(0, np.int32)
    if not is_dated:
        numbers = (np.cumsum(np.bincount(ids) > 0) - 1).astype(np.int32)
    else:
        # Runs of equal ids: far fewer than events.
        run_ids = ids[np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))]
        first_run = np.empty(int(ids.max()) + 1, np.int64)
        # NumPy keeps the last value assigned to an index. In reversed order that is the first run of the id.
        first_run[run_ids[::-1]] = np.arange(len(run_ids))[::-1]
        distinct_ids = run_ids[first_run[run_ids] == np.arange(len(run_ids))]
        numbers = np.empty(len(first_run), np.int32)
        numbers[distinct_ids] = np.arange(len(distinct_ids))
    sessions: NDArray[np.int32] = numbers[ids]
    return sessions


def _add_impressions(digest: _Digest, impressions: Impressions) -> None:
    """Add all impressions and their columns."""
    digest.settings("impressions", labels=impressions.labels, context=list(impressions.context.items()))
    digest.array("impressions: request_ids", impressions.request_ids)
    digest.array("impressions: item_ids", impressions.item_ids)
    digest.array("impressions: user_ids", impressions.user_ids)
    digest.array("impressions: timestamps", impressions.timestamps)
    for column in _by_name(impressions.columns):
        digest.column(f"impressions.{column.name}", column, impressions.context.get(column.name))


def _by_name(frame: pl.DataFrame) -> Iterator[pl.Series]:
    """Yield the columns of a frame in the order of their names."""
    for name in sorted(frame.columns):
        yield frame[name]


class _Digest:
    """Hash of named values. Each follows its name and size, so that different sequences have different hashes."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def hexdigest(self) -> str:
        """Return the first 16 hexadecimal digits of the hash."""
        return self._hash.hexdigest()[:16]

    def settings(self, name: str, **values: Any) -> None:
        """Add a name and values that JSON can represent."""
        self._hash.update(json.dumps([name, values], sort_keys=True).encode())

    def array(self, name: str, values: NDArray[Any] | None) -> None:
        """Add an array of numbers, whose type is always the same; None is an absent array."""
        self.settings(name, size=None if values is None else len(values))
        for start in range(0, 0 if values is None else len(values), ROWS_AT_ONCE):
            assert values is not None
            part = values[start : start + ROWS_AT_ONCE]
            self._hash.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).data)

    def column(self, name: str, column: pl.Series, kind: str | None) -> None:
        """Add a column by its feature type `kind`; if that is None, by the type in which the column is stored."""
        stored = column.dtype
        if isinstance(stored, pl.List | pl.Array):
            inner = "numeric" if kind not in LIST_KINDS and _is_vector_type(stored) else "text"
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
        """Add strings; line endings of Windows count as those of Unix, since programs that copy a file change them."""
        self.settings(name, texts=len(column))
        for part in _parts(column, TEXTS_AT_ONCE):
            part = part.str.replace_all("\r\n", "\n", literal=True)
            self._hash.update(part.str.len_bytes().cast(pl.Int64).fill_null(-1).to_numpy().data)
            self._hash.update(part.fill_null("").str.join("")[0].encode())

    def _numbers(self, name: str, column: pl.Series) -> None:
        """Add a column of numbers: as Int64 if all are whole, otherwise in single precision."""
        if column.dtype.is_float():
            column = column.fill_nan(None)
        kind = pl.Int64() if _is_whole(column) else pl.Float32()
        self.settings(name, numbers=len(column), missing=column.null_count(), type=str(kind))
        for part in _parts(column, ROWS_AT_ONCE):
            if column.null_count():
                self._hash.update(np.packbits(part.is_null().to_numpy()).data)
            self._hash.update(np.ascontiguousarray(part.cast(kind).fill_null(0).to_numpy()).data)

    def _categories(self, name: str, column: pl.Series, texts: pl.Series) -> None:
        """Add an Enum column: the texts that occur, in ascending order, and the rank of each row's text (0: none)."""
        occurring = column.to_physical().unique().drop_nulls().cast(pl.Int64).sort().to_numpy()
        self.texts(name, texts.gather(occurring).sort())
        self.settings(name, rows=len(column))
        ranks = np.zeros(len(texts) + 1, np.int32)  # rank of each physical code, at the index code + 1
        ranks[occurring + 1] = texts.gather(occurring).rank("ordinal").to_numpy()
        for part in _parts(column, ROWS_AT_ONCE):
            self._hash.update(ranks[part.to_physical().cast(pl.Int64).fill_null(-1).to_numpy() + 1].data)

    def _lists(self, name: str, column: pl.Series, inner: str) -> None:
        """Add a column of lists: their lengths and members, as texts if `inner` is "text", otherwise as numbers."""
        self.settings(name, lists=len(column))
        for part in _parts(column, TEXTS_AT_ONCE):
            self.array(name, part.list.len().cast(pl.Int32).fill_null(-1).to_numpy())
            members = part.filter(part.list.len() > 0).explode()
            self.texts(name, members.cast(pl.String)) if inner == "text" else self._numbers(name, members)


def _parts(column: pl.Series, rows: int) -> Iterator[pl.Series]:
    """Yield the parts of a column of `rows` rows each; the last one may be shorter."""
    for start in range(0, len(column), rows):
        yield column.slice(start, rows)


def _is_whole(column: pl.Series) -> bool:
    """Tell whether all values are whole numbers that Int64 can represent."""
    if not column.dtype.is_float() and not column.dtype.is_decimal():
        return column.dtype not in (pl.UInt64, pl.Int128, pl.UInt128) or float(column.max() or 0) < LARGEST_WHOLE  # type: ignore[arg-type]
    for part in _parts(column, ROWS_AT_ONCE):
        numbers = part.cast(pl.Float64)
        if not bool(((numbers.floor() == numbers) & (numbers.abs() < LARGEST_WHOLE)).all()):
            return False
    return True
