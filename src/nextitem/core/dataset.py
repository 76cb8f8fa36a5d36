"""Dataset: events, items and users of one log. Split: training data, validation requests and test requests."""

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
    """Users (or anonymous sessions) 1..U with their features.

    The numbers 1..U are ranks in one log: its events are sorted by them. Models and requests identify a user by `keys`.

    ids       map between external user ids and internal numbers
    table     columns of the users, U rows in internal order
    features  feature schema: column -> feature type
    """

    ids: IdMap
    table: pl.DataFrame = field(default_factory=pl.DataFrame)
    features: dict[str, str] = field(default_factory=dict)

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """Stable key of each user, [U + 1] int64 (core.ids.stable_keys); entry 0 is the unknown user, with key 0."""
        return np.concatenate([np.zeros(1, np.int64), stable_keys(self.ids.external)])

    def numbers_of(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers 1..U of the users with these keys, [n]; 0 for an unknown key."""
        order = np.argsort(self.keys, kind="stable")
        positions = np.searchsorted(self.keys[order], keys).clip(max=len(order) - 1)
        numbers = order[positions]
        return np.where(self.keys[numbers] == keys, numbers, 0)


@dataclass(frozen=True, eq=False)
class Impressions:
    """Impressions: items that were displayed to users, one row each, in the order of the file.

    Rows with the same request were displayed together.

    request_ids  [T] int64, from 0 on, in order of first appearance
    item_ids     [T] int32, 1..N
    user_ids     [T] int32; 0: unknown user
    timestamps   [T] int64, milliseconds, or None
    columns      slot, propensity, policy, labels and context, one row for each impression
    labels       names of the label columns
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
        """Return the rows for which the mask `rows [T]` is true."""
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

    name           name of the data set, as reports print it
    interactions   the events
    catalog        the items and their features
    users          the users and their features
    impressions    the displayed items, or None if they were not logged
    repeats        whether items that the user has seen may be recommended again
    anonymous      whether the log contains sessions instead of users
    labels         names of the label columns of `interactions`
    context        context columns of `interactions`: name -> feature type
    fingerprint    hash of everything that training or evaluation depends on (data.fingerprint); a bundle recognises
                   its data by it
    notes          sentences about what loading skipped, for printing
    source         the folder that the data was read from, or "shop"; a bundle loads the data again from there
    drops_unknown_items  whether loading skipped events of items that the items table lacks
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
    drops_unknown_items: bool = False

    def __repr__(self) -> str:
        log = self.interactions
        user_word = "sessions" if self.anonymous else "users"
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
                f"  {len(log):,} events{impressions}, {log.num_users:,} {user_word}, {self.catalog.num_items:,} items",
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
        """Return a data set built from tables in memory, by the same rules as one in a folder (docs/data.md).

        Args:
            interactions: the events: a polars frame (eager or lazy), a pandas frame, an Arrow table, or a mapping from
                column names to lists. Interactions or impressions are required.
            items: the items, in any of these forms.
            users: the users, in any of these forms.
            impressions: the displayed items, in any of these forms.
            columns: standard name -> name in the frames, {"user_id": "CustomerID"}; for all tables, or by table:
                {"items": {"item_id": "sku"}}. Names of RecTools (datetime, weight) and of RecBole ("user_id:token")
                need no mapping.
            settings: the contents of dataset.toml, as nested tables.
            name: name of the data set.
            drop_unknown_items: skip rows whose item is not in `items`, instead of raising an error.

        Raises:
            UserError: a table has a mistake; the message names table, column, row and the way out.

        """
        # The reader is in a higher layer, so it is imported by name when it is needed, as the registry imports models.
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
        """Return the data set with other events; users, items and their numbers stay the same."""
        return replace(self, interactions=interactions)

    def with_catalog(self, catalog: Catalog) -> Dataset:
        """Return the data set with an enriched catalogue (content vectors, identifiers)."""
        return replace(self, catalog=catalog)


@dataclass(frozen=True, eq=False)
class Split:
    """Training data, validation requests and test requests of one data set, split by one protocol.

    protocol     name of the protocol
    train        training data
    validation   requests used to select the best epoch; their targets are never trained on, except by `--refit`
    test         requests of the final evaluation; histories contain every earlier event, including validation targets
    refit        function that returns training and validation data together, for `--refit`. It is called only then,
                 as the result can be large.
    test_later   protocol `time` only: the requests of `test` with all later events of the user as targets
    notes        sentences about what was skipped, for printing
    seed         seed of the random sample of users (`user-split`), or None if nothing is sampled; two splits of one
                 data set are equal if their protocols and seeds are equal
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
