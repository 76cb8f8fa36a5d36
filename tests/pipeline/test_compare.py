"""Comparisons: two rows of a guided generator, settings of single models, resuming, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trained_models import requests

from nextitem.core.errors import UserError
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.pipeline.compare import MAIN_JOB, MAIN_JOB_SETTINGS, Comparison, compare, main_job_settings
from nextitem.pipeline.recipe import resolve_recipe, settings_table
from nextitem.pipeline.runs import Run
from nextitem.pipeline.train import train
from nextitem.recipes import default_recipe
from nextitem.testing.known_answers import cycle

pytestmark = pytest.mark.usefixtures("without_figures")
PERFECT = {"name": "support.planted_scorers:Planted", "right_after": 12}  # knows what follows each item of the cycle


def generator(out: Path, **guide: Any) -> Run:
    """Return a depth-decoder that has learned little, guided by a model that knows every answer."""
    settings = {"model": {"guide": {"model": PERFECT, **guide}}, "training": {"max_epochs": 1}}
    options: dict[str, Any] = {"recipe": "debug/depth-decoder", "protocol": "leave-one-out", "progress": False}
    return train("depth-decoder", cycle(), out=out, settings=settings, **options)


def compared(out: Path, **arguments: Any) -> Comparison:
    """Return a comparison on the cycle."""
    return compare(cycle(), out=out, protocol="leave-one-out", progress=False, **arguments)


def test_a_guided_generator_is_compared_with_and_without_its_guide(tmp_path: Path) -> None:
    run = generator(tmp_path / "run")
    assert isinstance(run.model, GuidedRecommender)
    lines: list[str] = []
    comparison = compared(tmp_path / "out", runs=[run], models=["popularity"], log=lines.append)
    assert [row.name for row in comparison.rows] == ["depth-decoder", "depth-decoder alone", "popularity"]
    guided, alone, _ = comparison.rows
    assert guided.evaluation.metrics["recall@10"] == 1
    histories = requests([[1, 2, 3], [11], [5, 6, 7, 8]])
    expected = run.model.search(histories, 5, guide=None)
    answers = [each.model.recommend(histories, 5) for each in comparison.runs[:2]]
    assert answers[0].item_ids[:, 0].tolist() == [4, 12, 9]
    assert torch.equal(answers[1].item_ids, expected.item_ids)
    assert answers[1].guided is None
    assert alone.evaluation.metrics["ndcg@10"] < guided.evaluation.metrics["ndcg@10"]
    assert alone.parameters == sum(part.numel() for part in comparison.runs[1].model.parameters())
    assert alone.train_seconds == guided.train_seconds > 0
    board = json.loads((tmp_path / "out" / "scoreboard.json").read_text())["rows"]
    assert [row["model"] for row in board] == ["depth-decoder", "depth-decoder", "popularity"]
    assert board[0]["run"] == board[1]["run"]
    assert board[0]["guide"]["weight"] > 0
    assert "guide" not in board[1]
    assert [row["generation"]["guided"] for row in board[:2]] == [True, False]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "depth-decoder: the search is guided by support.planted_scorers:Planted" in page


def test_a_guide_of_weight_0_adds_no_row(tmp_path: Path) -> None:
    comparison = compared(tmp_path / "out", runs=[generator(tmp_path / "run", weight=0.0)])
    assert [row.name for row in comparison.rows] == ["depth-decoder"]


def test_two_runs_of_a_guided_generator_have_four_different_names(tmp_path: Path) -> None:
    runs = [generator(tmp_path / name, weight=0.9) for name in ("a", "b")]
    names = [row.name for row in compared(tmp_path / "out", runs=runs).rows]
    assert len(set(names)) == 4
    assert names[:2] == ["depth-decoder (a)", "depth-decoder (a) alone"]


def test_settings_change_one_model_and_resuming_uses_them_again(tmp_path: Path) -> None:
    settings = {"item-cf": {"model.window": 3}}
    first = compared(tmp_path / "out", models=["popularity", "item-cf"], settings=settings)
    assert first.runs[1].recipe.model["window"] == 3
    (tmp_path / "out" / "scoreboard.json").unlink()  # as if interrupted after training
    lines: list[str] = []
    options: dict[str, Any] = {"models": ["popularity", "item-cf"], "resume": True, "log": lines.append}
    again = compared(tmp_path / "out", settings=settings, **options)
    assert sum("finished already" in line for line in lines) == 2
    assert [row.evaluation.metrics for row in again.rows] == [row.evaluation.metrics for row in first.rows]
    with pytest.raises(UserError, match="other settings"):
        compared(tmp_path / "out", settings={"item-cf": {"model.window": 4}}, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"item-cg": {"model.window": 3}}, "settings of item-cg, which is not among the models to train: item-cf"),
        ({"item-cf": {"model.widow": 3}}, "widow"),
        ({"item-cf": 8}, "8 is no table"),
    ],
)
def test_wrong_settings_are_an_error_before_any_work(settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        compared(tmp_path / "out", models=["item-cf"], settings=settings)
    assert not (tmp_path / "out").exists()


def test_the_settings_of_the_demo_change_the_recipes_of_its_models() -> None:
    assert set(MAIN_JOB_SETTINGS) <= set(MAIN_JOB)
    for name in MAIN_JOB:
        layers = [default_recipe(name), ("data", {"data": {"path": "shop"}})]
        changed = resolve_recipe([*layers, ("demo", settings_table(MAIN_JOB_SETTINGS.get(name, {})))])
        assert (changed != resolve_recipe(layers)) == (name in MAIN_JOB_SETTINGS)
    assert main_job_settings(None) == MAIN_JOB_SETTINGS
    limited = main_job_settings(0.5)  # a limit of the user holds for tiger, too
    assert limited["tiger"]["training"] == {**MAIN_JOB_SETTINGS["tiger"]["training"], "max_minutes": 0.5}


def test_listed_items_have_titles_hits_and_channels_of_the_evaluated_lists(tmp_path: Path) -> None:
    comparison = compared(tmp_path / "out", models=["popularity", "item-cf"])
    assert comparison.examples
    titles = cycle().catalog.titles().to_list()
    for customer in comparison.examples:
        assert list(customer.recommended) == ["popularity", "item-cf"]
        for items in customer.recommended.values():
            assert all(item.title in titles for item in items)
            assert [item.title for item in items if item.is_hit] == customer.held_out
    assert all(row.cpu_ms > 0 for row in comparison.rows)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>In short" in page
    assert "at a price of 0.040 for an hour of one core" in page


def test_the_price_of_an_hour_is_that_of_the_user_and_never_negative(tmp_path: Path) -> None:
    compared(tmp_path / "out", models=["popularity"], price_per_core_hour=7.5)
    assert "at a price of 7.5 for" in " ".join((tmp_path / "out" / "report.html").read_text().split())
    with pytest.raises(UserError, match="price_per_core_hour is -1"):
        compared(tmp_path / "other", models=["popularity"], price_per_core_hour=-1)
