"""The loop in one process: simulated customers, a server of two models, its logs, and a truth to compare with.

Of the served models, the second has learned from a log in which popular and unpopular items have changed places. So it
is truly worse.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np
import polars as pl
import pytest
from support.simulated_shop import small_shop

from nextitem.data.readers import dataset_from_frames
from nextitem.data.shop.shop import SETTINGS
from nextitem.evaluation.live import live_report
from nextitem.evaluation.logged_lists import LoggedLists, TargetPolicy
from nextitem.evaluation.off_policy import estimates
from nextitem.evaluation.plackett_luce import plackett_luce
from nextitem.pipeline.runs import Run
from nextitem.pipeline.train import train
from nextitem.serving.app import make_app
from nextitem.serving.config import ServiceConfig
from nextitem.serving.impressions import ImpressionLog, read_impressions
from nextitem.serving.service import Service
from nextitem.serving.stored_events import read_events
from nextitem.serving.stores import open_store
from nextitem.simulation.play import Playthrough, check_server, play
from nextitem.simulation.world import World, WorldConfig


def trained_run(folder: Path, *, is_poisoned: bool) -> Run:
    """Return a run of popularity on the small shop."""
    shop = small_shop()
    interactions = shop.interactions
    if is_poisoned:
        ranked = interactions["item_id"].value_counts().sort("count", "item_id")["item_id"]
        interactions = interactions.with_columns(pl.col("item_id").replace_strict(ranked, ranked.reverse()))
    frames = {"interactions": interactions, "items": shop.items, "users": shop.users}
    settings = {name: value for name, value in SETTINGS.items() if name != "impressions"}
    data = dataset_from_frames(frames, settings, name="shop")
    return train("popularity", data, out=folder, recipe="debug/popularity", progress=False)


@dataclass
class Traffic:
    """What simulated customers left: the logs of the server, and the truth."""

    folder: Path
    played: Playthrough

    @property
    def events(self) -> str:
        return f"sqlite:///{self.folder / 'events.db'}"


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    folder = tmp_path_factory.mktemp("traffic")
    runs = {name: trained_run(folder / name, is_poisoned=name == "worse") for name in ("better", "worse")}
    service = Service(
        runs,
        open_store(f"sqlite:///{folder / 'events.db'}"),
        ServiceConfig(deadline_seconds=30),
        impressions=ImpressionLog(folder / "log"),
    )
    world = World(small_shop(), WorldConfig(customers=200, days=9, seed=4, longest_gap=5))

    async def run() -> Playthrough:
        transport = httpx2.ASGITransport(app=make_app(service))
        async with httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            assert await check_server(client, world) == ["better", "worse"]
            return await play(world, client)

    played = asyncio.run(run())
    service.close()
    return Traffic(folder, played)


@pytest.mark.slow
def test_the_report_recovers_the_true_lift_from_the_logs(traffic: Traffic) -> None:
    report, attribution = live_report(
        read_impressions(traffic.folder / "log"), read_events(traffic.events), window_ms=0
    )
    truth = {entry["model"]: entry for entry in traffic.played.truth()["models"]}
    assert attribution.by_request == traffic.played.num_events > 100
    for policy in report.policies:
        own = truth[policy.model]
        assert (policy.version, policy.lists, policy.users) == (own["version"], own["lists"], own["users"])
        for outcome in ("click", "purchase"):
            in_lists, in_items = policy.list_rates[outcome], policy.impression_rates[outcome]
            assert in_items.successes == own[outcome]["observed"]
            assert in_lists.low < own[outcome]["per_list"] < in_lists.high
            assert in_items.low < own[outcome]["per_impression"] < in_items.high
    (pair,) = [entry for entry in report.differences if entry.outcome == "click"]
    true_rates = truth[pair.first]["click"]["per_list"], truth[pair.second]["click"]["per_list"]
    assert pair.is_real
    assert pair.difference.lift_low < true_rates[0] / true_rates[1] - 1 < pair.difference.lift_high
    assert pair.difference.low < true_rates[0] - true_rates[1] < pair.difference.high
    by_name = {policy.name: policy.list_rates["click"].value for policy in report.policies}
    assert by_name["better"] > by_name["worse"]


def test_explored_lists_tell_the_rewards_of_a_model_that_was_not_shown() -> None:
    """Customers see lists sampled from the 12 most popular items; the target samples by what each customer likes.

    The truth is the mean, over the same visits, of the target's expected clicks.
    """
    slots, rng = (1.0, 0.7, 0.5), np.random.default_rng(9)
    world = World(small_shop(), WorldConfig(customers=250, days=8, examination=slots, longest_gap=4))
    items = [
        str(item)
        for item in small_shop().interactions["item_id"].value_counts().sort("count", "item_id")["item_id"][-12:]
    ]
    logging, rows, truths = -0.5 * np.log(np.arange(12, 0, -1)), [], []
    visits = world.first_visits()
    while visits:
        visit = visits.pop()
        tastes, _ = world.tastes(world.customers[visit.customer], visit.time, items)
        target = -0.7 * np.log(1 + (-tastes).argsort().argsort())
        shown_places = (logging + rng.gumbel(size=12)).argsort()[::-1][: len(slots)]
        sampled_places = (target + rng.gumbel(size=(200, 12))).argsort(1)[:, ::-1][:, : len(slots)]
        truths.append((tastes[sampled_places] * np.array(slots)).sum(1).mean())
        answer = world.answer(visit, [items[place] for place in shown_places])
        rows.append((visit.customer, shown_places, target, answer.clicks))
        if answer.next_visit.time < world.end:
            visits.append(answer.next_visit)
    users, places, scores, clicks = (np.array(column) for column in zip(*rows, strict=True))
    propensities, _ = plackett_luce(np.repeat(logging[None], len(rows), 0), places)
    probabilities, distributions = plackett_luce(scores, places)
    logged = LoggedLists(clicks.astype(np.float64), propensities, places, np.ones(places.shape, np.bool_), users)
    candidates = np.broadcast_to(np.arange(12), (len(rows), 12))
    target_policy = TargetPolicy(probabilities, candidates, distributions)
    result = {each.estimator: each for each in estimates(logged, target_policy) if not each.warnings}
    truth, shown_mean = float(np.mean(truths)), logged.rewards.sum(1).mean()
    assert truth > 1.2 * shown_mean
    assert {"rips", "dr"} <= set(result)
    for name, estimate in result.items():
        assert estimate.reward.low < truth < estimate.reward.high, name
        assert estimate.gain.low < truth - shown_mean < estimate.gain.high, name
    assert result["dr"].gain.low > 0
