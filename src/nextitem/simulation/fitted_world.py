"""The world of a log: customers of a data set, who do what a model of its users says (simulation.user_model).

It is the world for data other than the simulated shop. What is best in it is best for the model of the users, whose
figures say how well it fits; nothing here is known about the real users beyond that.

Shapes: B customers of a batch, C customers of the world, K slots, N items, V vector width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.last_time import last_time
from nextitem.data.shop.list_truth import list_table
from nextitem.data.shop.truth import Bools, Floats, Ints
from nextitem.simulation.answers import CustomerConfig, CustomerWorld, ListProblem
from nextitem.simulation.user_model import UserModel, states_after


class FittedConfig(CustomerConfig):
    """Settings of customers whose behaviour is fitted to a log; gaps and the looks at slots come from the log."""

    days: float = Field(60.0, gt=0, le=3650)
    """Duration in days of simulated time, from the end of the log."""
    satisfaction_memory: float = Field(0.5, ge=0, lt=1)
    """Weight of earlier lists in the satisfaction of a customer; 0: only the last list counts."""
    churn: float = Field(0.1, ge=0, le=1)
    """Probability that a customer who is not satisfied at all leaves for good after a visit; a log does not tell it."""
    click_rate: float = Field(0.1, gt=0, lt=1)
    """Without impressions: the mean probability of a click on a popular item that is looked at."""


class FittedWorld(CustomerWorld):
    """Customers of a data set, as a model of its users describes them.

    Attributes:
        dataset: the data set.
        model: the model of its users.
        recent: recent taste of each customer, [C, V].
        last_items: row of the last clicked item, [C]; -1: none.

    """

    def __init__(self, dataset: Dataset, model: UserModel, config: FittedConfig | None = None) -> None:
        """Select the customers: users of the data set by chance, each at most once.

        Raises:
            UserError: the log has no times, or no users.

        """
        log = dataset.interactions.with_items()
        if log.timestamps is None or not len(log):
            raise UserError(f"{dataset.name}: customers need a log with times")
        config = config or FittedConfig()
        examination = model.examination[: max(1, min(len(model.examination), len(model.vectors)))]
        longest, shortest = model.gaps
        self.settings = config.model_copy(
            update={
                "examination": examination,
                "shortest_gap": shortest,
                "longest_gap": longest,
                "list_fatigue": model.fatigue if config.list_fatigue == 0 else config.list_fatigue,
                "list_complements": False,
            }
        )
        self.dataset, self.model = dataset, model
        self.start = float(last_time(log.timestamps) // 1000 + 1)
        self.end = self.start + config.days * 86_400
        users = np.unique(log.user_ids)
        rng = np.random.default_rng([config.seed, 0])
        self._users: Ints = np.sort(rng.permutation(users)[: config.customers]).astype(np.int64)
        size = len(self._users)
        self.recent: Floats = np.zeros((size, model.vectors.shape[1]))
        self.last_items: Ints = np.full(size, -1)
        self._replay(log.user_ids.astype(np.int64), log.item_ids.astype(np.int64) - 1)
        self.satisfaction, self.has_left = np.full(size, np.nan), np.zeros(size, dtype=np.bool_)
        self._ids = [str(item) for item in dataset.catalog.ids.external.to_list()]
        self._user_ids = [str(user) for user in dataset.users.ids.decode(self._users).to_list()]
        self._gains = np.zeros((int(model.groups.max()) + 1,) * 2)

    @property
    def item_ids(self) -> list[str]:
        """Ids of the items, [N]."""
        return self._ids

    @property
    def titles(self) -> list[str]:
        """No titles: the ids of one data set are enough to recognise its items."""
        return []

    @property
    def user_ids(self) -> list[str]:
        """Ids of the customers, [C]."""
        return self._user_ids

    @property
    def groups(self) -> Ints:
        """Group of each item, [N]."""
        return self.model.groups

    def stock(self, time: float) -> Bools:
        """Return which items are released at a time, [N]; all of them, if the data set does not tell."""
        released = self.dataset.catalog.released_ms
        if released is None:
            return np.ones(len(self._ids), dtype=np.bool_)
        result: Bools = released <= time * 1000
        return result

    def click_table(self, customers: Ints, times: Floats, rows: Ints) -> Floats:
        """Return the click table of a list for each customer, [B, K + 1, K]; see CustomerWorld."""
        appeal = self.model.appeal(self.recent[customers], self.last_items[customers])
        return list_table(
            np.take_along_axis(appeal, np.maximum(rows, 0), axis=1),
            rows,
            self.groups[rows],
            gains=self._gains,
            before=np.full(len(customers), -1),
            effects=self.settings.effects,
        )

    def desires(self, customers: Ints, times: Floats, rows: Ints) -> Floats:
        """Return the probability that each clicked item is bought, [B, K]: the share of the log."""
        return np.full(rows.shape, self.model.purchase_share)

    def list_problem(self, customers: Ints, times: Floats) -> ListProblem:
        """Return what decides the value of every list for customers, [B]."""
        appeal = self.model.appeal(self.recent[customers], self.last_items[customers])
        stocks = (
            np.stack([self.stock(time) for time in times]) if self.dataset.catalog.released_ms is not None else True
        )
        appeal = np.where(stocks, appeal, -np.inf)
        before = np.full(len(customers), -1)
        return ListProblem(appeal, self.groups, self._gains, before, self.settings.effects)

    def former_tables(self) -> dict[str, pl.DataFrame]:
        """Return the tables of the data set with user ids as text; see CustomerWorld."""
        data, log = self.dataset, self.dataset.interactions.with_items()
        assert log.timestamps is not None
        interactions = pl.DataFrame(
            {
                "user_id": data.users.ids.decode(log.user_ids.astype(np.int64)).cast(pl.String),
                "item_id": data.catalog.ids.decode(log.item_ids.astype(np.int64)),
                "timestamp": log.timestamps // 1000,
            }
        )
        if "action" in log.columns.columns:
            interactions = interactions.with_columns(log.columns["action"].cast(pl.String))
        users = data.users.ids.external.cast(pl.String).alias("user_id")
        items = data.catalog.table.with_columns(data.catalog.ids.external.alias("item_id"))
        features = [name for name in data.users.features if name in data.users.table.columns]
        return {
            "interactions": interactions.sort("timestamp", maintain_order=True),
            "items": items,
            "users": pl.DataFrame({"user_id": users}).hstack(data.users.table.select(features)),
        }

    def log_settings(self) -> dict[str, Any]:
        """Return the settings of the tables; see CustomerWorld."""
        data = self.dataset
        settings: dict[str, Any] = {"repeats": data.repeats}
        if data.catalog.features:
            settings["items"] = {"features": dict(data.catalog.features)}
        if data.users.features:
            settings["users"] = {"features": dict(data.users.features)}
        return settings

    def _replay(self, users: Ints, items: Ints) -> None:
        """Set the states of the customers to those at the end of the log, whose events are sorted by user."""
        is_customer = np.isin(users, self._users)
        users, items = users[is_customer], items[is_customer]
        recent, last = states_after(users, items, self.model.vectors)
        ends = np.searchsorted(users, self._users, side="right") - 1
        self.recent, self.last_items = recent[ends], last[ends]

    def _remember(self, customers: Ints, times: Floats, rows: Ints, clicks: Bools, purchases: Bools) -> None:
        for slot in range(rows.shape[1]):
            hit = np.flatnonzero(clicks[:, slot])
            who, items = customers[hit], rows[hit, slot]
            self.recent[who] = self.model.after_clicks(self.recent[who], items)
            self.last_items[who] = items
