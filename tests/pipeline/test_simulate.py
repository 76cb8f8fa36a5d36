"""Runs that serve simulated customers: requests as evaluated, paired figures, the data set that is left, mistakes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.simulated_shop import small_shop

import nextitem as ni
from nextitem.cli.main import app
from nextitem.core.errors import UserError
from nextitem.data.readers import load_dataset
from nextitem.pipeline.recommend import user_requests
from nextitem.pipeline.runs import Run, load_run
from nextitem.pipeline.simulating.run_policy import RunPolicy
from nextitem.pipeline.simulating.simulate import policy_names, simulate
from nextitem.pipeline.simulating.worlds import world_of
from nextitem.simulation.fitted_world import FittedWorld
from nextitem.simulation.measures import MEASURES
from nextitem.simulation.policies import Visits
from nextitem.simulation.world import EnvironmentConfig, World

SETTINGS: dict[str, Any] = {"customers": 40, "days": 8, "new_items": 10, "leaving_items": 10}


def world(**settings: Any) -> World:
    return World(small_shop(), EnvironmentConfig(**{**SETTINGS, **settings}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    small_shop().write(folder / "shop")
    return {
        name: ni.train(name, folder / "shop", out=folder / name, progress=False) for name in ("item-cf", "item-graph")
    }


@pytest.fixture(scope="module")
def simulation(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "out"
    simulate(list(runs.values()), world, out=folder, about={"world": "small"}, temperature=0.5)
    return folder


def test_the_first_request_of_a_customer_is_that_of_a_user_of_the_data(runs: dict[str, Run]) -> None:
    simulated = world(new_items=0, leaving_items=0)
    run = runs["item-cf"]
    policy = RunPolicy("item-cf", run, simulated)
    old = np.flatnonzero(~simulated.customers.is_new)
    stock = simulated.stock(simulated.start)
    visits = Visits(old, np.full(len(old), simulated.start), np.ones(len(old), np.int64), stock)
    lists = policy.heads(visits, 5)
    users = [simulated.user_ids[customer] for customer in old]
    expected = run.model.recommend(user_requests(run.dataset, users), 5)
    assert lists.tolist() == (expected.item_ids.numpy() - 1).tolist()


def test_a_run_sees_what_was_clicked_and_lists_only_what_is_in_stock(runs: dict[str, Run]) -> None:
    simulated = world()
    policy = RunPolicy("item-cf", runs["item-cf"], simulated)
    who = np.arange(40)
    stock = simulated.stock(simulated.end - 1)
    visits = Visits(who, np.full(40, simulated.start + 100), np.ones(40, np.int64), stock)
    before = policy.heads(visits, 6)
    assert stock[before].all()
    assert (before < 150).all()  # a run does not know items that arrived after it was trained
    appeal = simulated.list_problem(who, visits.times).appeal
    shown_items = np.argsort(-appeal, axis=1)[:, :6]
    shown_items = np.where(shown_items < 150, shown_items, -1)
    answers = simulated.answers(who, visits.times, visits.numbers, shown_items)
    policy.observe(visits, shown_items, answers)
    after = policy.heads(Visits(who, visits.times + 86_400, visits.numbers + 1, stock), 6)
    clicked = answers.clicks.any(axis=1)
    assert 5 < clicked.sum() < 40
    assert before[~clicked].tolist() == after[~clicked].tolist()
    assert (before[clicked] != after[clicked]).any(axis=1).mean() > 0.7


def test_a_simulation_has_figures_with_intervals_and_paired_differences(simulation: Path) -> None:
    written = json.loads((simulation / "simulation.json").read_text())
    policies = {entry["name"]: entry for entry in written["policies"]}
    assert list(policies) == ["item-cf", "item-graph", "popularity", "optimal", "random"]
    for name, entry in policies.items():
        assert set(entry["measures"]) == set(MEASURES)
        assert entry["visits"] > 15
        for measure, figure in entry["measures"].items():
            if measure == "diversity" and figure["value"] is None:
                continue  # nobody has clicked twice
            assert figure["low"] <= figure["value"] <= figure["high"]
        assert bool(entry["differences"]) == (name != "item-cf")
        assert entry["active"][0] == 1.0
        assert np.diff(entry["active"]).max() <= 0
    assert policies["optimal"]["measures"]["regret"]["value"] == pytest.approx(0, abs=1e-12)
    assert policies["optimal"]["differences"]["clicks"]["low"] > 0
    assert policies["random"]["differences"]["clicks"]["high"] < policies["optimal"]["differences"]["clicks"]["low"]
    page = (simulation / "report.html").read_text()
    assert "item-graph" in page
    assert "<svg" in page
    assert "://" not in page


def test_the_log_is_a_data_set_with_propensities_from_which_a_model_learns(simulation: Path, tmp_path: Path) -> None:
    data = load_dataset(simulation / "log")
    shown_items = pl.read_parquet(simulation / "log" / "impressions.parquet")
    table = pl.read_parquet(simulation / "policies" / "item-cf" / "shown.parquet")
    assert shown_items.height == table.height
    assert shown_items["propensity"].is_between(0, 1, closed="right").all()
    assert shown_items["propensity"].n_unique() > 20
    assert set(shown_items["slot"]) == set(range(1, 7))
    assert shown_items["click"].sum() == table["click"].sum() > 5
    events = pl.read_parquet(simulation / "log" / "interactions.parquet")
    former = small_shop().interactions
    assert events.height == former.height + table["click"].sum()
    assert events.filter(pl.col("timestamp") > former["timestamp"].max()).height == table["click"].sum()
    assert data.impressions is not None
    assert data.catalog.num_items == 160
    run = ni.train("item-cf", simulation / "log", out=tmp_path / "run", progress=False)
    RunPolicy("item-cf", run, world())


@pytest.mark.slow
def test_the_same_simulation_again_has_the_same_figures_and_resuming_repeats_nothing(
    runs: dict[str, Run], simulation: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"about": {"world": "small"}, "temperature": 0.5, "baselines": ("random",)}
    lines: list[str] = []
    simulate([runs["item-cf"]], world, out=tmp_path / "out", **options)
    own = pl.read_parquet(tmp_path / "out" / "policies" / "item-cf" / "customers.parquet")
    assert own.equals(pl.read_parquet(simulation / "policies" / "item-cf" / "customers.parquet"))
    (tmp_path / "out" / "policies" / "random" / "figures.json").unlink()
    simulate([runs["item-cf"]], world, out=tmp_path / "out", **options, resume=True, log=lines.append)
    assert lines[0] == "item-cf: finished before"
    assert any(line.startswith("random: day 1 of 8") for line in lines)
    with pytest.raises(UserError, match="a simulation with other settings"):
        simulate([runs["item-cf"]], world, out=tmp_path / "out", about={"world": "large"}, resume=True)
    with pytest.raises(UserError, match="is not empty"):
        simulate([runs["item-cf"]], world, out=tmp_path / "out", **options)


def test_mistakes_are_said_before_anything_is_served(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["item-cf"]
    with pytest.raises(UserError, match="--log x: no such policy; there are item-cf"):
        simulate([run], world, out=tmp_path / "out", about={}, baselines=(), logging_policy="x")
    with pytest.raises(UserError, match="baseline 'best': there are"):
        simulate([run], world, out=tmp_path / "out2", about={}, baselines=("best",))
    other = ni.Dataset.from_frames({"user_id": [1, 1, 2, 2] * 5, "item_id": [1, 2, 1, 3] * 5, "timestamp": range(20)})
    stranger = ni.train("popularity", other, out=tmp_path / "stranger", progress=False)
    with pytest.raises(UserError, match="was trained on other data"):
        simulate([run, stranger], world, out=tmp_path / "out3", about={}, baselines=())
    assert not (tmp_path / "out3").exists()


def test_names_of_runs_are_those_of_their_folders_and_distinct(runs: dict[str, Run]) -> None:
    assert policy_names([runs["item-cf"], runs["item-cf"]]) == ["item-cf", "item-cf-2"]


@pytest.mark.slow
def test_a_run_of_other_data_has_a_world_of_its_own(tmp_path: Path) -> None:
    """The data of a shop under other item ids are no longer the simulated shop."""
    shop = small_shop()
    frames = {
        "interactions": shop.interactions.with_columns(pl.col("item_id") + 50_000),
        "items": shop.items.with_columns(pl.col("item_id") + 50_000),
    }
    (tmp_path / "data").mkdir()
    for name, frame in frames.items():
        frame.write_parquet(tmp_path / "data" / f"{name}.parquet")
    run = ni.train("item-cf", tmp_path / "data", out=tmp_path / "run", progress=False)
    lines: list[str] = []
    make_world, about = world_of(run, {"customers": 30, "days": 15, "drift": 0.5, "click_rate": 0.3}, log=lines.append)
    assert isinstance(make_world(), FittedWorld)
    assert any("held-out clicks beside random items" in line for line in lines)
    assert "fit" in about
    results = simulate([run], make_world, out=tmp_path / "out", about=about)
    figures = {each.name: each.measures for each in results}
    assert figures["optimal"]["regret"]["value"] == pytest.approx(0, abs=1e-12)
    assert figures["random"]["regret"]["value"] > figures["run"]["regret"]["value"] > 0
    data = load_dataset(tmp_path / "out" / "log")
    assert data.impressions is not None
    with pytest.raises(UserError, match="unknown setting 'speed'"):
        world_of(run, {"speed": 3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none", "--out", "x"], "runs/none: no such run"),
        (["runs/none"], "simulate RUN: name a folder with --out"),
        (["http://localhost:1", "runs/none"], "pass one address of a server, or folders of runs"),
    ],
)
def test_mistakes_of_the_command(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        partial(app, standalone_mode=False)(["simulate", *arguments])


def test_a_loaded_run_is_named_by_its_folder(runs: dict[str, Run]) -> None:
    assert policy_names([load_run(runs["item-graph"].root)]) == ["item-graph"]
