"""RankingConfig: settings that all rankers share."""

from __future__ import annotations

from typing import Literal, Self

import pydantic
from pydantic import Field, FiniteFloat

from nextitem.core import config as configs
from nextitem.data.examples.labelled_candidates import TARGET


class RankingConfig(configs.Config):
    """Settings that all rankers share."""

    fields: tuple[str, ...] = ()
    """What is read (nn/fields/fields.py); none named: all that there is."""
    tasks: tuple[str, ...] = ()
    """Labels that are learnt; none named: the data's first, "target" without impressions."""
    order_by: dict[str, FiniteFloat] = {}
    """Task -> weight of its log-probability in the order; empty: the first alone."""
    learn_from: Literal["auto", "impressions", "events"] = "auto"
    """Auto: impressions where training has some."""
    objective: Literal["pointwise", "listwise"] = "pointwise"
    """cross-entropy of each candidate, or of a request's list."""
    num_negatives: int = Field(8, ge=1)
    """Of events: drawn for each target."""
    negatives_power: float = Field(0.5, ge=0)
    """Of events: negatives by popularity ** power; 0: uniform."""
    position: Literal["ignore", "field", "weight"] = "field"
    """Slots shown: unread; read in training; inverse weights."""
    delay_hours: float = Field(0.0, ge=0)
    """Impressions this close to the end of the log have no final label: left out."""
    max_history_length: int = Field(50, ge=1)
    """Most recent events that are read."""
    buckets: int = Field(32, ge=2)
    """Quantiles of a numeric field."""
    pair_buckets: int = Field(65_536, ge=2)
    """Codes of a crossed field, beyond which pairs are hashed."""
    l2: float = Field(0.0, ge=0)
    """Of field vectors, each pulled by batches that read it (nn/ranking/mini_batch_aware)."""
    calibration: Literal["platt", "isotonic"] | None = None
    """A curve over each task's logits, fitted to validation."""
    candidate_features: tuple[str, ...] = ()
    """Numbers that come with candidates and are read: ranks in channels."""

    @pydantic.model_validator(mode="after")
    def _orders_by_its_tasks(self) -> Self:
        unknown = set(self.order_by) - set(self.task_names)
        if unknown:
            raise ValueError(f"order_by names {', '.join(sorted(unknown))}, but tasks are {', '.join(self.task_names)}")
        if self.order_by and not any(self.order_by.values()):
            raise ValueError("order_by gives every task the weight 0, so nothing is left to order by")
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, by their names in scores and orders."""
        return self.tasks or (TARGET,)

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that nothing reads while the other settings are as they are, each with the reason."""
        source = f"learn_from is {self.learn_from}"
        reads_events, reads_impressions = self.learn_from != "impressions", self.learn_from != "events"
        shown = f"{source}: what was shown and not taken is the negative"
        weighs_slots = self.position == "weight" and not reads_impressions
        weights = {task: weight for task, weight in self.order_by.items() if weight}
        orders_by_first = list(weights) == [self.task_names[0]] and weights[self.task_names[0]] > 0
        return {
            **configs.idle_unless(reads_events, shown, "num_negatives", "negatives_power"),
            **configs.idle_unless(reads_impressions, f"{source}: only labels come late", "delay_hours"),
            **configs.idle_unless(not weighs_slots, f"{source}: events have no slots", "position"),
            **configs.idle_unless(not orders_by_first, "the first task orders without it, too", "order_by"),
        }

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each field without effect, and for each task that orders with the weight 0."""
        zero = [task for task, weight in self.order_by.items() if not weight and "order_by" not in self.idle_fields()]
        sentences = (f"order_by.{task} = 0 has no effect: other tasks order alone" for task in zero)
        return (*super().unused_settings(), *sentences)
