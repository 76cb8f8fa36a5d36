"""Rankers under protocol impressions: metrics, refused models, and features that a request lacks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import nextitem as ni
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.readers import dataset_from_frames
from nextitem.data.settings import TABLES
from nextitem.data.shop.shop import generate_shop
from nextitem.models.rankers.ranking_model import RankingModel
from nextitem.pipeline.compare import compare
from nextitem.pipeline.runs import load_run
from nextitem.pipeline.train import train

SHORT = ["training.max_epochs=1", "training.batch_size=64"]


@cache
def shop() -> Dataset:
    tables = generate_shop(3, num_items=150, num_users=300)
    return dataset_from_frames({name: getattr(tables, name) for name in TABLES}, tables.settings, name="small shop")


def test_a_ranker_is_evaluated_by_its_scores_of_logged_impressions(tmp_path: Path) -> None:
    run = train("lr", shop(), out=tmp_path / "run", protocol="impressions", overrides=SHORT, progress=False)
    assert run.evaluation is not None
    assert {"auc", "gauc", "log_loss"} <= run.evaluation.metrics.keys()
    low, high = run.evaluation.intervals["auc"]
    assert low <= run.evaluation.metrics["auc"] <= high
    loaded = ni.evaluate(load_run(tmp_path / "run"), shop())
    assert loaded.metrics["auc"] == pytest.approx(run.evaluation.metrics["auc"])
    answer = run.recommend(user=shop().users.ids.external[0], k=5)
    assert len(answer.item_ids) == 5


def test_each_task_has_its_own_metrics(tmp_path: Path) -> None:
    tasks = ["model.tasks=['click', 'purchase']", "model.order_by={click=1.0, purchase=0.5}"]
    run = train("lr", shop(), out=tmp_path / "run", protocol="impressions", overrides=SHORT + tasks, progress=False)
    assert run.evaluation is not None
    assert {"auc", "auc_purchase", "log_loss_purchase"} <= run.evaluation.metrics.keys()


def test_a_model_that_returns_lists_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sasrec returns lists of its own; choose another with --protocol"):
        train("sasrec", shop(), out=tmp_path / "run", protocol="impressions", progress=False)
    assert not (tmp_path / "run").exists()


def test_unknown_tasks_and_fields_are_refused_by_name(tmp_path: Path) -> None:
    for setting, message in (
        ("model.tasks=['cart']", "no label 'cart'; this data has click, purchase"),
        ("model.fields=['item.colour']", "no field 'item.colour'; this data has"),
    ):
        with pytest.raises(UserError, match=message):
            train(
                "lr",
                shop(),
                out=tmp_path / setting[6:11],
                protocol="impressions",
                overrides=[*SHORT, setting],
                progress=False,
            )


def test_missing_features_of_a_request_have_a_default_and_are_counted(tmp_path: Path) -> None:
    run = train("lr", shop(), out=tmp_path / "run", protocol="impressions", overrides=SHORT, progress=False)
    model = load_run(run.folder).model
    assert isinstance(model, RankingModel)
    history = [str(item) for item in shop().catalog.ids.external[:3]]
    assert len(run.recommend(history=history, k=4).item_ids) == 4  # a visitor: no user, no time
    assert isinstance(run.model, RankingModel)
    assert run.model.fields.missing["user.country"] >= 1


@pytest.mark.usefixtures("without_figures")
def test_a_comparison_of_rankers_writes_a_report(tmp_path: Path) -> None:
    generate_shop(3, num_items=150, num_users=300).write(tmp_path / "data")
    comparison = compare(
        tmp_path / "data",
        out=tmp_path / "out",
        models=("lr",),
        protocol="impressions",
        minutes_per_model=0.02,
        progress=False,
    )
    assert comparison.examples == []
    assert comparison.rows[0].evaluation.metrics["auc"] > 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "scores the logged impressions" in page
    assert torch.isfinite(torch.tensor(comparison.rows[0].p50_ms))
