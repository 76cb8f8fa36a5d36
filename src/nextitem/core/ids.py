"""IdMap: mapping between the external ids of a data set and dense internal numbers; stable keys of ids."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError

_FEW = 50  # ids are few if the map has more than this many for each of them


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
        index = self.__dict__.get("_index")  # built by `index` only
        if index is not None and len(ids) * _FEW < len(self):
            return self._encode_few(ids, *index)
        table = pl.DataFrame({"id": self.external, "internal": np.arange(1, len(self.external) + 1, dtype=np.int32)})
        joined = pl.DataFrame({"id": ids}).join(table, on="id", how="left", maintain_order="left")
        return joined["internal"].fill_null(0).to_numpy()

    def index(self) -> IdMap:
        """Build the index by which `encode` looks up a few ids without a join over the map, and return the map itself.

        It takes 12 bytes an id, and pays for a map that is asked many times: that of a server.
        """
        _ = self._index
        return self

    def _encode_few(self, ids: pl.Series, keys: NDArray[np.int64], numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return what `encode` returns, by a binary search of each id's key among the sorted `keys` of all ids."""
        places = np.searchsorted(keys, stable_keys(ids.fill_null(0 if ids.dtype.is_integer() else "")))
        candidates = numbers[places.clip(max=len(keys) - 1)]
        is_same = (self.external.gather(candidates - 1) == ids).fill_null(False).to_numpy()
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
        index = pl.Series(np.asarray(internal, dtype=np.int64) - 1)
        index = index.set(index < 0, None)
        return self.external.gather(index)

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


_FNV_OFFSET, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


def stable_keys(ids: pl.Series) -> NDArray[np.int64]:
    """Return a 63-bit key for each id, [n] int64: it depends on the text of the id alone, and is never 0.

    The key is the 64-bit FNV-1a hash of the UTF-8 bytes, followed by the finaliser of MurmurHash3, so that similar ids
    get unrelated keys. The probability that any two of ten million ids have the same key is about one in 200,000.
    """
    encoded = ids.cast(pl.String).cast(pl.Binary)
    lengths = encoded.bin.size().to_numpy().astype(np.int64)
    data = np.frombuffer(b"".join(encoded), np.uint8)
    starts = np.cumsum(lengths) - lengths
    keys = np.full(len(ids), _FNV_OFFSET)
    rows = np.flatnonzero(lengths > 0)
    position = 0
    while len(rows):
        keys[rows] = (keys[rows] ^ data[starts[rows] + position]) * _FNV_PRIME
        position += 1
        rows = rows[lengths[rows] > position]
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), (33, 1)):
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    positive = (keys >> np.uint64(1)).astype(np.int64)
    positive[positive == 0] = 1
    return positive
