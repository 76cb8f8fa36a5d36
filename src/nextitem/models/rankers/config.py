"""RankingConfig: the settings that all rankers share."""

from __future__ import annotations

from typing import Literal, Self

import pydantic
from pydantic import Field, FiniteFloat, PositiveFloat

from nextitem.core import config as configs
from nextitem.data.examples.labelled_candidates import TARGET
from nextitem.nn.tables.kinds import DenseRows, GrowingRows, HashedRows


class RankingConfig(configs.Config):
    """Settings that all rankers share."""

    fields: tuple[str, ...] = ()
    """Names of the fields that the ranker reads (listed in nn/fields/fields.py); empty: all fields of the data."""
    tasks: tuple[str, ...] = ()
    """Names of the labels to learn, one task each; empty: the first label of the data, "target" without impressions."""
    order_by: dict[str, FiniteFloat] = {}
    """Weight of the log-probability of each task in the score that orders candidates; empty: the first task alone."""
    learn_from: Literal["auto", "impressions", "events"] = "auto"
    """Source of training examples: impressions or events; auto: impressions if the training data has any."""
    objective: Literal["pointwise", "listwise"] = "pointwise"
    """Loss: cross-entropy of each candidate (pointwise), or of the list of candidates of a request (listwise)."""
    num_negatives: int = Field(8, ge=1)
    """Number of negatives that are sampled for each target, if the ranker learns from events."""
    negatives_power: float = Field(0.5, ge=0)
    """Power: negatives are sampled by popularity ** power, if the ranker learns from events; 0: uniformly."""
    position: Literal["ignore", "field", "weight"] = "field"
    """Use of the slots of impressions in training: none (ignore), as a field (field), as inverse weights (weight)."""
    delay_hours: float = Field(0.0, ge=0)
    """Hours before the end of the log within which impressions are skipped: their labels may be incomplete."""
    max_history_length: int = Field(50, ge=1)
    """Number of most recent events of a history that the ranker reads."""
    buckets: int = Field(32, ge=2)
    """Number of quantile buckets of a numeric field."""
    pair_buckets: int = Field(65_536, ge=2)
    """Number of codes of a crossed field; if there are more pairs of values than that, they are hashed."""
    half_lives: tuple[PositiveFloat, PositiveFloat] = (3.0, 30.0)
    """Half-lives of the weights of events in cross.*.fast and .slow, in days; in events if the log has no times."""
    l2: float = Field(0.0, ge=0)
    """Weight of the L2 penalty of field vectors; each batch affects the vectors that it reads (mini_batch_aware.py)."""
    calibration: Literal["platt", "isotonic"] | None = None
    """Kind of the curve from logits to probabilities, fitted to validation for each task; none: no calibration."""
    table: DenseRows | GrowingRows | HashedRows = Field(DenseRows(), discriminator="kind")
    """Kind of the table of the fields' vectors: dense, growing with the ids that training meets, or hashed."""
    candidate_features: tuple[str, ...] = ()
    """Names of numeric features of candidates that the ranker reads; in a cascade the ranks in the channels."""

    @pydantic.model_validator(mode="after")
    def _check_order_by(self) -> Self:
        unknown = set(self.order_by) - set(self.task_names)
        if unknown:
            raise ValueError(f"order_by names {', '.join(sorted(unknown))}, but tasks are {', '.join(self.task_names)}")
        if self.order_by and not any(self.order_by.values()):
            raise ValueError("order_by gives every task the weight 0, so nothing is left to order by")
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks in scores and in `order_by`."""
        return self.tasks or (TARGET,)

    def idle_fields(self) -> dict[str, str]:
        """Return the fields that are unused with the current values of the other fields: name -> reason."""
        source = f"learn_from is {self.learn_from}"
        reads_events, reads_impressions = self.learn_from != "impressions", self.learn_from != "events"
        negatives = f"{source}: items that were shown and not selected are the negatives"
        is_slot_weight = self.position == "weight" and not reads_impressions
        nonzero = {task: weight for task, weight in self.order_by.items() if weight}
        first = self.task_names[0]
        orders_by_first = list(nonzero) == [first] and nonzero[first] > 0
        return {
            **configs.idle_unless(reads_events, negatives, "num_negatives", "negatives_power"),
            **configs.idle_unless(reads_impressions, f"{source}: only labels of impressions come late", "delay_hours"),
            **configs.idle_unless(not is_slot_weight, f"{source}: events have no slots", "position"),
            **configs.idle_unless(not orders_by_first, "without it the first task orders, too", "order_by"),
        }

    def unused_settings(self) -> tuple[str, ...]:
        """Return a sentence for each setting without effect, and for each task with the weight 0 in `order_by`."""
        is_idle = "order_by" in self.idle_fields()
        zero_tasks = [task for task, weight in self.order_by.items() if not weight and not is_idle]
        sentences = (f"order_by.{task} = 0 has no effect: other tasks order alone" for task in zero_tasks)
        return (*super().unused_settings(), *sentences)
