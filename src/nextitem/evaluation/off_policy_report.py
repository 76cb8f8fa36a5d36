"""The report on a policy that was not served: estimates from a log and a table of its probabilities, and advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.evaluation.logged_lists import NO_EXPLORATION, LoggedLists, TargetPolicy
from nextitem.evaluation.off_policy import Estimate, by_user, estimates
from nextitem.evaluation.rates import Ratio

Floats = NDArray[np.float64]

NOTHING_TO_RELY_ON = "Explore more, collect longer, or compare a policy that is closer to the one that was served."


@dataclass(frozen=True)
class OffPolicyReport:
    """Estimates for one policy.

    Attributes:
        outcome: the outcome that is counted: reward of a list is its number of items with it.
        lists: number of lists that the estimates are made from.
        logged: mean reward of these lists, with its 95% interval.
        estimates: estimates for the policy.
        trusted: name of the estimator to rely on; None: of none.
        advice: a sentence that says why.
        notes: what was left out, a sentence each.

    """

    outcome: str
    lists: int
    logged: Ratio
    estimates: list[Estimate]
    trusted: str | None
    advice: str
    notes: list[str]


def off_policy_report(impressions: pl.DataFrame, target: pl.DataFrame, *, outcome: str) -> OffPolicyReport:
    """Return the estimates for a policy whose probabilities are in a table.

    Args:
        impressions: rows of the log, with propensity, slot, and the outcome as a boolean column (`attribution`).
        target: impression_id, slot, probability: the policy's probability of the item that was shown in this slot,
            given the items above it. Lists of the log that it does not contain are left out.
        outcome: the outcome to count.

    Raises:
        UserError: the log has no propensities or no exploration, or the table lacks a slot of a list that it contains.

    """
    logged, probabilities, notes = _explored_lists(impressions, target, outcome)
    values = np.where(logged.is_item, logged.rewards, 0.0).sum(1)
    result = estimates(logged, TargetPolicy(probabilities))
    mean = by_user(values, float(values.mean()), logged.users)
    return OffPolicyReport(outcome, len(values), mean, result, *advice(result, num_lists=len(values)), notes)


def advice(results: Sequence[Estimate], *, num_lists: int) -> tuple[str | None, str]:
    """Return the name of the estimator to rely on, and a sentence that says why; no name: there is none.

    The first without a warning of `dr`, `dros` and `iips`: nothing changed; a little bias; a strong assumption.
    """
    by_name = {each.estimator: each for each in results}
    plain = by_name["dr"]
    counting = f"the weights count as {plain.effective_size:,.0f} of {num_lists:,} lists"
    largest = f"the largest is {plain.largest_weight:,.3g}"
    if not plain.warnings:
        return "dr", f"Rely on dr: {counting}, and {largest}."
    shrunk, single = by_name["dros"], by_name["iips"]
    if not shrunk.warnings:
        limit = f"dros shrinks those above {shrunk.limit:,.3g}"
        return "dros", f"Rely on dros and expect some bias: {counting}, and {largest}; {limit}."
    if not single.warnings:
        return "iips", f"Rely on iips, and only if slots do not influence each other: {counting}, and {largest}."
    return None, f"Rely on no estimate: {counting}, and {largest}. {NOTHING_TO_RELY_ON}"


def _explored_lists(
    impressions: pl.DataFrame, target: pl.DataFrame, outcome: str
) -> tuple[LoggedLists, Floats, list[str]]:
    """Return the lists in which chance had a part, the target's probabilities, and notes on what is left out."""
    for table, frame, columns in (
        ("the log", impressions, ("propensity", "slot")),
        ("the table of the target policy", target, ("impression_id", "slot", "probability")),
    ):
        for column in columns:
            if column not in frame:
                raise UserError(f"{table} has no column {column!r}, which off-policy estimates need")
    is_explored = (pl.col("propensity") < 1).any().over("impression_id")
    explored = impressions.filter(is_explored)
    if not explored.height:
        raise UserError(NO_EXPLORATION)
    probabilities = target.select(
        pl.col("impression_id").cast(pl.String), pl.col("slot").cast(pl.Int32), pl.col("probability").cast(pl.Float64)
    ).unique(["impression_id", "slot"], keep="first", maintain_order=True)
    rows = explored.join(probabilities.select("impression_id").unique(), on="impression_id", how="semi")
    if not rows.height:
        raise UserError("the table of the target policy contains no list of the log that was explored")
    rows = rows.with_columns(pl.col("slot").cast(pl.Int32)).join(
        probabilities, on=["impression_id", "slot"], how="left"
    )
    lacking = rows.filter(pl.col("probability").is_null())
    if lacking.height:
        where = f"impression_id {lacking['impression_id'][0]!r}, slot {lacking['slot'][0]}"
        raise UserError(f"the table of the target policy lacks {where}; write a row for each slot of a list")
    num_lists, num_all = rows["impression_id"].n_unique(), impressions["impression_id"].n_unique()
    notes = []
    if num_lists < num_all:
        notes.append(
            f"{num_lists:,} of {num_all:,} lists count: those in which chance had a part, and for which there are "
            "probabilities of the target policy."
        )
    rows = rows.sort("impression_id", "slot").with_columns(
        pl.col("impression_id").rank("dense").cast(pl.Int64).alias("#list") - 1,
        pl.int_range(pl.len()).over("impression_id").alias("#place"),
        pl.coalesce("user_id", pl.lit("\0") + pl.col("impression_id")).rank("dense").cast(pl.Int64).alias("#user") - 1,
        pl.col("item_id").rank("dense").cast(pl.Int64).alias("#item") - 1,
    )
    shape = num_lists, int(rows["#place"].max()) + 1  # type: ignore[arg-type]
    place = rows["#list"].to_numpy(), rows["#place"].to_numpy()

    def padded(name: str, padding: float) -> Floats:
        result = np.full(shape, padding)
        result[place] = rows[name].cast(pl.Float64).to_numpy()
        return result

    users = rows.group_by("#list").agg(pl.col("#user").first()).sort("#list")["#user"].to_numpy()
    logged = LoggedLists(
        padded(outcome, 0.0),
        padded("propensity", 1.0),
        padded("#item", 0.0).astype(np.int64),
        padded("propensity", -1.0) >= 0,
        users,
    )
    return logged, padded("probability", 1.0), notes
