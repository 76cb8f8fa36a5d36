"""A world that is fitted to a log: it recovers what made the log, and says what it cannot know."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest

from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.simulation.answers import DAY
from nextitem.simulation.fitted_world import FittedConfig, FittedWorld
from nextitem.simulation.measures import customer_measures
from nextitem.simulation.policies import OptimalLists, Policy, PopularItems, RandomItems
from nextitem.simulation.rollout import roll_out
from nextitem.simulation.user_model import UserModel, fit_user_model, item_groups, states_after

LOOKS = (1.0, 0.6, 0.3)
GAPS = (9.0, 3.0)  # days after visits without and with a click


@cache
def log_of_two_tastes() -> Dataset:
    """Return lists of random items for users of two tastes, who click items of their own taste, as LOOKS let them."""
    rng = np.random.default_rng(0)
    num_items = 24
    clicks: list[tuple[Any, ...]] = []
    shown_items: list[tuple[Any, ...]] = []
    for user in range(160):
        time = 1_700_000_000 + rng.random() * 10 * DAY
        while time < 1_700_000_000 + 100 * DAY:
            items = rng.permutation(num_items)[:3]
            chance = np.where(items % 2 == user % 2, 0.5, 0.04) * np.array(LOOKS)
            is_click = rng.random(3) < chance
            stamp = int(time)
            request = len(shown_items)
            shown_items += [
                (f"r{request}", user, int(item), stamp, slot + 1, int(click))
                for slot, (item, click) in enumerate(zip(items, is_click, strict=True))
            ]
            clicks += [(user, int(item), stamp + 5) for item in items[is_click]]
            time += max(1.0, rng.exponential(GAPS[int(is_click.any())])) * DAY
    names = ["impression_id", "user_id", "item_id", "timestamp", "slot", "click"]
    impressions = pl.DataFrame(shown_items, schema=names, orient="row")
    table = pl.DataFrame({"item_id": range(num_items), "category": [f"c{item % 4}" for item in range(num_items)]})
    return Dataset.from_frames(
        pl.DataFrame(clicks, schema=["user_id", "item_id", "timestamp"], orient="row"),
        items=table,
        impressions=impressions,
        settings={"impressions": {"labels": ["click"]}, "items": {"features": {"category": "categorical"}}},
    )


@cache
def model() -> UserModel:
    return fit_user_model(log_of_two_tastes())


def fitted_world(**settings: Any) -> FittedWorld:
    return FittedWorld(log_of_two_tastes(), model(), FittedConfig(**{"customers": 60, "days": 30, **settings}))


def test_the_model_recovers_looks_tastes_and_return_times() -> None:
    found_model = model()
    assert found_model.examination == pytest.approx(LOOKS, abs=0.06)
    figures = found_model.figures
    assert figures["log_loss"] < 0.9 * figures["log_loss_of_rates"]
    assert figures["mean_prediction"] == pytest.approx(figures["click_share"], abs=0.02)
    assert figures["calibration_error"] < 0.06
    assert found_model.fatigue < 0.3  # there is none in the log
    assert found_model.gaps[1] == pytest.approx(GAPS[1], rel=0.25)
    assert found_model.gaps[0] == pytest.approx(GAPS[0], rel=0.25)
    assert figures["gap_log_loss"] < figures["gap_log_loss_of_mean"]
    simulated = fitted_world()
    chance = 1 / (1 + np.exp(-simulated.list_problem(np.arange(60), simulated.first_times()).appeal))
    owners = np.array([int(user) % 2 for user in simulated.user_ids])
    is_own = np.arange(24) % 2 == owners[:, None]
    assert chance[is_own].mean() == pytest.approx(0.5, abs=0.12)
    assert chance[~is_own].mean() < 0.15


def test_the_best_lists_of_the_model_have_no_regret_in_its_world() -> None:
    rollouts = {}
    for name in ("optimal", "popularity", "random"):
        simulated = fitted_world()
        policies: dict[str, Policy] = {
            "optimal": OptimalLists(simulated),
            "popularity": PopularItems(log_of_two_tastes().interactions.item_counts()[1:]),
            "random": RandomItems(0),
        }
        rollouts[name] = customer_measures(roll_out(simulated, policies[name]))
    regret = {name: np.nanmean(values["regret"]) for name, values in rollouts.items()}
    assert regret["optimal"] == pytest.approx(0, abs=1e-12)
    assert regret["random"] > 0.3
    sessions = {name: values["sessions"].mean() for name, values in rollouts.items()}
    assert sessions["optimal"] > sessions["random"]


def test_a_click_moves_the_taste_to_the_item() -> None:
    simulated = fitted_world(customers=20)
    who, times = np.arange(20), simulated.first_times()
    rows = np.argsort(-simulated.list_problem(who, times).appeal, axis=1)[:, :3]
    before = simulated.recent.copy()
    answers = simulated.answers(who, times, np.ones(20, np.int64), rows)
    for customer in range(20):
        items = rows[customer][answers.clicks[customer]]
        if not len(items):
            assert (simulated.recent[customer] == before[customer]).all()
            continue
        assert simulated.last_items[customer] == items[-1]
        gap = simulated.recent[customer] - simulated.model.vectors[items[-1]]
        if len(items) == 1:
            assert gap == pytest.approx(0.7 * (before[customer] - simulated.model.vectors[items[-1]]))


def test_states_after_events_follow_each_user() -> None:
    vectors = np.eye(3)
    recent, last = states_after(np.array([1, 1, 2]), np.array([0, 1, 2]), vectors)
    assert recent == pytest.approx(np.array([[1, 0, 0], [0.7, 0.3, 0], [0, 0, 1], [0, 0, 0]]))
    assert last.tolist() == [0, 1, 2, -1]


def test_without_impressions_the_level_of_clicks_is_assumed() -> None:
    whole = log_of_two_tastes()
    bare = Dataset.from_frames(
        pl.DataFrame(
            {
                "user_id": whole.interactions.user_ids,
                "item_id": whole.interactions.item_ids,
                "timestamp": whole.interactions.timestamps,
            }
        )
    )
    rare, often = (fit_user_model(bare, click_rate=rate) for rate in (0.05, 0.4))
    assert often.weights[0] > rare.weights[0]
    assert often.weights[1:].tolist() == rare.weights[1:].tolist()
    assert not rare.figures["has_impressions"]
    simulated = FittedWorld(bare, often, FittedConfig(customers=1000))
    appeal = simulated.list_problem(np.arange(simulated.num_customers), simulated.first_times()).appeal
    assert (1 / (1 + np.exp(-appeal))).mean() == pytest.approx(0.4, abs=0.01)
    assert rare.figures["log_loss"] < rare.figures["log_loss_of_rates"]
    assert item_groups(bare).tolist() == list(range(24))


def test_one_item_is_refused_and_two_are_a_world() -> None:
    def log(items: list[str]) -> Dataset:
        count = 30 * len(items)
        times = [number * DAY for number in range(count)]
        users = [number % 7 for number in range(count)]
        return Dataset.from_frames({"user_id": users, "item_id": items * 30, "timestamp": times})

    with pytest.raises(UserError, match="one item only"):
        log(["x", "x"])
    two = log(["x", "y"])
    fitted = fit_user_model(two)
    rollout = roll_out(FittedWorld(two, fitted, FittedConfig(customers=7, days=20)), RandomItems(0))
    measures = customer_measures(rollout)
    assert rollout.shown_items["slot"].max() == 2  # as many as there are items, though there are six slots
    assert np.nanmin(measures["regret"]) >= 0
    assert np.isfinite(rollout.visits["value"].to_numpy()).all()
    assert np.isfinite(rollout.visits["satisfaction"].to_numpy()).all()


def test_logs_without_times_or_with_few_events_are_refused() -> None:
    undated = Dataset.from_frames({"user_id": [1, 1, 2] * 20, "item_id": [1, 2, 3] * 20, "position": range(60)})
    with pytest.raises(UserError, match="without times"):
        fit_user_model(undated)
    short = Dataset.from_frames({"user_id": [1, 1, 2], "item_id": [1, 2, 1], "timestamp": [1, 2, 3]})
    with pytest.raises(UserError, match="too few"):
        fit_user_model(short)
