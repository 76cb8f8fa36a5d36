"""Dataset: everything known of one recommender's data. Split: what may be learnt from, what is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.catalog import Catalog
from nextitem.core.ids import IdMap, stable_keys
from nextitem.core.interactions import Interactions

if TYPE_CHECKING:
    from nextitem.core.batch import SequenceBatch


@dataclass(frozen=True, eq=False)
class Users:
    """Users (or anonymous sessions) 1..U with their features; `table` has U rows in internal order.

    Numbers 1..U are ranks in one log: they sort its events. `keys` are what models and requests know a user by.
    """

    ids: IdMap
    table: pl.DataFrame = field(default_factory=pl.DataFrame)
    features: dict[str, str] = field(default_factory=dict)

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """Stable key of each user, [U + 1] int64 (core.ids.stable_keys); entry 0, an unknown user, is 0."""
        return np.concatenate([np.zeros(1, np.int64), stable_keys(self.ids.external)])

    def numbers_of(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers 1..U of users by their keys, [n]; 0 for an unknown key."""
        order = np.argsort(self.keys, kind="stable")
        places = np.searchsorted(self.keys[order], keys).clip(max=len(order) - 1)
        numbers = order[places]
        return np.where(self.keys[numbers] == keys, numbers, 0)


@dataclass(frozen=True, eq=False)
class Impressions:
    """Items shown, one row each, in the file's order; rows with the same request were shown together.

    request_ids  [T] int64, 0-based, in order of first appearance
    item_ids     [T] int32, 1..N
    user_ids     [T] int32, 0 where unknown
    timestamps   [T] int64, milliseconds, or None
    columns      slot, propensity, policy, labels and context, rows aligned
    labels       names of label columns
    context      context columns: name -> feature type
    """

    request_ids: NDArray[np.int64]
    item_ids: NDArray[np.int32]
    user_ids: NDArray[np.int32]
    timestamps: NDArray[np.int64] | None
    columns: pl.DataFrame
    labels: tuple[str, ...] = ()
    context: dict[str, str] = field(default_factory=dict)

    def select(self, rows: NDArray[np.bool_]) -> Impressions:
        """The rows where the mask [T] is true."""
        return replace(
            self,
            request_ids=self.request_ids[rows],
            item_ids=self.item_ids[rows],
            user_ids=self.user_ids[rows],
            timestamps=None if self.timestamps is None else self.timestamps[rows],
            columns=self.columns.filter(pl.Series(rows)) if self.columns.width else self.columns,
        )


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """One data set in memory.

    repeats        may an item that the user has seen be recommended?
    anonymous      True for a log of sessions without users
    labels         label columns of interactions; context: context columns -> feature type
    fingerprint    hash of all that decides what is learned or judged (data.fingerprint): a bundle knows its data by it
    notes          what loading left out, in words, to be printed
    source         the folder it was read from, or "shop": where a bundle finds it again
    """

    name: str
    interactions: Interactions
    catalog: Catalog
    users: Users
    impressions: Impressions | None = None
    repeats: bool = True
    anonymous: bool = False
    labels: tuple[str, ...] = ()
    context: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    source: str = ""

    def __repr__(self) -> str:
        log = self.interactions
        owners = "sessions" if self.anonymous else "users"
        impressions = "" if self.impressions is None else f", {len(self.impressions.item_ids):,} impressions"
        features = {
            "users": list(self.users.features),
            "items": list(self.catalog.features),
            "events": list(self.catalog.events),
        }
        columns = "; ".join(f"{name}: {', '.join(part)}" for name, part in features.items() if part)
        return "\n".join(
            [
                f"Dataset {self.name}" + (f" of {self.source}" if self.source not in ("", self.name) else ""),
                f"  {len(log):,} events{impressions}, {log.num_users:,} {owners}, {self.catalog.num_items:,} items",
                f"  {columns or 'no features'}",
            ]
        )

    @classmethod
    def from_frames(
        cls,
        interactions: object = None,
        *,
        items: object = None,
        users: object = None,
        impressions: object = None,
        columns: Mapping[str, str | Mapping[str, str]] | None = None,
        settings: Mapping[str, Any] | None = None,
        name: str = "data",
        drop_unknown_items: bool = False,
    ) -> Dataset:
        """Make a data set of tables in memory, by the same rules as a folder (docs/data.md).

        Args:
            interactions, items, users, impressions: polars frames (eager or lazy), pandas frames, Arrow tables, or
                mappings from column names to lists. Interactions or impressions: at least one.
            columns: standard name -> name in the frames, {"user_id": "CustomerID"}; for all tables, or by table:
                {"items": {"item_id": "sku"}}. Names of RecTools (datetime, weight) and of RecBole ("user_id:token")
                need no mapping.
            settings: what dataset.toml would hold, as nested tables.
            name: what the data set is called.
            drop_unknown_items: leave out rows whose item is not in `items`, instead of raising.

        Raises UserError for a mistake in a table, with table, column, row and the way out.

        """
        # The reader stands in a layer above; by this name it is found, as the registry finds models.
        readers = import_module("nextitem.data.readers")
        dataset: Dataset = readers.dataset_from_frames(
            {"interactions": interactions, "items": items, "users": users, "impressions": impressions},
            settings,
            columns=columns,
            name=name,
            drop_unknown_items=drop_unknown_items,
        )
        return dataset

    def with_interactions(self, interactions: Interactions) -> Dataset:
        """The same data set with other events: users, items and numbering stay."""
        return replace(self, interactions=interactions)

    def with_catalog(self, catalog: Catalog) -> Dataset:
        """The same data set with an enriched catalogue (content vectors, identifiers)."""
        return replace(self, catalog=catalog)


@dataclass(frozen=True, eq=False)
class Split:
    """One protocol applied to one data set.

    protocol     its name
    train        what may be learnt from
    validation   what is asked to choose an epoch; its targets are never trained on unless refit
    test         what is asked in the end; histories hold every earlier event, validation's included
    refit        train and validation together, for `--refit`; called only then, since it may be large
    test_later   `time` only: the same requests as test, all of the user's later events as targets
    notes        what was left out, in words, to be printed
    seed         of the random sample of users (`user-split`), or None if nothing is sampled; two splits of one data
                 set are equal if their protocols and seeds are
    """

    protocol: str
    train: Dataset
    validation: SequenceBatch
    test: SequenceBatch
    refit: Callable[[], Dataset]
    test_later: SequenceBatch | None = None
    notes: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def judges_scores(self) -> bool:
        """Whether the requests ask for scores of labelled candidates (`impressions`) instead of lists with targets."""
        return self.test.targets is None
