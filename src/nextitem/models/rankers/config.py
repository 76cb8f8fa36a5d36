"""RankingConfig: settings that all rankers share."""

from __future__ import annotations

from typing import Literal, Self

import pydantic
from pydantic import Field, FiniteFloat

from nextitem.core import config as configs
from nextitem.data.examples.labelled_candidates import TARGET


class RankingConfig(configs.Config):
    """Settings that all rankers share."""

    fields: tuple[str, ...] = ()  # what is read (nn/fields/fields.py); none named: all that there is
    tasks: tuple[str, ...] = ()  # labels that are learnt; none named: the data's first, "target" without impressions
    order_by: dict[str, FiniteFloat] = {}  # task -> weight of its log-probability in the order; empty: the first alone
    learn_from: Literal["auto", "impressions", "events"] = "auto"  # auto: impressions where training has some
    objective: Literal["pointwise", "listwise"] = "pointwise"  # cross-entropy of each candidate, or of a request's list
    num_negatives: int = Field(8, ge=1)  # of events: drawn for each target
    negatives_power: float = Field(0.5, ge=0)  # of events: negatives by popularity ** power; 0: uniform
    position: Literal["ignore", "field", "weight"] = "field"  # slots shown: unread; read in training; inverse weights
    delay_hours: float = Field(0.0, ge=0)  # impressions this close to the end of the log have no final label: left out
    max_history_length: int = Field(50, ge=1)  # most recent events that are read
    buckets: int = Field(32, ge=2)  # quantiles of a numeric field
    pair_buckets: int = Field(65_536, ge=2)  # codes of a crossed field, beyond which pairs are hashed
    l2: float = Field(0.0, ge=0)  # of field vectors, each pulled by batches that read it (nn/ranking/mini_batch_aware)
    calibration: Literal["platt", "isotonic"] | None = None  # a curve over each task's logits, fitted to validation
    candidate_features: tuple[str, ...] = ()  # numbers that come with candidates and are read: ranks in channels

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

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each setting that was changed and has no effect beside the others."""
        unused: tuple[str, ...] = ()
        if self.learn_from == "impressions":
            reason = 'with learn_from = "impressions": what was shown and not taken is the negative'
            unused += self.without_effect("num_negatives", "negatives_power", reason=reason)
        if self.learn_from == "events":
            unused += self.without_effect("delay_hours", reason='with learn_from = "events": only labels come late')
            if self.position == "weight":
                unused += self.without_effect("position", reason='with learn_from = "events": events have no slots')
        weights = {task: weight for task, weight in self.order_by.items() if weight}
        if list(weights) == [self.task_names[0]] and weights[self.task_names[0]] > 0:
            unused += self.without_effect("order_by", reason="on any order: without it the first task orders, too")
        elif self.order_by != weights:
            zero = ", ".join(task for task in self.order_by if task not in weights)
            unused += (f"order_by names {zero} with weight 0, which has no effect",)
        return unused
