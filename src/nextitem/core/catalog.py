"""Catalog: the items that can be recommended, with their features."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap

if TYPE_CHECKING:  # a data set is read and described without torch, which takes seconds to import
    from torch import Tensor

    from nextitem.core.identifiers import IdentifierTable

ACTION = "action"  # name of the event column that contains the action of the user (view, buy, ...)
FEATURE_TYPES = ("categorical", "categorical-list", "numeric", "text", "history", "timestamp")


@dataclass(frozen=True, eq=False)
class ColumnEncoding:
    """Encoding of one column of requests or events as codes: a user feature, context, or the action of an event.

    Attributes:
        kind: categorical, categorical-list, numeric or timestamp.
        values: categorical column or list: the distinct values as text, in ascending order. Value i has code i + 1;
            code 0 means a missing or unknown value. None if values are hashed.
        buckets: number of hash buckets if `values` is None; the code of a value is then 1 + its CRC-32 modulo
            `buckets`.

    """

    kind: str
    values: pl.Series | None = None
    buckets: int = 0

    @property
    def num_codes(self) -> int:
        """Number of codes of a categorical column or list, including code 0."""
        return 1 + (self.buckets if self.values is None else len(self.values))

    def encode(self, column: pl.Series) -> pl.Series:
        """Return the encoded column: codes, numbers or times, by `kind`.

        Codes are Int64 (0: missing or unknown), for a list column lists of them. Numbers are Float32, times Float64
        milliseconds. A missing number, time or list is null.
        """
        if self.kind == "numeric":
            return column.cast(pl.Float32, strict=False)
        if self.kind == "timestamp":
            return column.cast(pl.Datetime("ms")).to_physical().cast(pl.Float64)  # exact beyond any date of a log
        if self.kind == "categorical":
            if isinstance(column.dtype, pl.Enum):  # a long log: encode each category once, not each row
                by_category = self._codes(column.dtype.categories.cast(pl.String))
                return by_category.gather(column.to_physical()).fill_null(0)
            return self._codes(column.cast(pl.String)).fill_null(0)
        rows = pl.DataFrame({"row": pl.int_range(len(column), eager=True), "value": column.cast(pl.List(pl.String))})
        members = rows.explode("value")
        codes = members.select("row", self._codes(members["value"]).alias("code")).drop_nulls("code")
        lists = rows.select("row").join(codes.group_by("row", maintain_order=True).agg("code"), on="row", how="left")
        return lists.sort("row")["code"]

    def encode_few(self, values: Sequence[Any]) -> NDArray[Any]:
        """Return the codes, numbers or times of a few values, without a frame: [n] int64, float32 or float64.

        These are those of `encode`; a missing number or time is NaN. Lists have to be encoded by `encode`.

        Args:
            values: texts, numbers, or milliseconds since 1970, by `kind`; None: missing.

        """
        if self.kind == "categorical":
            if self.values is not None:
                codes = self._code_of
                return np.array([codes.get(value, 0) for value in values], dtype=np.int64)
            hashed = [0 if value is None else crc32(value.encode()) % self.buckets + 1 for value in values]
            return np.array(hashed, dtype=np.int64)
        numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        with np.errstate(over="ignore"):
            return numbers.astype(np.float32) if self.kind == "numeric" else numbers

    @cached_property
    def _code_of(self) -> dict[str | None, int]:
        """The code of each value of a categorical column."""
        assert self.values is not None
        return {value: code for code, value in enumerate(self.values.to_list(), start=1)}

    def _codes(self, text: pl.Series) -> pl.Series:
        """Return codes from 1 on; null if a value is missing or unknown."""
        if self.values is not None:
            return text.cast(pl.Enum(self.values), strict=False).to_physical().cast(pl.Int64) + 1
        distinct = text.drop_nulls().unique()
        hashed = [crc32(value.encode()) % self.buckets + 1 for value in distinct]
        return text.replace_strict(distinct, pl.Series(hashed, dtype=pl.Int64), default=None, return_dtype=pl.Int64)


@dataclass(frozen=True, eq=False, repr=False)
class Catalog:
    """Items 1..N with their columns; row 0 of every tensor is padding.

    Attributes:
        ids: map between external item ids and internal numbers.
        table: columns of the items as the owner of the data supplied them, N rows in internal order, with item_id.
        features: feature schema: column -> one of FEATURE_TYPES.
        text: content sentence of each item, N strings, or None if there is no text.
        content: content vectors [N + 1, D] float32 that tokenizers and towers read, or None.
        released_ms: [N] int64, release time of each item, milliseconds since 1970 (negative before; 0: unknown), or
            None.
        identifiers: semantic IDs, if the model needs them.
        requests: columns of the requests: name -> encoding; user features are called user.<column>.
        events: columns of the events of a history: name -> encoding; "action", context and label columns.
        labels: names of the labels of impressions, the first one first.

    """

    ids: IdMap
    table: pl.DataFrame
    features: dict[str, str] = field(default_factory=dict)
    text: pl.Series | None = None
    content: Tensor | None = None
    released_ms: NDArray[np.int64] | None = None
    identifiers: IdentifierTable | None = None
    requests: dict[str, ColumnEncoding] = field(default_factory=dict)
    events: dict[str, ColumnEncoding] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.ids)
        if self.table.height != count:
            raise ValueError(f"{count} item ids but {self.table.height} rows in the items table")
        if self.text is not None and len(self.text) != count:
            raise ValueError(f"{count} items but {len(self.text)} content sentences")
        if self.content is not None and self.content.shape[0] != count + 1:
            raise ValueError(f"content must be [{count + 1}, D], got {tuple(self.content.shape)}")
        if self.identifiers is not None and self.identifiers.num_items != count:
            raise ValueError(f"{count} items but identifiers for {self.identifiers.num_items}")
        for column, kind in self.features.items():
            if kind not in FEATURE_TYPES:
                raise ValueError(f"feature {column!r} has type {kind!r}; choose one of {', '.join(FEATURE_TYPES)}")
            if column not in self.table.columns:
                raise ValueError(f"feature {column!r} is not a column of the items table: {self.table.columns}")

    def __repr__(self) -> str:
        parts = [f"{self.num_items:,} items", f"columns {', '.join(self.table.columns)}"]
        parts += [] if self.content is None else [f"content vectors of width {self.content.shape[1]}"]
        parts += [] if self.identifiers is None else [f"semantic IDs of {self.identifiers.num_levels} levels"]
        return f"Catalog({'; '.join(parts)})"

    @property
    def num_items(self) -> int:
        """Number of items (N)."""
        return len(self.ids)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the item ids in order. Identifier tables and bundles store it to recognise their catalogue."""
        return ids_fingerprint(self.ids.external)

    def titles(self) -> pl.Series:
        """Return a name of each item to print: its title, else its content sentence, else its id."""
        id_texts = self.ids.external.cast(pl.String)
        if "title" in self.table.columns:
            return self.table["title"].cast(pl.String).zip_with(self.table["title"].is_not_null(), id_texts)
        return self.text.zip_with(self.text.str.len_chars() > 0, id_texts) if self.text is not None else id_texts

    def with_content(self, content: Tensor) -> Catalog:
        """Return the catalogue with other content vectors `content [N + 1, D]`; row 0 is set to 0."""
        content = content.float()
        content[0] = 0
        return replace(self, content=content)

    def with_identifiers(self, identifiers: IdentifierTable) -> Catalog:
        """Return the catalogue with semantic IDs; ValueError if they belong to other items."""
        if identifiers.catalog_fingerprint != self.fingerprint:
            raise ValueError("these identifiers belong to another catalogue; run nextitem tokenize on this one")
        return replace(self, identifiers=identifiers)

    def extend(self, table: pl.DataFrame, *, text: pl.Series | None = None, content: Tensor | None = None) -> Catalog:
        """Return the catalogue with the rows of `table` appended as new items; existing items keep their numbers.

        Identifiers are dropped: append them with the tokenizer that generated them. The number type of a column may
        become wider, and integers may become text, as in a CSV file whose new rows contain other values.

        Args:
            table: columns of the new items, with item_id.
            text: content sentences of the new items; required if this catalogue has text, and only then.
            content: content vectors [new, D] of the new items; required if this catalogue has them, and only then.

        Raises:
            ValueError: an item of `table` is in the catalogue already.
            UserError: `text` or `content` is missing or superfluous, or a column has values of another kind.

        """
        import torch

        ids = self.ids.extend(table["item_id"])
        num_new = len(ids) - len(self.ids)
        if num_new != table.height:
            raise ValueError(f"{table.height - num_new} of the new items are there already; pass only new items")
        if (text is None) != (self.text is None) or (content is None) != (self.content is None):
            raise UserError(
                "new items need text or content vectors if the catalogue has them, and must not have them otherwise"
            )
        table = table.with_columns(pl.col("item_id").cast(self.ids.external.dtype))
        old_table = self.table
        for column in table.columns:
            old_type, new_type = old_table.schema.get(column), table.schema[column]
            is_mixed = (
                old_type is not None
                and pl.String in (old_type, new_type)
                and (old_type.is_integer() or new_type.is_integer())
            )
            if is_mixed and self.features.get(column) != "numeric":
                old_table = old_table.with_columns(pl.col(column).cast(pl.String))
                table = table.with_columns(pl.col(column).cast(pl.String))
                continue
            are_numbers = old_type is not None and old_type.is_numeric() and new_type.is_numeric()
            if old_type not in (None, new_type, pl.Null) and new_type != pl.Null and not are_numbers:
                raise UserError(
                    f"column {column!r} of the new items is {new_type}, but {old_type} in the catalogue; "
                    f"write it as {old_type}"
                )
        return Catalog(
            ids,
            pl.concat([old_table, table], how="diagonal_relaxed"),
            features=self.features,
            text=None if self.text is None or text is None else pl.concat([self.text, text]),
            content=None if self.content is None or content is None else torch.cat([self.content, content]),
            requests=self.requests,
            events=self.events,
            labels=self.labels,
        )


def ids_fingerprint(ids: pl.Series) -> str:
    """Return a hash of ids in order, equal on every machine and for every integer width."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), 65536):
        digest.update("\x00".join(ids[start : start + 65536].cast(pl.String).to_list()).encode())
        digest.update(b"\x00")
    return digest.hexdigest()[:16]
