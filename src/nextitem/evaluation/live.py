"""Figures of served models from the log of shown lists and the events that followed: what `report --live` prints.

All intervals count users, not lists: the lists of one user resemble each other. A visitor without an id counts as a
user of one list. Figures of a model include its fallback lists, because its users were shown those, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from math import isfinite
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.evaluation.attribution import ANY, DAY_MS, DEFAULT_OUTCOMES, Attribution, Outcome, attribute
from nextitem.evaluation.metrics.beyond_accuracy import coverage, gini, novelty
from nextitem.evaluation.off_policy_report import OffPolicyReport
from nextitem.evaluation.rates import Floats, Rate, RateDifference, difference, holm, rate, sums

# "sasrec 0a1b2c3d fallback: deadline": model, fingerprint of its version, and what else the server notes.
POLICY = r"^(.+?) ([0-9a-f]{8,64})(?: .*)?$"
FALLBACK = r" fallback: (.*)$"
MAX_PAIRS_ALL = 4  # models up to which all pairs are compared; of more, each is compared with the first


@dataclass(frozen=True)
class SlotRate:
    """Rate of the first outcome among the items of one slot."""

    slot: int
    rate: Rate


@dataclass(frozen=True)
class PolicyFigures:
    """Figures of one version of a model.

    Attributes:
        model: name of the model.
        version: fingerprint of its weights and settings; empty if the log has none, or if versions are pooled.
        lists: number of lists.
        users: number of users, each visitor without an id counted as one.
        impressions: number of items in the lists.
        first_ms: time of the first list, milliseconds since 1970.
        last_ms: time of the last list.
        fallbacks: number of lists that the model did not make, by reason.
        explored: number of lists in which chance had a part: a propensity is below 1.
        list_rates: outcome -> share of the lists with it.
        impression_rates: outcome -> share of the shown items with it.
        slot_rates: rates of the first outcome by slot.
        novelty: mean self-information of the shown items in bits; items with few events have more.
        distinct_items: number of distinct items shown.
        coverage: their share of all items that any model showed or that have an event.
        gini: concentration of the impressions on few of these items: 0 if all are shown equally often.

    """

    model: str
    version: str
    lists: int
    users: int
    impressions: int
    first_ms: int
    last_ms: int
    fallbacks: dict[str, int]
    explored: int
    list_rates: dict[str, Rate]
    impression_rates: dict[str, Rate]
    slot_rates: list[SlotRate]
    novelty: float
    distinct_items: int
    coverage: float
    gini: float
    name: str = ""


@dataclass(frozen=True)
class PolicyDifference:
    """How much more often lists of one model have an outcome than those of another.

    Attributes:
        first: name of a policy.
        second: name of the policy that it is compared with.
        outcome: the outcome.
        difference: first minus second, of the shares of lists.
        adjusted_p_value: p-value that is adjusted for the number of pairs with this outcome.

    """

    first: str
    second: str
    outcome: str
    difference: RateDifference
    adjusted_p_value: float

    @property
    def is_real(self) -> bool:
        """Whether the difference is more than chance: at most 5% of logs of equal models show any such difference."""
        return self.adjusted_p_value < 0.05


@dataclass(frozen=True)
class LiveReport:
    """What the logs tell about the served models.

    Attributes:
        outcomes: names of the outcomes, the main one first.
        policies: figures by version of a model, those with the most lists first.
        differences: differences of the models, by outcome and pair.
        events: number of events: by_request, by_item and unattributed.
        notes: what to be careful about, a sentence each.
        off_policy: estimates for a policy that was not served, if they were asked for.

    """

    outcomes: list[str]
    policies: list[PolicyFigures]
    differences: list[PolicyDifference]
    events: dict[str, int]
    notes: list[str]
    off_policy: OffPolicyReport | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the report as objects of JSON; figures that are not finite are null."""
        result = _finite(asdict(self))
        for entry, pair in zip(result["differences"], self.differences, strict=True):
            entry["is_real"] = pair.is_real
        return dict(result)


def live_report(
    impressions: pl.DataFrame,
    events: pl.DataFrame,
    *,
    outcomes: Sequence[Outcome] = DEFAULT_OUTCOMES,
    window_ms: int = DAY_MS,
    pools_versions: bool = False,
) -> tuple[LiveReport, Attribution]:
    """Return the report on the served models, and the impressions with their outcomes.

    Args:
        impressions: the log of shown lists, in the layout of impressions.parquet, timestamps in milliseconds.
        events: events as in `attribution.EVENT_SCHEMA`.
        outcomes: what counts as an answer to a list.
        window_ms: longest time from a list to an event that does not name it, in milliseconds.
        pools_versions: whether all versions of a model count as one, for a model that is updated while it serves.

    Raises:
        UserError: the log contains no list.

    """
    if not impressions.height:
        raise UserError("the log of impressions contains no list; serve some requests first")
    attribution = attribute(impressions, events, outcomes=outcomes, window_ms=window_ms)
    names, notes = _present(attribution.impressions, outcomes)
    log = _Log(attribution.impressions, events, names, pools_versions=pools_versions)
    policies = [log.figures(number) for number in range(len(log.policies))]
    differences = _differences(log, [policy.name for policy in policies])
    counts = {
        "by_request": attribution.by_request,
        "by_item": attribution.by_item,
        "unattributed": attribution.unattributed,
    }
    return LiveReport(names, policies, differences, counts, notes + _cautions(policies, log)), attribution


def policy_parts() -> list[pl.Expr]:
    """Return model, version and reason of fallback (null: none) of the column `policy` of a log."""
    policy = pl.col("policy").fill_null("unknown")
    return [
        pl.coalesce(policy.str.extract(POLICY, 1), policy.str.replace(FALLBACK, "")).alias("model"),
        policy.str.extract(POLICY, 2).fill_null("").alias("version"),
        policy.str.extract(FALLBACK, 1).alias("fallback"),
    ]


class _Log:
    """Lists of a log as arrays: their policy, user, number of items, and number of items with each outcome."""

    def __init__(
        self, impressions: pl.DataFrame, events: pl.DataFrame, outcomes: Sequence[str], *, pools_versions: bool
    ) -> None:
        self.outcomes = outcomes
        model, version, fallback = policy_parts()
        version = pl.lit("").alias("version") if pools_versions else version
        rows = impressions.with_columns(
            model, version, fallback, pl.coalesce("user_id", pl.lit("\0") + pl.col("impression_id")).alias("#user")
        )
        if "slot" not in rows:
            rows = rows.with_columns(pl.int_range(1, pl.len() + 1).over("impression_id").alias("slot"))
        is_explored = (pl.col("propensity") < 1).any() if "propensity" in rows else pl.lit(False)
        lists = rows.group_by("impression_id", maintain_order=True).agg(
            pl.col("model", "version", "fallback", "#user", "timestamp").first(),
            pl.len().alias("#items"),
            is_explored.alias("#explored"),
            pl.col(outcomes).sum(),
        )
        sizes = lists.group_by("model", "version").agg(pl.len().alias("lists"), pl.col("timestamp").min())
        self.policies = sizes.sort(["lists", "timestamp", "model"], descending=[True, False, False])
        keys = self.policies.select("model", "version").with_row_index("#policy")
        self.lists = lists.join(keys, on=["model", "version"], maintain_order="left")
        self.rows = rows.join(keys, on=["model", "version"], maintain_order="left")
        self.users = self.lists["#user"].rank("dense").to_numpy().astype(np.int64) - 1
        self.num_users = int(self.users.max()) + 1
        self.codes = pl.concat([rows["item_id"], events["item_id"]]).unique(maintain_order=True)
        counts = events.group_by("item_id").len()
        popularity = pl.DataFrame({"item_id": self.codes}).join(counts, on="item_id", how="left", maintain_order="left")
        self.popularity = torch.tensor([0, *popularity["len"].fill_null(0).to_list()])

    def sums(self, policy: int, column: str, *, is_list: bool) -> tuple[Floats, Floats]:
        """Return the number of units with an outcome and of all units of each user, [U]: lists, or items."""
        is_own = (self.lists["#policy"] == policy).to_numpy()
        values, sizes = self.lists[column].to_numpy()[is_own], self.lists["#items"].to_numpy()[is_own]
        successes, units = (values > 0, np.ones(len(values))) if is_list else (values, sizes)
        return self._by_user(is_own, successes), self._by_user(is_own, units)

    def _by_user(self, is_own: NDArray[np.bool_], values: NDArray[Any]) -> Floats:
        return sums(values, self.users[is_own], num_clusters=self.num_users)

    def figures(self, number: int) -> PolicyFigures:
        """Return the figures of one policy."""
        model, version, num_lists, _ = self.policies.row(number)
        is_own = (self.lists["#policy"] == number).to_numpy()
        lists, rows = self.lists.filter(is_own), self.rows.filter(pl.col("#policy") == number)
        reasons = lists["fallback"].drop_nulls().value_counts().sort("count", "fallback", descending=[True, False])
        padded = self._padded(rows)
        num_items = len(self.codes)
        is_alone = (self.policies["model"] == model).sum() == 1
        return PolicyFigures(
            model=model,
            version=version,
            name=model if is_alone or not version else f"{model} {version[:8]}",
            lists=num_lists,
            users=len(np.unique(self.users[is_own])),
            impressions=rows.height,
            first_ms=int(lists["timestamp"].min()),  # type: ignore[arg-type]
            last_ms=int(lists["timestamp"].max()),  # type: ignore[arg-type]
            fallbacks=dict(reasons.iter_rows()),
            explored=int(lists["#explored"].sum()),
            list_rates={name: rate(*self.sums(number, name, is_list=True)) for name in self.outcomes},
            impression_rates={name: rate(*self.sums(number, name, is_list=False)) for name in self.outcomes},
            slot_rates=self._slots(rows),
            novelty=float(novelty(padded, self.popularity).nanmean()),
            distinct_items=rows["item_id"].n_unique(),
            coverage=coverage(padded, num_items=num_items),
            gini=gini(padded, num_items=num_items),
        )

    def _slots(self, rows: pl.DataFrame) -> list[SlotRate]:
        result = []
        for (slot,), part in rows.group_by("slot", maintain_order=True):
            users = part["#user"].rank("dense").to_numpy().astype(np.int64) - 1
            hits = part[self.outcomes[0]].to_numpy()
            result.append(SlotRate(int(str(slot)), rate(sums(hits, users), sums(np.ones(len(hits)), users))))
        return sorted(result, key=lambda entry: entry.slot)

    def _padded(self, rows: pl.DataFrame) -> torch.Tensor:
        """Return the numbers of the items of each list, [B, K], 0 is padding."""
        codes = pl.DataFrame({"item_id": self.codes}).with_row_index("#item", offset=1)
        frame = rows.select(
            pl.col("impression_id").rank("dense").cast(pl.Int64).alias("#list"),
            pl.int_range(pl.len()).over("impression_id").alias("#place"),
            "item_id",
        ).join(codes, on="item_id", maintain_order="left")
        padded = torch.zeros(int(frame["#list"].max()), int(frame["#place"].max()) + 1, dtype=torch.int64)  # type: ignore[arg-type]
        padded[frame["#list"].to_torch() - 1, frame["#place"].to_torch()] = frame["#item"].cast(pl.Int64).to_torch()
        return padded


def _present(rows: pl.DataFrame, outcomes: Sequence[Outcome]) -> tuple[list[str], list[str]]:
    """Return the outcomes that occur and tell something, at least one, and a note for those that do not occur."""
    names = [outcome.name for outcome in outcomes if rows[outcome.name].any()]
    notes = [
        f"No event of a shown item has an action that counts as {outcome.name}."
        for outcome in outcomes
        if outcome.name not in names
    ]
    if ANY in names and any(rows[ANY].equals(rows[name], check_names=False) for name in names if name != ANY):
        names.remove(ANY)
    return names or [outcomes[0].name], notes


def _differences(log: _Log, names: Sequence[str]) -> list[PolicyDifference]:
    """Return the difference of each pair of policies in each outcome."""
    numbers = range(len(names))
    pairs = [(second, first) for first, second in combinations(numbers, 2)]
    if len(names) > MAX_PAIRS_ALL:
        pairs = [(number, 0) for number in numbers[1:]]
    result = []
    for outcome in log.outcomes:
        sums = {number: log.sums(number, outcome, is_list=True) for number in numbers}
        values = [difference(sums[first], sums[second]) for first, second in pairs]
        adjusted = holm([value.p_value for value in values])
        result += [
            PolicyDifference(names[first], names[second], outcome, value, p_value)
            for (first, second), value, p_value in zip(pairs, values, adjusted, strict=True)
        ]
    return result


def _cautions(policies: Sequence[PolicyFigures], log: _Log) -> list[str]:
    """Return what a reader should be careful about."""
    notes = []
    for first, second in combinations(policies, 2):
        overlap = min(first.last_ms, second.last_ms) - max(first.first_ms, second.first_ms)
        longest = max(first.last_ms - first.first_ms, second.last_ms - second.first_ms)
        if overlap < longest / 2:
            notes.append(
                f"{first.name} and {second.name} were served at different times: a difference may be one of the times."
            )
    both = log.lists.group_by("#user").agg(pl.col("#policy").n_unique() > 1)["#policy"].sum()
    if both:
        notes.append(f"{both:,} users saw lists of several models: what one model showed may have helped the other.")
    for policy in policies:
        num_fallbacks = sum(policy.fallbacks.values())
        if num_fallbacks > policy.lists / 10:
            share = num_fallbacks / policy.lists
            notes.append(f"{share:.0%} of the lists of {policy.name} are fallbacks, which say nothing of the model.")
    return notes


def _finite(value: Any) -> Any:
    """Return the value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value
