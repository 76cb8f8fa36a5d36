"""Alignment through the door: an ordinary run, figures before and after, and clear errors."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from support.simulated_shop import small_shop

import nextitem as ni
from nextitem.cli.main import app
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.readers import dataset_from_frames, load_dataset
from nextitem.pipeline import align as align_module
from nextitem.pipeline.runs import Run
from nextitem.testing.rich_log import rich_log

RUNS = TemporaryDirectory()  # removed when the tests end
FAST = {
    "alignment": {
        "epochs": 2,
        "steps_per_epoch": 3,
        "batch_size": 16,
        "sft_batch_size": 8,
        "lists": 6,
        "judged_requests": 40,
    },
    "reward": {"epochs": 1},
}


@cache
def shop_folder() -> Path:
    folder = Path(RUNS.name) / "shop-data"
    small_shop().write(folder)
    return folder


@cache
def generator() -> Run:
    """Return a depth decoder of a few steps on the small shop."""
    return ni.train(
        "depth-decoder",
        load_dataset(shop_folder()),
        out=Path(RUNS.name) / "generator",
        recipe="debug/depth-decoder",
        overrides=["training.max_epochs=2", "training.batch_size=64", "model.relearn_after=[]"],
        progress=False,
    )


@cache
def aligned() -> Any:
    return ni.align(
        generator(), out=Path(RUNS.name) / "aligned", settings=FAST, truth=small_shop().truth, progress=False
    )


def test_an_aligned_run_is_an_ordinary_run_with_figures_before_and_after() -> None:
    outcome = aligned()
    folder = outcome.run.folder
    opened = ni.load_run(folder)
    assert opened.name == "depth-decoder"
    assert opened.recipe == generator().recipe
    answer = opened.recommend(user=generator().dataset.users.ids.external[3], k=5)
    assert len(answer.item_ids) == 5
    assert ni.evaluate(opened).metrics["recall@10"] == pytest.approx(outcome.run.metrics["metrics"]["recall@10"])
    for figures in (outcome.before, outcome.after):
        names = {
            "recall@10",
            "modelled",
            "held_out",
            "true",
            "legality",
            "free_legality",
            "diversity@10",
            "coverage@10",
        }
        assert names <= set(figures.metrics)
        assert figures.metrics["legality"] == 1
        assert 0 < figures.metrics["true"] < 4
    assert [row["epoch"] for row in outcome.curve] == [0, 1, 2]
    facts = json.loads((folder / "alignment.json").read_text(encoding="utf-8"))
    assert facts["reward_auc"] > 0.4
    assert set(facts["changes"]) >= {"true", "modelled", "recall@10"}
    page = (folder / "alignment.html").read_text(encoding="utf-8")
    assert "held-out modelled reward" in page
    assert page.count("<svg") >= 4
    original = generator().model.state_dict()
    assert any(not torch.equal(value, original[name]) for name, value in opened.model.state_dict().items())
    assert 'method]\nkind = "ecpo"' in (folder / "alignment.toml").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_reward_of_an_aligned_run_is_used_again_by_another_method(tmp_path: Path) -> None:
    first = aligned()
    outcome = ni.align(
        generator(),
        out=tmp_path / "dpo",
        method="dpo",
        reward=first.run.folder,
        settings=FAST,
        overrides=["alignment.under_exposure=0.1"],
        truth=small_shop().truth,
        progress=False,
    )
    assert not (tmp_path / "dpo" / "reward").exists()
    for name in ("modelled", "held_out", "true", "recall@10"):
        assert outcome.before.metrics[name] == first.before.metrics[name]


@pytest.mark.slow
def test_a_resumed_alignment_has_the_weights_and_curves_of_an_uninterrupted_one(tmp_path: Path) -> None:
    lines: list[str] = []
    options: dict[str, Any] = {"reward": aligned().run.folder, "settings": FAST, "progress": False}
    whole = ni.align(generator(), out=tmp_path / "whole", **options)

    add = align_module._Curve._add

    def interrupt(curve: Any, epoch: int, figures: Any) -> None:
        add(curve, epoch, figures)
        if epoch == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align_module._Curve, "_add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ni.align(generator(), out=tmp_path / "parts", **options)
    assert not (tmp_path / "parts" / "metrics.json").exists()
    resumed = ni.align(generator(), out=tmp_path / "parts", resume=True, log=lines.append, **options)
    assert resumed.curve == whole.curve
    for value, other in zip(
        whole.run.model.state_dict().values(), resumed.run.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other)
    with pytest.raises(UserError, match="begun with other settings"):
        ni.align(generator(), out=tmp_path / "parts", resume=True, lists=5, **options)


@pytest.mark.slow
def test_a_session_reward_judges_whole_lists(tmp_path: Path) -> None:
    outcome = ni.align(
        generator(),
        out=tmp_path / "run",
        method="rsft",
        reward="session",
        settings={**FAST, "reward": {"epochs": 1, "held_out": False}},
        overrides=["alignment.steps_per_epoch=1", "alignment.epochs=1"],
        truth=small_shop().truth,
        progress=False,
    )
    assert "held_out" not in outcome.after.metrics
    assert ni.load_run(tmp_path / "run" / "reward").name.endswith("ListModel")


def refused(match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match):
        ni.align(**{"run": generator(), "settings": FAST, "progress": False, **options})


def test_mistakes_are_clear_errors(tmp_path: Path) -> None:
    data: Dataset = dataset_from_frames({"interactions": rich_log_frame()}, name="other")
    other = ni.train("item-cf", data, out=tmp_path / "cf", progress=False)
    refused("does not generate items code by code", run=other, out=tmp_path / "a")
    refused("write one of clicks, purchases, session", reward="klicks", out=tmp_path / "b")
    refused("choose one of rsft", method="ppo", out=tmp_path / "c")
    refused("exclude each other", epochs=2, steps=9, out=tmp_path / "d")
    refused("no setting|unknown setting", overrides=["alignment.lambda=2"], out=tmp_path / "e")
    refused("tables alignment and reward", overrides=["model.width=2"], out=tmp_path / "f")
    ranker = ni.train(
        "lr", data, out=tmp_path / "lr", overrides=["training.max_epochs=1"], protocol="leave-one-out", progress=False
    )
    refused("items, not the 150", reward=ranker.folder, out=tmp_path / "g")
    refused("scores no candidates", reward=generator().folder, out=tmp_path / "h")
    assert not any((tmp_path / name).exists() for name in "abcdef")


def rich_log_frame() -> Any:
    import polars as pl

    log = rich_log().interactions
    return pl.DataFrame({"user_id": log.user_ids, "item_id": log.item_ids, "timestamp": log.timestamps}).filter(
        pl.col("item_id") > 0
    )


def test_a_reward_that_is_constant_or_not_finite_is_refused(tmp_path: Path) -> None:
    folder = aligned().run.folder / "reward"
    options: dict[str, Any] = {"run": generator(), "settings": FAST, "reward": folder, "progress": False}
    with pytest.MonkeyPatch.context() as patch:
        for value, message in (
            (0.0, "is the same for all 6 lists"),
            (float("nan"), "a reward must be a finite number"),
        ):

            def score(self: Any, batch: Any, lists: Any, value: float = value) -> Any:
                return torch.full(lists.shape[:2], value)

            patch.setattr("nextitem.alignment.rewards.point_wise.PointWiseReward.score", score)
            with pytest.raises(UserError, match=message):
                ni.align(out=tmp_path / str(value), **options)


def test_a_reward_that_may_know_test_events_is_refused(tmp_path: Path) -> None:
    copy = shutil.copytree(aligned().run.folder / "reward", tmp_path / "reward")
    text = (copy / "recipe.toml").read_text(encoding="utf-8")
    assert 'protocol = "time"' in text
    (copy / "recipe.toml").write_text(text.replace('protocol = "time"', 'protocol = "leave-one-out"'), encoding="utf-8")
    refused("may know test events", reward=copy, out=tmp_path / "run")


def test_data_without_impressions_ask_for_a_ranker(tmp_path: Path) -> None:
    run = replace(generator())
    run._dataset = replace(generator().dataset, impressions=None)
    refused("a reward is learned from impressions", run=run, out=tmp_path / "run")


@pytest.mark.slow
def test_the_command_prints_figures_before_and_after(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    sets = [f"--set=alignment.{name}={value}" for name, value in FAST["alignment"].items()]
    command = ["align", str(generator().folder), "--method", "gbpo", "--reward", str(aligned().run.folder)]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "run"), "--steps", "2", *sets])
    assert result.exit_code == 0, result.output
    assert "modelled reward" in result.output
    assert "aligned by gbpo" in result.output
