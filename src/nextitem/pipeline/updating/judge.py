"""Judge a new version against the one in use: the same requests, an interval of their difference, a decision.

A request is a positive event of a period, with everything its user did before. Both models answer it; neither has
learned an event of the period. Events that a recommended list led to count only if there are too few others. The figure
of a user is the mean over the user's requests, as these are alike, and the interval resamples users
(evaluation/intervals.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextitem.core.components import build_component
from nextitem.core.dataset import Dataset
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ClosedForm
from nextitem.data.requests import Rows, build_requests, earlier_items, single_targets
from nextitem.evaluation.evaluate import ACCURACY, recommend_all
from nextitem.evaluation.intervals import Difference, paired_difference
from nextitem.pipeline.runs import aligned


@dataclass(frozen=True)
class Judgement:
    """Figures of the version in use and of a new one, and what follows from them.

    Attributes:
        metric: name@k of the figure.
        requests: number of requests of the newest period.
        users: number of their users.
        former: mean over users of the figure of the version in use.
        new: mean over users of the new version.
        difference: mean of new minus former, with its 95% interval.
        popular: mean over users of the most popular items, which is what a list is worth without any knowledge.
        former_skill: by how much the version in use exceeds the most popular items on earlier events, which it had not
            learned; None if there are too few.
        is_promoted: whether the new version shall be used.
        reason: one sentence why.

    """

    metric: str
    requests: int
    users: int
    former: float
    new: float
    difference: Difference
    popular: float
    former_skill: float | None
    is_promoted: bool
    reason: str

    @property
    def figures(self) -> str:
        """The figures in one line."""
        difference = self.difference
        return (
            f"{self.metric} {self.former:.4f} -> {self.new:.4f}, difference {difference.mean:+.4f} "
            f"[{difference.low:+.4f}, {difference.high:+.4f}], {self.requests:,} requests of {self.users:,} users"
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        values = asdict(self)
        del values["difference"]
        return values | {
            "difference": self.difference.mean,
            "interval": [self.difference.low, self.difference.high],
        }


def target_rows(dataset: Dataset, *, start_ms: int, limit: int, left_out: NDArray[np.bool_] | None = None) -> Rows:
    """Return rows of the log that may be targets in a period and have an earlier item; evenly spaced if too many.

    Args:
        dataset: a dated log.
        start_ms: begin of the period, in milliseconds since 1970; it ends with the log.
        limit: largest number of rows.
        left_out: rows that are no targets, bool [T]; None: none.

    """
    log = dataset.interactions
    assert log.timestamps is not None, "an update needs times"
    is_inside = log.is_target() & (log.timestamps >= start_ms)
    if left_out is not None:
        is_inside &= ~left_out
    rows = np.flatnonzero(is_inside)
    rows = rows[earlier_items(log, log.offsets[log.user_ids[rows] - 1], rows) > 0]
    return rows if len(rows) <= limit else rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


def from_lists(dataset: Dataset, events: pl.DataFrame) -> NDArray[np.bool_]:
    """Return which events of a log come from recommended lists, bool [T]: they name the list in `request_id`.

    Nobody clicks what no list shows, so such events favour the model that made the lists, whatever users would like.

    Args:
        dataset: a dated log of users.
        events: the table that it was made from.

    """
    log = dataset.interactions
    result = np.zeros(len(log.item_ids), dtype=np.bool_)
    if "request_id" not in events.columns or "user_id" not in events.columns:
        return result
    assert log.timestamps is not None, "an update needs times"
    listed = events.filter(pl.col("request_id").is_not_null())
    users, items = dataset.users.ids.encode(listed["user_id"]), dataset.catalog.ids.encode(listed["item_id"])
    keys = pl.DataFrame({"user": users, "item": items, "time": listed["timestamp"].dt.epoch("ms")}).unique()
    rows = pl.DataFrame({"user": log.user_ids, "item": log.item_ids, "time": log.timestamps}).with_row_index("row")
    casts = [pl.col(name).cast(pl.Int64) for name in ("user", "item", "time")]
    copies = rows.with_columns(casts).join(keys.with_columns(casts), on=["user", "item", "time"], how="semi")
    result[copies["row"].to_numpy()] = True
    return result


def user_figures(model: Recommender, dataset: Dataset, rows: Rows, *, metric: str) -> Tensor:
    """Return the figure of each user who has a request, in the order of the users, [users] float64.

    Args:
        model: the model, whose catalogue may lack items of the data set: it reads no event of them, and lists none.
        dataset: the data set, in any numbering of items.
        rows: targets, as rows of its log.
        metric: name@k of an accuracy metric.

    """
    name, _, k = metric.partition("@")
    log = dataset.interactions
    model_numbers = np.concatenate([[0], model.catalog.ids.encode(dataset.catalog.ids.external)])
    num_before = np.concatenate([[0], np.cumsum((log.item_ids == 0) | (model_numbers[log.item_ids] > 0))])
    users = log.user_ids[rows]
    local = aligned(dataset, model)
    requests = build_requests(
        local,
        num_before[log.offsets[users - 1]],
        num_before[rows],
        targets=None,
        times=None if log.timestamps is None else log.timestamps[rows],
        user_ids=None if dataset.anonymous else users,
        exclude_seen=not dataset.repeats,
    )
    lists = recommend_all(model, requests, int(k))
    numbers = dataset.catalog.ids.encode(model.catalog.ids.external).astype(np.int64)
    # An item that only the model knows is no target, but has a place in the list.
    strangers = np.where(numbers > 0, numbers, dataset.catalog.num_items + np.arange(1, len(numbers) + 1))
    lists = torch.from_numpy(np.concatenate([[0], strangers]))[lists]
    values = ACCURACY[name](lists, single_targets(log, rows), int(k)).double()
    owners = torch.from_numpy(np.unique(users, return_inverse=True)[1])
    sums = torch.zeros(int(owners.max()) + 1 if len(owners) else 0, dtype=torch.float64).index_add_(0, owners, values)
    return sums / torch.bincount(owners, minlength=len(sums))


def popular_items(train: Dataset) -> Recommender:
    """Return the model `popularity` of some training data."""
    model: Recommender = build_component("model", {"name": "popularity"}, train.catalog)
    model.set_popularity_from(train)
    assert isinstance(model, ClosedForm)
    model.fit(train)
    return model.eval()


def judge(
    former: Tensor,
    new: Tensor,
    *,
    popular: Tensor,
    num_requests: int,
    metric: str,
    former_skill: float | None,
    margin: float,
    skill_share: float,
    min_users: int,
) -> Judgement:
    """Decide whether a new version is used.

    It is used if these three hold, in this order:

    1. There are enough users to judge by.
    2. The new events are plausible: the new version exceeds the most popular items on them by at least `skill_share` of
       what the version in use had exceeded them by on earlier events. Nobody can predict events whose items were mixed
       up, whatever was trained; but whoever learned from such events is better at them than who did not.
    3. It is not worse: the upper end of the interval of new - former is at least 0, and the mean of former - new at
       most `margin` times former. The first alone would let through large losses that few users cannot prove.

    Args:
        former: figure of each user by the version in use, [users].
        new: figure of each user by the new version, [users].
        popular: figure of each user by the most popular items, [users].
        num_requests: number of their requests.
        metric: name of the figure.
        former_skill: by how much the version in use exceeds the most popular items on earlier events; None: unknown. If
            it is not above 0 or unknown, 2 is not checked.
        margin: accepted relative loss.
        skill_share: accepted share of that skill.
        min_users: smallest number of users.

    """
    difference = paired_difference(new, former)
    mean_former, mean_new, mean_popular = (float(part.mean()) if len(part) else 0.0 for part in (former, new, popular))
    is_promoted, has_skill = False, former_skill is not None and former_skill > 0
    if len(former) < min_users:
        reason = f"{len(former)} users with requests are too few to judge by; there must be {min_users}"
    elif has_skill and mean_new - mean_popular < skill_share * (former_skill or 0.0):
        reason = (
            f"the newest events are implausible: the new version exceeds the most popular items by "
            f"{mean_new - mean_popular:+.4f} on them, and the version in use by {former_skill:+.4f} on earlier ones"
        )
    elif difference.high < 0:
        reason = "it is worse: the whole interval of the difference lies below 0"
    elif difference.mean < -margin * mean_former:
        reason = f"it may be worse: it loses more than {margin:.0%} of the figure"
    else:
        is_promoted = True
        reason = "it is better: the whole interval lies above 0" if difference.low > 0 else "it is not worse"
    return Judgement(
        metric,
        num_requests,
        len(former),
        mean_former,
        mean_new,
        difference,
        mean_popular,
        former_skill,
        is_promoted,
        reason,
    )
