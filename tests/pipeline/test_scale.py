"""Scaling studies from data to the report: reproducible, resumable, and blind to test requests."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import polars as pl
import pytest
import torch

from nextitem.core.dataset import Impressions
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.data.protocols import make_split
from nextitem.evaluation.target_loss import judged_requests, target_loss
from nextitem.pipeline import scale as scaling_module
from nextitem.pipeline.evaluate import split_for
from nextitem.pipeline.recipe import resolve_recipe
from nextitem.pipeline.scale import scale
from nextitem.pipeline.scaling import points as points_module
from nextitem.pipeline.scaling.outcome import Scaling
from nextitem.pipeline.scaling.points import POINTS_FILE, Point, PointRunner, read_points, sampled_users
from nextitem.pipeline.train import train
from nextitem.recipes import read_recipe
from nextitem.testing.known_answers import planted_clusters

SETTINGS = {"training.max_epochs": 2, "model.max_history_length": 4, "training.batch_size": 64}
SIZES = (0.25, 0.5, 1.0, 2.0)


def scaled(out: Path, **options: Any) -> Scaling:
    """Scale the debug recipe of sasrec on the planted clusters."""
    arguments: dict[str, Any] = {
        "sizes": SIZES, "data_shares": (1.0,), "settings": SETTINGS, "recipe": "debug/sasrec", "device": "cpu",
        "protocol": "leave-one-out", **options,
    }  # fmt: skip
    return scale(arguments.pop("model", "sasrec"), arguments.pop("data", planted_clusters()), out=out, **arguments)


@pytest.fixture(autouse=True)
def _few_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nextitem.evaluation.scaling_study.study.__kwdefaults__", {"replicates": 20})


@pytest.fixture
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip results, report and plot."""
    monkeypatch.setattr(Scaling, "save", lambda scaling: None)


def outcomes(points: list[Point]) -> list[Point]:
    """Return the points without their durations."""
    return [replace(point, seconds=0.0, elapsed=0.0) for point in points]


def test_a_study_writes_report_results_and_plot(tmp_path: Path) -> None:
    lines: list[str] = []
    scaling = scaled(
        tmp_path / "out", data_shares=(0.5, 0.75, 1.0), settings=SETTINGS | {"training.max_epochs": 1}, log=lines.append
    )
    assert len(scaling.points) == 12
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "scale.toml", "points.jsonl", "results.json", "report.html", "scaling.png",
    }  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert results["verdict"] == scaling.verdict
    assert results["loss_name"] == "nats a target"
    assert len(results["runs"]) == 12
    assert results["runs"][0]["compute"] == scaling.points[0].compute
    assert results["held_out"][-1]["size"] == 2.0
    assert set(results["laws"]["parameters, examples"]["intervals"]) == {"E", "A", "B", "a", "b"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"Verdict: {scaling.verdict}" in page
    assert page.count("<svg") == 2
    assert "width 32, layers 1" in page
    assert matplotlib.image.imread(tmp_path / "out" / "scaling.png").std() > 0.01
    assert [line for line in lines if line.startswith("point 12 of 12: size 2, share 0.5, seed 0: loss")]
    assert scaling.to_frame()["loss"].to_list() == [point.loss for point in scaling.points]
    assert scaling.study.sentences[0] in repr(scaling)


@pytest.mark.usefixtures("without_files")
def test_size_1_is_the_run_of_the_recipe_by_loss_and_others_scale_its_settings(tmp_path: Path) -> None:
    scaling = scaled(tmp_path / "out", sizes=(1.0, 2.0))
    first, second = scaling.points
    assert first.settings == {"model.width": 16, "model.layers": 1, "training.learning_rate": 0.01}
    assert second.settings == {"model.width": 32, "model.layers": 1, "training.learning_rate": 0.01 / 2**0.5}
    settings = {**SETTINGS, "training.max_epochs": first.best_epoch, "training.patience": "none"}
    data = planted_clusters()
    run = train(
        "sasrec", data, out=tmp_path / "run", recipe="debug/sasrec", settings=settings, protocol="leave-one-out",
        progress=False, device="cpu",
    )  # fmt: skip
    split = make_split(data, "leave-one-out")
    trained = torch.from_numpy(split.train.interactions.item_counts() > 0)
    loss = target_loss(run.model, judged_requests(split.validation, trained))
    assert loss == pytest.approx(first.losses[run.metrics["best_epoch"] - 1], rel=1e-6)
    assert first.loss == min(first.losses)
    assert first.examples == int(split.train.interactions.is_target().sum()) - split.train.interactions.num_users
    assert first.backward_flops == 2 * first.forward_flops


@pytest.mark.usefixtures("without_files")
def test_an_interrupted_study_continues_with_the_same_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scaled(tmp_path / "whole", seeds=(0, 1), sizes=(0.5, 1.0))
    run, count = PointRunner.run, [0]

    def interrupted(self: PointRunner, *arguments: Any, **options: Any) -> Point | None:
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return run(self, *arguments, **options)

    monkeypatch.setattr(PointRunner, "run", interrupted)
    lines: list[str] = []
    part = scaled(tmp_path / "out", seeds=(0, 1), sizes=(0.5, 1.0), log=lines.append)
    assert len(part.points) == 2
    assert any("continue with --resume" in line for line in lines)
    with (tmp_path / "out" / POINTS_FILE).open("a", encoding="utf-8") as file:
        file.write('{"size": 0.5, "sh')  # cut off
    monkeypatch.setattr(PointRunner, "run", run)
    rest = scaled(tmp_path / "out", seeds=(0, 1), sizes=(0.5, 1.0), resume=True)
    assert outcomes(rest.points) == outcomes(whole.points)
    assert outcomes(read_points(tmp_path / "out")) == outcomes(rest.points)
    more = scaled(tmp_path / "out", seeds=(0, 1), sizes=(0.25, 0.5, 1.0), resume=True)  # a size is added
    assert outcomes(more.points[:4]) == outcomes(whole.points)
    assert [(point.size, point.seed) for point in more.points[4:]] == [(0.25, 0), (0.25, 1)]


@pytest.mark.usefixtures("without_files")
def test_a_point_that_ctrl_c_ends_within_its_training_continues_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scaled(tmp_path / "whole", sizes=(1.0, 2.0))
    presses = iter([True])

    def loss_and_ctrl_c(*arguments: Any) -> float:
        if next(presses, False):
            signal.raise_signal(signal.SIGINT)
        return target_loss(*arguments)

    monkeypatch.setattr(points_module, "target_loss", loss_and_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        scaled(tmp_path / "out", sizes=(1.0, 2.0))
    assert (tmp_path / "out" / points_module.RUNNING).is_dir()
    scaled(tmp_path / "out", sizes=(1.0, 2.0), points=1, resume=True)
    (point,) = read_points(tmp_path / "out")
    former = whole.points[0]
    assert (point.loss, point.merit, point.compute) == (former.loss, former.merit, former.compute)
    assert not (tmp_path / "out" / points_module.RUNNING).exists()


@pytest.mark.usefixtures("without_files")
def test_test_requests_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = scaled(tmp_path / "a", sizes=(0.5, 1.0))

    def with_other_tests(*arguments: Any, **options: Any) -> Any:
        split = split_for(*arguments, **options)
        poisoned = replace(split.test, targets=Jagged.from_rows([[10**9]] * split.test.num_requests))
        return replace(split, test=poisoned)

    monkeypatch.setattr(scaling_module, "split_for", with_other_tests)
    assert outcomes(scaled(tmp_path / "b", sizes=(0.5, 1.0)).points) == outcomes(former.points)


@pytest.mark.usefixtures("without_files")
def test_the_best_learning_rate_of_each_configuration_is_used(tmp_path: Path) -> None:
    scaling = scaled(tmp_path / "out", sizes=(0.5, 1.0), learning_rates=(1.0, 1e-4))
    by_key = {(point.size, point.rate): point.loss for point in scaling.points}
    assert all(by_key[size, 1e-4] > by_key[size, 1.0] for size in (0.5, 1.0))
    assert scaling.to_frame().filter(is_used=True)["rate"].to_list() == [1.0, 1.0]


@pytest.mark.usefixtures("without_files")
def test_budgets_limit_the_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [point.size for point in scaled(tmp_path / "a", points=2).points] == [0.25, 0.5]
    monkeypatch.setattr(scaling_module, "_expected_seconds", lambda point, done: 1e6 * (point.key.size > 0.5))
    lines: list[str] = []
    assert [point.size for point in scaled(tmp_path / "b", minutes=60, log=lines.append).points] == [0.25, 0.5]
    assert "2 points were left out, since they would have ended after --minutes 60" in lines
    monkeypatch.setattr(scaling_module, "_expected_seconds", lambda point, done: 1e6)
    with pytest.raises(UserError, match="no point fits"):
        scaled(tmp_path / "c", minutes=1)


@pytest.mark.usefixtures("without_files")
@pytest.mark.parametrize("model", ["hstu", "gru4rec", "tiger"])
def test_every_family_trains_two_sizes(model: str, tmp_path: Path) -> None:
    settings = {"training.max_epochs": 1, "training.batch_size": 64}
    scaling = scaled(tmp_path / "out", model=model, recipe=f"debug/{model}", sizes=(0.5, 1.0), settings=settings)
    small, large = scaling.points
    assert small.compute < large.compute
    assert small.other_parameters < large.other_parameters
    assert small.examples == large.examples
    assert np.isfinite([small.loss, large.loss]).all()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="popularity has no count of its operations"):
        scaled(tmp_path / "out", model="popularity", recipe=None)
    with pytest.raises(UserError, match=r"--sizes: 0.01 and 0.02 are the same model \(width = 1, layers = 1\)"):
        scaled(tmp_path / "out", sizes=(0.01, 0.02, 1.0))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_files")
def test_a_study_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    scaled(tmp_path / "out", sizes=(0.5, 1.0), points=1)
    with pytest.raises(UserError, match="was begun with other settings or data"):
        scaled(tmp_path / "out", sizes=(0.5, 1.0), settings={**SETTINGS, "model.dropout": 0.2}, resume=True)
    scaled(tmp_path / "out", sizes=(0.5, 1.0), points=1, overwrite=True)
    (tmp_path / "out" / POINTS_FILE).write_text("[]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"points.jsonl, line 1 is damaged"):
        scaled(tmp_path / "out", sizes=(0.5, 1.0), resume=True)


def test_shares_of_users_are_nested_and_keep_their_numbers() -> None:
    data = planted_clusters()
    small, large = (sampled_users(data, share, seed=3).interactions for share in (0.25, 0.5))
    users = [set(log.user_ids.tolist()) for log in (small, large)]
    assert users[0] < users[1]
    assert len(users[1]) == round(0.5 * data.interactions.num_users)
    assert small.num_users == data.interactions.num_users
    assert set(sampled_users(data, 0.25, seed=4).interactions.user_ids.tolist()) != users[0]
    assert sampled_users(data, 1.0, seed=3) is data


def test_impressions_follow_their_users() -> None:
    events = planted_clusters()
    numbers = np.arange(1, 1 + events.interactions.num_users)
    user_ids = np.concatenate([numbers, np.zeros(40)]).astype(np.int32)  # unknown users, too
    items = np.ones(len(user_ids), np.int32)
    data = replace(events, impressions=Impressions(np.arange(len(user_ids)), items, user_ids, None, pl.DataFrame()))
    assert data.impressions is not None
    sampled = sampled_users(data, 0.5, seed=0)
    assert sampled.impressions is not None
    users = set(sampled.interactions.user_ids.tolist())
    impression_users = sampled.impressions.user_ids
    assert set(impression_users[impression_users > 0].tolist()) == users
    assert 10 < int((impression_users == 0).sum()) < 30


@pytest.mark.usefixtures("without_files")
def test_the_recipe_of_a_study_is_a_recipe(tmp_path: Path) -> None:
    scaled(tmp_path / "out", sizes=(0.5, 1.0), points=1)
    recipe = resolve_recipe([read_recipe(tmp_path / "out" / "scale.toml")])
    assert recipe.model["width"] == 16
    assert recipe.training.max_epochs == 2
