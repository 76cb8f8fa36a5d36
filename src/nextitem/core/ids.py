"""IdMap: mapping between the external ids of a data set and dense internal numbers; stable keys of ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")


@dataclass(frozen=True, eq=False)
class IdMap:
    """External ids in a fixed order: `external[i]` has the internal number i + 1; 0 is padding.

    `external` contains distinct strings or distinct integers, without nulls.
    """

    external: pl.Series

    def __post_init__(self) -> None:
        if not (self.external.dtype.is_integer() or self.external.dtype == pl.String):
            raise ValueError(f"ids must be strings or integers, got {self.external.dtype}")
        if self.external.null_count():
            raise ValueError("ids must not be null")
        if self.external.n_unique() != len(self.external):
            raise ValueError("ids must be distinct")

    @classmethod
    def sorted_from(cls, ids: pl.Series) -> IdMap:
        """Return a map of the distinct values of `ids` in ascending order; the order of `ids` does not matter."""
        return cls(ids.unique().sort().alias("id"))

    def __len__(self) -> int:
        return len(self.external)

    def encode(self, ids: pl.Series) -> NDArray[np.int32]:
        """Return the internal numbers of `ids`, [n] int32; 0 for an unknown id.

        An integer and its text count as the same id, so that ids from a command line or from CSV match ids from
        Parquet.
        """
        if ids.dtype != self.external.dtype:
            ids = ids.cast(self.external.dtype, strict=False)
        table = pl.DataFrame({"id": self.external, "internal": np.arange(1, len(self.external) + 1, dtype=np.int32)})
        joined = pl.DataFrame({"id": ids}).join(table, on="id", how="left", maintain_order="left")
        return joined["internal"].fill_null(0).to_numpy()

    def lookup(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Return what `encode` returns for a few ids given as text, by a binary search among the keys of all ids.

        The first call builds the index, which takes 12 bytes an id. So this is for a map that is asked many times,
        as that of a server is: a join with a map of a million ids takes longer than the answer of a model.
        """
        if self._index is None:
            return self.encode(pl.Series(texts, dtype=pl.String))
        keys, numbers = self._index
        if self.external.dtype.is_integer():
            texts = [str(int(text)) if _INTEGER.fullmatch(text) else "" for text in texts]
        places = np.searchsorted(keys, stable_keys(texts))
        candidates = numbers[places.clip(max=len(keys) - 1)]
        if len(candidates) <= FEW_IDS:
            externals = [self.external[number - 1] for number in candidates.tolist()]
        else:
            externals = self.external[candidates - 1].to_list()
        is_same = [str(external) == text for external, text in zip(externals, texts, strict=True)]
        return np.where(is_same, candidates, 0).astype(np.int32)

    @cached_property
    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
        """The keys of all ids in ascending order, and their numbers; None if two ids have the same key."""
        keys = stable_keys(self.external)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        return None if bool((keys[1:] == keys[:-1]).any()) else (keys, (order + 1).astype(np.int32))

    def decode(self, internal: NDArray[np.integer]) -> pl.Series:
        """Return the external ids of internal numbers [n]; null if the number is 0."""
        places = np.asarray(internal, dtype=np.int64) - 1
        if not len(places) or int(places.min()) >= 0:
            return self.external[places]
        index = pl.Series(places)
        return self.external.gather(index.set(index < 0, None))

    def extend(self, ids: pl.Series) -> IdMap:
        """Return a map with the new ones among `ids` appended, in their order; existing ids keep their numbers.

        Raises UserError if the existing ids are integers and one of `ids` is not.
        """
        try:
            ids = ids.cast(self.external.dtype)
        except pl.exceptions.InvalidOperationError:
            raise UserError(
                f"the existing ids are whole numbers, but some new ids are not: {ids.head(3).to_list()}; generate the "
                "identifiers from scratch, from all items"
            ) from None
        new = ids.filter(~ids.is_in(self.external.implode())).unique(maintain_order=True)
        return IdMap(pl.concat([self.external, new.alias(self.external.name)]))


FEW_IDS = 32  # number of ids up to which their keys are computed one by one, without arrays
_OFFSET, _PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, 0xFFFFFFFFFFFFFFFF
_FACTORS = ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), (33, 1))
_FNV_OFFSET, _FNV_PRIME = np.uint64(_OFFSET), np.uint64(_PRIME)


def stable_keys(ids: pl.Series | Sequence[str]) -> NDArray[np.int64]:
    """Return a 63-bit key for each id, [n] int64: it depends on the text of the id alone, and is never 0.

    The key is the 64-bit FNV-1a hash of the UTF-8 bytes, followed by the finaliser of MurmurHash3, so that similar ids
    get unrelated keys. The probability that any two of ten million ids have the same key is about one in 200,000.
    """
    if not isinstance(ids, pl.Series) and len(ids) <= FEW_IDS:
        return np.array([_stable_key(text) for text in ids], dtype=np.int64)
    if isinstance(ids, pl.Series):
        column = ids.cast(pl.String).cast(pl.Binary)
        encoded, lengths = list(column), column.bin.size().to_numpy().astype(np.int64)
    else:
        encoded = [text.encode() for text in ids]
        lengths = np.array([len(text) for text in encoded], dtype=np.int64)
    data = np.frombuffer(b"".join(encoded), np.uint8)
    starts = np.cumsum(lengths) - lengths
    keys = np.full(len(ids), _FNV_OFFSET)
    rows = np.flatnonzero(lengths > 0)
    position = 0
    while len(rows):
        keys[rows] = (keys[rows] ^ data[starts[rows] + position]) * _FNV_PRIME
        position += 1
        rows = rows[lengths[rows] > position]
    for shift, factor in _FACTORS:
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    positive = (keys >> np.uint64(1)).astype(np.int64)
    positive[positive == 0] = 1
    return positive


def _stable_key(text: str) -> int:
    """Return what `stable_keys` returns for one id."""
    key = _OFFSET
    for byte in text.encode():
        key = (key ^ byte) * _PRIME & _MASK
    for shift, factor in _FACTORS:
        key = (key ^ key >> shift) * factor & _MASK
    return key >> 1 or 1
