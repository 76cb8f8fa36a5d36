"""Long-term measures of a policy, for each customer: sessions, return, satisfaction, diversity, retention, regret.

Shapes: C customers of the world.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from nextitem.data.shop.truth import Floats, Ints
from nextitem.simulation.answers import DAY
from nextitem.simulation.rollout import Rollout

RETURN_DAYS = 7.0
MEASURES = {
    "sessions": "visits of a customer",
    "clicks": "clicks of a customer",
    "purchases": "purchases of a customer",
    "clicks_per_list": "expected clicks of a list",
    "return_rate": f"share of visits after which the customer comes back within {RETURN_DAYS:g} days",
    "satisfaction": "probability that a list is clicked at all",
    "diversity": "probability that two clicks of a customer are on items of different groups",
    "retention": f"share of customers who visit in the last {RETURN_DAYS:g} days; in fewer than 14 days, the last half",
    "regret": "expected clicks that a list has less than the best one for the customer's state",
    "regret_share": "regret as a share of the expected clicks of the best list",
}


def customer_measures(rollout: Rollout) -> dict[str, Floats]:
    """Return each measure for each customer, [C]; NaN if the customer's visits do not tell.

    Measures of lists are means over a customer's visits. The return rate counts visits that are early enough to see
    whether the customer returns.
    """
    world, visits = rollout.world, rollout.visits
    size = world.num_customers
    customers: Ints = visits["customer"].to_numpy() if visits.height else np.empty(0, np.int64)
    counts = np.bincount(customers, minlength=size).astype(np.float64)

    def total(name: str) -> Floats:
        values = visits[name].to_numpy() if visits.height else np.empty(0)
        return np.bincount(customers, weights=values, minlength=size).astype(np.float64)

    with np.errstate(invalid="ignore", divide="ignore"):
        value, best = total("value"), total("best_value")
        return {
            "sessions": counts,
            "clicks": total("clicks"),
            "purchases": total("purchases"),
            "clicks_per_list": value / counts,
            "return_rate": _return_rate(rollout, customers),
            "satisfaction": total("appeal") / counts,
            "diversity": _diversity(rollout),
            "retention": _is_retained(rollout),
            "regret": (best - value) / counts,
            "regret_share": np.where(best > 0, (best - value) / best, np.nan),
        }


def bound_gap(rollout: Rollout) -> float:
    """Return the largest share by which the best lists can be better than those that regret is measured against.

    It is a mean over the visits; 0: all are proven to be best.
    """
    if not rollout.visits.height:
        return 0.0
    best, bound = (np.nansum(rollout.visits[name].to_numpy()) for name in ("best_value", "bound"))
    return float(bound / best - 1) if best else 0.0


def _is_retained(rollout: Rollout) -> Floats:
    """Return whether each customer visits near the end, 0 or 1, [C]."""
    world = rollout.world
    window = min(RETURN_DAYS * DAY, (world.end - world.start) / 2)
    late = rollout.visits.filter(pl.col("time") >= world.end - window) if rollout.visits.height else rollout.visits
    result = np.zeros(world.num_customers)
    if late.height:
        result[late["customer"].to_numpy()] = 1.0
    return result


def _return_rate(rollout: Rollout, customers: Ints) -> Floats:
    """Return the share of each customer's visits after which the next one comes within RETURN_DAYS, [C]."""
    world, size = rollout.world, rollout.world.num_customers
    if not rollout.visits.height:
        return np.full(size, np.nan)
    times = rollout.visits["time"].to_numpy()
    order = np.lexsort((times, customers))
    who, when = customers[order], times[order]
    following = np.append(when[1:], 0.0)
    is_last = np.append(who[1:] != who[:-1], True)
    following[is_last] = rollout.next_times[who[is_last]]
    is_counted = when < world.end - RETURN_DAYS * DAY
    returns = is_counted & (following - when <= RETURN_DAYS * DAY)
    result: Floats = np.bincount(who, weights=returns, minlength=size) / np.bincount(
        who, weights=is_counted, minlength=size
    )
    return result


def _diversity(rollout: Rollout) -> Floats:
    """Return the probability that two clicks of each customer are on items of different groups, [C]."""
    size, groups = rollout.world.num_customers, rollout.world.groups
    if not rollout.shown_items.height:
        return np.full(size, np.nan)
    clicks = rollout.shown_items.filter("click").join(rollout.visits.select("visit", "customer"), on="visit")
    table = np.zeros((size, int(groups.max()) + 1))
    np.add.at(table, (clicks["customer"].to_numpy(), groups[clicks["row"].to_numpy()]), 1)
    count = table.sum(axis=1)
    same = (table * (table - 1)).sum(axis=1) / (count * (count - 1))
    result: Floats = np.where(count > 1, 1 - same, np.nan)
    return result


def measure_table(rollout: Rollout) -> pl.DataFrame:
    """Return the measures of each customer as a table with a row for each."""
    return pl.DataFrame({"user_id": rollout.world.user_ids, **customer_measures(rollout)})
