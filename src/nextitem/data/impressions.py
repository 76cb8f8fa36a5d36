"""Reader of a table of impressions."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.dataset import Impressions
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.data import validation
from nextitem.data.conditions import condition
from nextitem.data.events import context_columns, label_columns
from nextitem.data.settings import ImpressionSettings
from nextitem.data.tables import Table
from nextitem.data.times import time_ticks

DAY_MS = 86_400_000  # rows of one impression_id further apart than this were not shown together


class ImpressionReader:
    """Reader of a table of impressions: the constructor checks the table, `read` returns its rows in the file's order.

    A null user_id stands for an unknown visitor. The columns slot, propensity, policy, labels and context are read.
    """

    def __init__(self, table: Table, settings: ImpressionSettings) -> None:
        self.table, self.settings = table, settings
        table.require("impression_id", "item_id", "timestamp")
        if not table.collect(pl.len())["len"][0]:
            raise UserError(f"{table.where}: contains no impressions; add some, or remove the file")
        self.item_id = validation.id_column(table, "item_id")
        self.request_id = validation.id_column(table, "impression_id")
        self.user_id = None
        if "user_id" in table:
            unknown = pl.col("user_id").is_null()
            if table.schema["user_id"] == pl.String:
                unknown |= pl.col("user_id").str.strip_chars() == ""
            elif table.schema["user_id"].is_float():
                unknown |= pl.col("user_id").is_nan()
            self.user_id = validation.id_column(table, "user_id", optional=unknown)
        self.time, self.ticks_per_ms = time_ticks(table, "timestamp")
        self.columns = self._other_columns()
        self._note_labels()

    def item_ids(self) -> pl.Series:
        """Return the distinct ids of items."""
        return self.table.collect(self.item_id.alias("id").unique())["id"]

    def item_type(self) -> pl.DataType:
        """Return the type in which the table stores item ids (after checks)."""
        return self.table.frame.select(self.item_id).collect_schema().dtypes()[0]

    def user_ids(self) -> pl.Series | None:
        """Return the distinct ids of users, or None if the table has no column of users."""
        if self.user_id is None:
            return None
        ids = self.table.collect(self.user_id.alias("id").drop_nulls().unique())["id"]
        return ids.filter(ids != "") if ids.dtype == pl.String else ids

    def read(self, users: IdMap, items: IdMap, *, items_table: Table | None, drop_unknown: bool) -> Impressions:
        """Return all rows, encoded; notes of the table list what was skipped or split.

        Args:
            users: numbers of the user ids.
            items: numbers of the item ids.
            items_table: the items table, for messages; None if there is none, so that every item is known.
            drop_unknown: leave out rows of items that are not in `items`.

        Raises:
            UserError: an item is not in `items` and `drop_unknown` is false, or there are fewer than two requests.

        """
        selected_columns = [self.item_id.alias("#item"), self.request_id.alias("#request")]
        selected_columns += [] if self.user_id is None else [self.user_id.alias("#user")]
        selected_columns += [(self.time // self.ticks_per_ms).alias("#time")]
        selected_columns += [expression.alias(name) for name, expression in self.columns.items()]
        frame = self.table.collect(*selected_columns)
        unknown = items.encode(frame["#item"]) == 0
        if unknown.any():
            assert items_table is not None
            validation.unknown_items(self.table, items_table, unknown, drop=drop_unknown)
            frame = frame.filter(pl.Series(~unknown))
        frame = self._without_copies(frame)
        user_ids = np.zeros(frame.height, np.int32) if self.user_id is None else users.encode(frame["#user"])
        request_ids = self._requests(frame, user_ids)
        if not frame.height or int(request_ids.max()) < 1:
            raise UserError(f"{self.table.where}: contains fewer than two impression_ids; training needs at least two")
        return Impressions(
            request_ids,
            items.encode(frame["#item"]),
            user_ids,
            frame["#time"].to_numpy(),
            frame.select(list(self.columns)),
            labels=self.settings.labels,
            context=dict(self.settings.context),
        )

    def _without_copies(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Drop rows that equal an earlier one in every column that is read, or add a note with their number."""
        if self.settings.duplicates == "keep":
            return frame
        is_first = frame.select(pl.struct(pl.all()).is_first_distinct()).to_series()
        count = frame.height - int(is_first.sum())
        if not count:
            return frame
        if self.settings.duplicates == "drop":
            self.table.note(
                f"left out {count:,} of {frame.height:,} rows, copies of an earlier row in every column read"
            )
            return frame.filter(is_first)
        self.table.note(
            f"{count:,} of {frame.height:,} rows are copies of an earlier one, equal in every column that is read; "
            'they are kept, rows logged twice are dropped by [impressions] duplicates = "drop" in '
            f"{self.table.settings}"
        )
        return frame

    def _requests(self, frame: pl.DataFrame, user_ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the number of each row's request, from 0 in order of first appearance, [T].

        The same impression_id under two users counts as two requests, since ids may count from 0 for each user. An id
        that occurs again for the same user after more than a day is a new request too.
        """
        rows = frame.select(pl.col("#request").alias("id"), pl.col("#time").alias("time")).with_columns(
            pl.Series("user", user_ids)
        )
        is_split = rows.group_by("id").agg(pl.col("user").n_unique() > 1)["user"]
        if is_split.any():
            self.table.note(
                f"{int(is_split.sum()):,} impression_ids occur under several users (or with and without one); rows are "
                "one request if they share both impression_id and user_id"
            )
        key = ["id", "user"]
        spans = rows.group_by(key).agg((pl.col("time").max() - pl.col("time").min()).alias("span"))
        if bool((spans["span"] > DAY_MS).any()):
            gap = (pl.col("time").diff().over(key, order_by="time").fill_null(0) > DAY_MS).cast(pl.Int64)
            rows = rows.with_columns(gap.alias("part"))
            rows = rows.with_columns(pl.col("part").cum_sum().over(key, order_by="time"))
            key = [*key, "part"]
            num_repeated = rows.select(key).unique().group_by("id", "user").len().filter(pl.col("len") > 1).height
            if num_repeated:
                self.table.note(
                    f"{num_repeated:,} impression_ids occur again for the same user after more than a day; each time "
                    "is a separate request"
                )
        numbers = rows.select(key).unique(maintain_order=True).with_row_index("number")
        joined = rows.join(numbers, on=key, how="left", maintain_order="left")
        return joined["number"].cast(pl.Int64).to_numpy()

    def _other_columns(self) -> dict[str, pl.Expr]:
        """Return the columns other than request, item, user and time: slot, propensity, policy, labels, context."""
        table, settings = self.table, self.settings
        columns: dict[str, pl.Expr] = {}
        for name in ("slot", "propensity"):
            if name not in table:
                continue
            if not validation.is_numeric_column(table, name):
                table.note(f"column {table.own_name(name)!r} contains no numbers, so it is not read as {name}")
                continue
            columns[name] = validation.numeric_column(table, name, what="one of numbers")
        if "propensity" in columns:
            row = table.first_row(~columns["propensity"].is_between(0, 1))
            if row is not None:
                problem = f"{table.value('propensity', row)!r} is no probability"
                raise table.problem("propensity", problem, "write a number from 0 to 1", row=row)
        if "slot" in columns:
            self._check_slots(columns["slot"])
        if "policy" in table:
            columns["policy"] = pl.col("policy").cast(pl.String)
        labels = label_columns(table, settings.labels, setting="[impressions] labels")
        for name, value in settings.positive.items():
            labels[name] = condition(table, name, value, setting="[impressions] positive").cast(pl.Int8)
        columns |= labels
        columns |= context_columns(table, dict(settings.context), setting="[impressions] context")
        return columns

    def _check_slots(self, slots: pl.Expr) -> None:
        """Raise UserError if a slot is not a whole number from 0 on; add a note if some are 0, which means unknown."""
        table = self.table
        row = table.first_row((slots < 0) | (slots != slots.round()))
        if row is not None:
            problem = f"{table.value('slot', row)!r} is no slot"
            raise table.problem("slot", problem, "number slots from 1, 0 is an unknown one", row=row)
        num_unknown = table.count(slots == 0)
        if num_unknown:
            table.note(
                f"column {table.own_name('slot')!r} is 0 in {num_unknown:,} rows, which stands for an unknown slot: "
                "number slots from 1"
            )

    def _note_labels(self) -> None:
        """Add notes on labels that are unknown in some rows, that are grades, or that have a single value."""
        total = int(self.table.collect(pl.len())["len"][0])
        for name in self.settings.labels:
            values = self.columns[name]
            low, high, num_missing, num_grades = self.table.collect(
                values.min().alias("low"),
                values.max().alias("high"),
                values.is_null().sum().alias("missing"),
                (~values.cast(pl.Float64).is_in([-1.0, 0.0, 1.0])).sum().alias("fractions"),
            ).row(0)
            if num_missing:
                self.table.note(
                    f"label {name!r} is empty in {num_missing:,} of {total:,} rows: unknown does not mean no, so "
                    "these rows are left out of its loss and metrics"
                )
            if num_grades and name not in self.settings.positive:
                self.table.note(
                    f"label {name!r} contains grades from {low:g} to {high:g}: above 0 counts as yes; to choose, set "
                    f'[impressions] positive = {{ {name} = ">= {high:g}" }} in {self.table.settings}'
                )
            elif low is not None and not low <= 0 < high:
                self.table.note(f"label {name!r} is {'above 0' if low > 0 else '0'} wherever it is known")
