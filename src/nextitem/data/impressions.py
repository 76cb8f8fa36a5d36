"""ImpressionReader: a table of impressions as Impressions."""

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
    """Checks a table of impressions on construction; `read` then gives its rows, in the file's order.

    A null user_id is a visitor who is not known. Columns that are kept: slot, propensity, policy, labels, context.
    """

    def __init__(self, table: Table, settings: ImpressionSettings) -> None:
        self.table, self.settings = table, settings
        table.require("impression_id", "item_id", "timestamp")
        if not table.collect(pl.len())["len"][0]:
            raise UserError(f"{table.where}: holds no impressions; add some, or remove the file")
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
        """Distinct ids of items."""
        return self.table.collect(self.item_id.alias("id").unique())["id"]

    def item_type(self) -> pl.DataType:
        """The type of the item ids."""
        return self.table.frame.select(self.item_id).collect_schema().dtypes()[0]

    def user_ids(self) -> pl.Series | None:
        """Distinct ids of users; None if the table has none."""
        if self.user_id is None:
            return None
        ids = self.table.collect(self.user_id.alias("id").drop_nulls().unique())["id"]
        return ids.filter(ids != "") if ids.dtype == pl.String else ids

    def read(self, users: IdMap, items: IdMap, *, items_table: Table | None, drop_unknown: bool) -> Impressions:
        """Return all rows, encoded; notes of the table say what was left out or split.

        UserError at an unknown item unless `drop_unknown`.
        """
        wanted = [self.item_id.alias("#item"), self.request_id.alias("#request")]
        wanted += [] if self.user_id is None else [self.user_id.alias("#user")]
        wanted += [(self.time // self.ticks_per_ms).alias("#time")]
        wanted += [expression.alias(name) for name, expression in self.columns.items()]
        frame = self.table.collect(*wanted)
        unknown = items.encode(frame["#item"]) == 0
        if unknown.any():
            assert items_table is not None
            validation.unknown_items(self.table, items_table, unknown, drop=drop_unknown)
            frame = frame.filter(pl.Series(~unknown))
        frame = self._without_copies(frame)
        user_ids = np.zeros(frame.height, np.int32) if self.user_id is None else users.encode(frame["#user"])
        request_ids = self._requests(frame, user_ids)
        if not frame.height or int(request_ids.max()) < 1:
            raise UserError(f"{self.table.where}: holds fewer than two impression_ids; nothing can be learnt")
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
        """Drop rows that equal an earlier one in every column that is read, or note how many there are."""
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
        """Number the requests of the rows, from 0 in order of first appearance, [T].

        The same impression_id under two users is two requests: ids may count from 0 for each user. So is one that
        comes again for the same user after more than a day.
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
            num_again = rows.select(key).unique().group_by("id", "user").len().filter(pl.col("len") > 1).height
            if num_again:
                self.table.note(
                    f"{num_again:,} impression_ids come again for the same user after more than a day; each time is a "
                    "request of its own"
                )
        numbers = rows.select(key).unique(maintain_order=True).with_row_index("number")
        joined = rows.join(numbers, on=key, how="left", maintain_order="left")
        return joined["number"].cast(pl.Int64).to_numpy()

    def _other_columns(self) -> dict[str, pl.Expr]:
        table, settings = self.table, self.settings
        columns: dict[str, pl.Expr] = {}
        for name in ("slot", "propensity"):
            if name not in table:
                continue
            if not validation.is_numeric_column(table, name):
                table.note(f"column {table.own_name(name)!r} holds no numbers, so it is not read as {name}")
                continue
            columns[name] = validation.numeric_column(table, name, what="one of numbers")
        if "propensity" in columns:
            row = table.first_row(~columns["propensity"].is_between(0, 1))
            if row is not None:
                what = f"{table.value('propensity', row)!r} is no probability"
                raise table.problem("propensity", what, "write a number from 0 to 1", row=row)
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
        table = self.table
        row = table.first_row((slots < 0) | (slots != slots.round()))
        if row is not None:
            what = f"{table.value('slot', row)!r} is no place"
            raise table.problem("slot", what, "number places from 1, 0 is an unknown one", row=row)
        num_first = table.count(slots == 0)
        if num_first:
            table.note(
                f"column {table.own_name('slot')!r} is 0 in {num_first:,} rows, which stands for an unknown place: "
                "number places from 1"
            )

    def _note_labels(self) -> None:
        """Say which labels are not known everywhere, and which do not tell yes from no."""
        total = int(self.table.collect(pl.len())["len"][0])
        for name in self.settings.labels:
            values = self.columns[name]
            low, high, missing, fractions = self.table.collect(
                values.min().alias("low"),
                values.max().alias("high"),
                values.is_null().sum().alias("missing"),
                (~values.cast(pl.Float64).is_in([-1.0, 0.0, 1.0])).sum().alias("fractions"),
            ).row(0)
            if missing:
                self.table.note(
                    f"label {name!r} is empty in {missing:,} of {total:,} rows: unknown is not no, they are left out "
                    "of its loss and figures"
                )
            if fractions and name not in self.settings.positive:
                self.table.note(
                    f"label {name!r} holds grades from {low:g} to {high:g}: above 0 counts as yes; to choose, say "
                    f'[impressions] positive = {{ {name} = ">= {high:g}" }} in {self.table.settings}'
                )
            elif low is not None and not low <= 0 < high:
                self.table.note(f"label {name!r} is {'above 0' if low > 0 else '0'} wherever it is known")
