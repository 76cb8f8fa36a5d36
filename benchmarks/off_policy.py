"""Off-policy estimates: their errors on logs with known truth, and compared with Open Bandit Pipeline.

    python benchmarks/off_policy.py synthetic [--logs 400]
    python benchmarks/off_policy.py peer --python-obp OBP/bin/python
    python benchmarks/off_policy.py obd DATA/obd-men --python-obp OBP/bin/python

`synthetic` estimates a policy from simulated logs: 1,000 single actions of 20 in 5 contexts, from a logging policy that
differs little or much (the standard deviation of its scores is 1 or 2); and 500 lists of 3 of 6 items, whose upper
items take clicks from those below. It prints for each estimator the root mean squared error, the bias, the share of the
logs whose 95% interval contains the truth, and the mean effective size; and in how many logs the report would rely on
which estimator, with the coverage there (of `dr` where it relies on none).

`peer` computes the same estimates by the peer's classes from the same arrays, and prints the largest difference.

`obd` estimates the click rate of each of the two policies of the Open Bandit Dataset (men, small) from the log of the
other one, with the click rate that it has in its own log. The target is Bernoulli Thompson sampling with the priors of
production, as the peer computes it, or the shares of items in its log. Users are not recorded, so intervals count
impressions.

The peer: python3.9 -m venv OBP && OBP/bin/pip install numpy==1.21.6 scikit-learn==1.0.2 'pandas<1.4' scipy==1.7.3 tqdm
pyyaml matplotlib seaborn && OBP/bin/pip install --no-deps obp==0.5.7 torch==1.12.1 typing_extensions pyieoe pingouin
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from measure import HERE, Results, parser
from numpy.typing import NDArray

from nextitem.core.errors import UserError
from nextitem.evaluation.importance_weights import limits_of
from nextitem.evaluation.logged_lists import LoggedLists, TargetPolicy
from nextitem.evaluation.off_policy import Estimate, estimates
from nextitem.evaluation.off_policy_report import advice
from nextitem.evaluation.plackett_luce import plackett_luce, slot_probabilities
from nextitem.evaluation.rates import Rate, RateDifference, Ratio, difference, rate
from nextitem.evaluation.reward_model import Predictions

Floats = NDArray[np.float64]
Log = tuple[LoggedLists, TargetPolicy, float]  # a log, a target, and the true reward of a list under it

CONTEXTS, ACTIONS, ROWS = 5, 20, 1000
ITEMS, SLOTS, LISTS = 6, 3, 500
EXAMINATION = np.array([1.0, 0.7, 0.4])
CASCADE = 0.5  # share of the appeal of the items above that is taken from an item
LAMBDA: dict[str, Callable[[float], float]] = {  # what the peer calls lambda, for each of our limits
    "clipped-ips": lambda limit: limit,
    "sg-ips": lambda limit: 1 / limit,
    "switch-dr": lambda limit: limit,
    "dros": lambda limit: limit**2,
    "sg-dr": lambda limit: 1 / limit,
}


def action_log(seed: int, *, spread: float, num_rows: int = ROWS) -> Log:
    """Return a log of single actions; the target is the softmax of 4 times the click probabilities."""
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    appeal = fixed.uniform(0.02, 0.5, (CONTEXTS, ACTIONS))
    scores = fixed.normal(size=(CONTEXTS, ACTIONS)) * spread
    logging, target = (np.exp(each) / np.exp(each).sum(1, keepdims=True) for each in (scores, 4 * appeal))
    context = rng.integers(0, CONTEXTS, num_rows)
    items = (scores[context] + rng.gumbel(size=(num_rows, ACTIONS))).argmax(1)
    rewards = (rng.random(num_rows) < appeal[context, items]).astype(np.float64)
    columns = (rewards[:, None], logging[context, items][:, None], items[:, None])
    logged = LoggedLists(*columns, np.ones((num_rows, 1), np.bool_), np.arange(num_rows))
    candidates = np.broadcast_to(np.arange(ACTIONS), (num_rows, ACTIONS))
    policy = TargetPolicy(target[context, items][:, None], candidates, target[context][:, None])
    return logged, policy, float((target * appeal).sum(1).mean())


def list_log(seed: int, *, num_lists: int = LISTS) -> Log:
    """Return a log of lists that are sampled without replacement, with the probabilities of slots over all lists."""
    fixed, rng = np.random.default_rng(7), np.random.default_rng(seed)
    appeal, logging = fixed.uniform(0.02, 0.5, (CONTEXTS, ITEMS)), fixed.normal(size=(CONTEXTS, ITEMS)) * 0.6
    target = 3 * appeal
    context = rng.integers(0, CONTEXTS, num_lists)
    lists = (logging[context] + rng.gumbel(size=(num_lists, ITEMS))).argsort(1)[:, ::-1][:, :SLOTS]

    def chances(contexts: NDArray[np.int64], slates: NDArray[np.int64]) -> Floats:
        own = np.take_along_axis(appeal[contexts], slates, axis=1)
        result: Floats = EXAMINATION * own * np.clip(1 - CASCADE * (np.cumsum(own, axis=1) - own), 0, 1)
        return result

    rewards = (rng.random(lists.shape) < chances(context, lists)).astype(np.float64)
    overall = [slot_probabilities(np.exp(each), SLOTS)[context] for each in (logging, target)]
    of_items = [np.take_along_axis(each, lists[..., None], 2)[..., 0] for each in overall]
    propensities, _ = plackett_luce(logging[context], lists)
    probabilities, distributions = plackett_luce(target[context], lists)
    candidates = np.broadcast_to(np.arange(ITEMS), (num_lists, ITEMS))
    logged = LoggedLists(
        rewards, propensities, lists, np.ones(lists.shape, np.bool_), np.arange(num_lists), of_items[0]
    )
    policy = TargetPolicy(probabilities, candidates, distributions, of_items[1], overall[1])
    return logged, policy, _true_reward(target, chances)


def _true_reward(target: Floats, chances: Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]) -> float:
    """Return the expected clicks of a list, summed over contexts and all lists."""
    every = np.stack(np.meshgrid(*[np.arange(ITEMS)] * SLOTS, indexing="ij"), -1).reshape(-1, SLOTS)
    every = every[(np.diff(np.sort(every, axis=1), axis=1) > 0).all(1)]
    total = 0.0
    for context in range(CONTEXTS):
        probabilities, _ = plackett_luce(np.repeat(target[context][None], len(every), 0), every)
        expected = chances(np.full(len(every), context), every).sum(1)
        total += float((probabilities.prod(1) * expected).sum()) / CONTEXTS
    return total


WORLDS: Mapping[str, Callable[[int], Log]] = {
    "actions, similar policies": lambda seed: action_log(seed, spread=1.0),
    "actions, different policies": lambda seed: action_log(seed, spread=2.0),
    "lists of three": list_log,
}


def measure_synthetic(arguments: argparse.Namespace, results: Results) -> None:
    """Add a row for each world and estimator."""
    for world, make in WORLDS.items():
        entries: dict[str, list[tuple[float, bool, float, float]]] = {}
        trusted: dict[str, list[bool]] = {}
        for seed in range(arguments.seed, arguments.seed + arguments.logs):
            logged, target, truth = make(seed)
            results_of_log = estimates(logged, target)
            name, _ = advice(results_of_log, num_lists=len(logged.users))
            for each in results_of_log:
                is_covered = each.reward.low <= truth <= each.reward.high
                entry = (each.reward.value - truth, is_covered, each.effective_size, each.reward.high - each.reward.low)
                entries.setdefault(each.estimator, []).append(entry)
                if each.estimator == (name or "dr"):
                    trusted.setdefault(name or "none", []).append(is_covered)
        for estimator, rows in entries.items():
            errors, covered, sizes, widths = np.array(rows, dtype=np.float64).T
            figures = {
                "world": world,
                "estimator": estimator,
                "rmse": round(float(np.sqrt((errors**2).mean())), 4),
                "bias": round(float(errors.mean()), 4),
                "coverage": round(float(covered.mean()), 3),
                "width": round(float(widths.mean()), 4),
                "effective size": round(float(sizes.mean())),
            }
            results.add_printed("synthetic", {**figures, "truth": round(truth, 4), "logs": len(rows)})
        for choice, covered_logs in trusted.items():
            coverage = round(sum(covered_logs) / len(covered_logs), 3)
            results.add_printed(
                "advice", {"world": world, "rely on": choice, "logs": len(covered_logs), "coverage": coverage}
            )


def measure_peer(arguments: argparse.Namespace, results: Results) -> None:
    """Add the largest difference to the peer's estimates, and how often both select the same limit."""
    for world, make in WORLDS.items():
        logs = [make(seed)[:2] for seed in range(arguments.seed, arguments.seed + arguments.peer_logs)]
        is_list = logs[0][0].rewards.shape[1] > 1
        owns, arrays = zip(*[(list_arrays if is_list else action_arrays)(*log) for log in logs], strict=True)
        peers = by_peer(arguments.python_obp, arrays, what="lists" if is_list else "actions")
        results.add_printed("peer", {"world": world, **compared(owns, peers)})


def compared(owns: Sequence[Mapping[str, float]], peers: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the largest difference to the peer of each estimator, and how often both select the same limit."""
    differences: dict[str, float] = {}
    num_equal, num_selected = 0, 0
    for own, peer in zip(owns, peers, strict=True):
        for name, value in own.items():
            if name.endswith(" tuned"):
                num_selected += 1
                num_equal += math.isclose(value, peer[name], rel_tol=1e-9)
            else:
                differences[name] = max(differences.get(name, 0.0), abs(value - peer[name]))
    row: dict[str, Any] = {"logs": len(owns), "largest difference": differences}
    return row | {"selected": num_selected, "selected as the peer": num_equal}


def action_arrays(logged: LoggedLists, target: TargetPolicy) -> tuple[dict[str, float], dict[str, Any]]:
    """Return our estimates from single actions, and the arrays of the peer; rewards are predicted by item."""
    assert target.distributions is not None
    distribution = target.distributions[:, 0]
    items, size = logged.items[:, 0], distribution.shape[1]
    rewards = np.bincount(items, weights=logged.rewards[:, 0], minlength=size)
    means: Floats = (rewards + 1.0) / (np.bincount(items, minlength=size) + 5.0)
    q_hat = np.broadcast_to(means, distribution.shape)
    expected = (distribution * q_hat).sum(1, keepdims=True)
    result = estimates(logged, target, predicted=Predictions(means[logged.items], expected, is_overall=True))
    arrays: dict[str, Any] = {
        "reward": logged.rewards[:, 0],
        "action": logged.items[:, 0],
        "pscore": logged.propensities[:, 0],
        "action_dist": distribution,
        "q_hat": q_hat,
    }
    own = {each.estimator: each.reward.value for each in result if each.estimator not in ("rips", "iips")}
    limits = limits_of(target.probabilities / logged.propensities)
    for each in result:
        if each.limit is not None:
            to_lambda = LAMBDA[each.estimator]
            arrays[f"lambda_{each.estimator}"] = to_lambda(each.limit)
            arrays[f"grid_{each.estimator}"] = [to_lambda(limit) for limit in limits]
            own[f"{each.estimator} tuned"] = each.reward.value
    return own, arrays


def list_arrays(logged: LoggedLists, target: TargetPolicy) -> tuple[dict[str, float], dict[str, Any]]:
    """Return our estimates from lists, and the arrays of the peer; rewards are predicted by slot and item."""
    assert target.distributions is not None
    model = np.random.default_rng(0).uniform(0, 0.5, (SLOTS, ITEMS))
    predicted = model[np.arange(SLOTS), logged.items]
    expected = (target.distributions * model).sum(2)
    result = estimates(logged, target, predicted=Predictions(predicted, expected, is_overall=False))
    names = ("ips", "snips", "rips", "iips", "dr")
    arrays: dict[str, Any] = {
        "reward": logged.rewards,
        "action": logged.items,
        "q_hat": np.broadcast_to(model, target.distributions.shape),
        "action_dist": target.distributions,
        "slot_0": logged.overall_propensities,
        "slot_1": target.overall_probabilities,
    }
    for number, chances in enumerate((logged.propensities, target.probabilities)):
        above = np.cumprod(chances, axis=1)
        arrays |= {f"above_{number}": above, f"whole_{number}": np.repeat(above[:, -1:], SLOTS, 1)}
    return {each.estimator: each.reward.value for each in result if each.estimator in names}, arrays


def by_peer(python: str, arrays: Sequence[Mapping[str, Any]], *, what: str) -> list[dict[str, float]]:
    """Return the estimates of the peer from each log."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{number}.npz") for number in range(len(arrays))]
        for file, each in zip(files, arrays, strict=True):
            np.savez(file, **each)
        result: list[dict[str, float]] = json.loads(printed_by_peer(python, *files, what=what))
    return result


def printed_by_peer(python: str, *inputs: str, what: str) -> str:
    """Return the last line that the peer's driver prints."""
    line = [python, str(HERE / "peers" / "obp_estimators.py"), *inputs, "--what", what]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.splitlines()[-1]


def measure_obd(arguments: argparse.Namespace, results: Results) -> None:
    """Add the estimates of each policy from the log of the other, and the click rate that it has in its own."""
    table = pl.read_parquet(Path(arguments.dataset) / "impressions.parquet")
    logs = {str(name): part for (name,), part in table.group_by("policy", maintain_order=True)}
    if set(logs) != {"random", "bts"}:
        raise UserError(f"{arguments.dataset} has the policies {', '.join(sorted(logs))}; random and bts are needed")
    rates = {name: click_rate(part) for name, part in logs.items()}
    for name, own in rates.items():
        figures = {"policy": name, "impressions": own.units, "clicks": own.successes}
        results.add_printed("own log", figures | {"percent": percent(own.value), **interval(own)})
    gain = difference(*[(clicks(logs[name]), np.ones(len(logs[name]))) for name in ("bts", "random")])
    figures = {"bts less random, percent": percent(gain.value), **interval(gain), "p": round(gain.p_value, 3)}
    results.add_printed("own logs", figures)
    production = np.array(json.loads(printed_by_peer(arguments.python_obp, "men", what="bernoulli-ts")))
    shares = np.zeros((34, 3))
    np.add.at(shares, (logs["bts"]["item_id"].to_numpy(), logs["bts"]["slot"].to_numpy() - 1), 1)
    targets = {
        "bts, priors of production": ("random", "bts", production),
        "bts, shares of its log": ("random", "bts", shares / shares.sum(0)),
        "random": ("bts", "random", np.full((34, 3), 1 / 34)),
    }
    for title, (source, name, distribution) in targets.items():
        logged, target = obd_lists(logs[source], distribution)
        result = estimates(logged, target)
        for each in result:
            if each.estimator not in ("rips", "iips"):
                results.add_printed("estimate", obd_row(title, source, rates[name], each))
        results.add_printed("advice", {"target": title, "advice": advice(result, num_lists=len(logged.users))[1]})
        ours, arrays = action_arrays(logged, target)
        peers = by_peer(arguments.python_obp, [arrays], what="actions")
        results.add_printed("peer", {"target": title, **compared([ours], peers)})


def click_rate(log: pl.DataFrame) -> Rate:
    """Return the share of impressions with a click."""
    return rate(clicks(log), np.ones(len(log)))


def clicks(log: pl.DataFrame) -> Floats:
    """Return whether each impression was clicked, 0 or 1."""
    return log["click"].to_numpy().astype(np.float64)


def percent(value: float) -> float:
    """Return a share in percent, rounded."""
    return round(100 * value, 3)


def interval(figure: Ratio | Rate | RateDifference) -> dict[str, float]:
    """Return the ends of the interval of a figure, in percent."""
    return {"low": percent(figure.low), "high": percent(figure.high)}


def obd_lists(log: pl.DataFrame, distribution: Floats) -> tuple[LoggedLists, TargetPolicy]:
    """Return impressions as lists of one slot, and a target with these probabilities of items in places, [34, 3]."""
    items, places = log["item_id"].to_numpy(), log["slot"].to_numpy() - 1
    count = len(items)
    logged = LoggedLists(
        clicks(log)[:, None],
        log["propensity"].to_numpy()[:, None],
        items[:, None],
        np.ones((count, 1), np.bool_),
        np.arange(count),
    )
    candidates = np.broadcast_to(np.arange(34), (count, 34))
    return logged, TargetPolicy(distribution[items, places][:, None], candidates, distribution.T[places][:, None])


def obd_row(target: str, source: str, own: Rate, estimate: Estimate) -> dict[str, Any]:
    """Return the figures of one estimate, in clicks per 100 impressions.

    The interval of its difference to the rate of the policy's own log contains the chance of both logs.
    """
    reward = estimate.reward
    half = math.hypot(reward.high - reward.value, (own.high - own.low) / 2)
    gap = reward.value - own.value
    impressions = own.units * ((reward.high - reward.value) / (0.1 * reward.value)) ** 2
    return {
        "target": target,
        "log": source,
        "estimator": estimate.estimator,
        "percent": percent(reward.value),
        **interval(reward),
        "less its own rate": [percent(each) for each in (gap, gap - half, gap + half)],
        "impressions for 10%": round(impressions, -3),
        "effective size": round(estimate.effective_size),
        "largest weight": round(estimate.largest_weight, 1),
        "limit": None if estimate.limit in (None, math.inf) else round(estimate.limit or 0.0, 2),
        "warnings": len(estimate.warnings),
    }


def main() -> None:
    options = parser(__doc__, seed=0, logs=400, peer_logs=20)
    options.add_argument("what", choices=["synthetic", "peer", "obd"])
    options.add_argument("dataset", nargs="?", help="of obd: the folder of the data set")
    options.add_argument("--python-obp", default="python", help="Python of an environment with obp")
    arguments = options.parse_args()
    if arguments.what == "obd" and arguments.dataset is None:
        options.error("obd needs the folder of the data set")
    work = {"synthetic": measure_synthetic, "peer": measure_peer, "obd": measure_obd}[arguments.what]
    work(arguments, Results(arguments))


if __name__ == "__main__":
    main()
