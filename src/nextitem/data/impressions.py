"""ImpressionReader: a table of impressions as Impressions."""

from __future__ import annotations

import numpy as np
import polars as pl

from nextitem.core.dataset import Impressions
from nextitem.core.errors import UserError
from nextitem.core.ids import IdMap
from nextitem.data import validation
from nextitem.data.events import context_columns, label_columns
from nextitem.data.settings import ImpressionSettings
from nextitem.data.tables import Table


class ImpressionReader:
    """Checks a table of impressions on construction; `read` then gives its rows, in the file's order.

    A null user_id is a visitor who is not known. Columns kept: slot, propensity, policy, labels, context.
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
            self.user_id = validation.id_column(table, "user_id", optional=unknown)
        self.time, self.ticks_per_ms = validation.time_ticks(table, "timestamp")
        self.columns = self._other_columns()

    def item_ids(self) -> pl.Series:
        """Distinct ids of items."""
        return self.table.collect(self.item_id.alias("id").unique())["id"]

    def item_type(self) -> pl.DataType:
        """The type of the item ids."""
        return self.table.frame.select(self.item_id).collect_schema().dtypes()[0]

    def user_ids(self) -> pl.Series | None:
        """Distinct ids of users; None where the table has none."""
        if self.user_id is None:
            return None
        return self.table.collect(self.user_id.alias("id").drop_nulls().unique())["id"]

    def read(
        self, users: IdMap, items: IdMap, *, items_table: Table | None, drop_unknown: bool
    ) -> tuple[Impressions, list[str]]:
        """All rows, encoded, and notes of what was left out; UserError at an unknown item unless dropped."""
        wanted = [self.item_id.alias("#item"), self.request_id.alias("#request")]
        wanted += [] if self.user_id is None else [self.user_id.alias("#user")]
        wanted += [(self.time // self.ticks_per_ms).alias("#time")]
        wanted += [expression.alias(name) for name, expression in self.columns.items()]
        frame = self.table.collect(*wanted)
        item_ids = items.encode(frame["#item"])
        unknown = item_ids == 0
        notes: list[str] = []
        if unknown.any():
            assert items_table is not None
            notes.append(validation.unknown_items(self.table, items_table, unknown, drop=drop_unknown))
            frame, item_ids = frame.filter(pl.Series(~unknown)), item_ids[~unknown]
        requests = IdMap(frame["#request"].unique(maintain_order=True))
        if len(requests) < 2:
            raise UserError(f"{self.table.where}: holds fewer than two impression_ids; nothing can be learnt")
        nobody = np.zeros(frame.height, np.int32)
        return (
            Impressions(
                requests.encode(frame["#request"]).astype(np.int64) - 1,
                item_ids,
                nobody if self.user_id is None else users.encode(frame["#user"]),
                frame["#time"].to_numpy(),
                frame.select(list(self.columns)),
                labels=self.settings.labels,
                context=dict(self.settings.context),
            ),
            notes,
        )

    def _other_columns(self) -> dict[str, pl.Expr]:
        table, settings = self.table, self.settings
        columns: dict[str, pl.Expr] = {}
        for name in ("slot", "propensity"):
            if name in table:
                columns[name] = validation.numeric_column(table, name, what="one of numbers")
        if "propensity" in table:
            row = table.first_row(~pl.col("propensity").cast(pl.Float64, strict=False).is_between(0, 1))
            if row is not None:
                what = f"{table.value('propensity', row)!r} is no probability"
                raise table.problem("propensity", what, "write a number from 0 to 1", row=row)
        if "policy" in table:
            columns["policy"] = pl.col("policy").cast(pl.String)
        columns |= label_columns(table, settings.labels, setting="[impressions] labels")
        columns |= context_columns(table, dict(settings.context), setting="[impressions] context")
        return columns
