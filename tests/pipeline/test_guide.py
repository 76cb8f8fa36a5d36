"""Generators with a guide: the choice of its weight, runs that serve as they were chosen, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.trained_models import requests

from nextitem.core.errors import UserError
from nextitem.decoding.guidance import GuidedRecommender, GuideUse
from nextitem.pipeline import guide as pipeline
from nextitem.pipeline.runs import Run, load_run
from nextitem.pipeline.train import train
from nextitem.testing.known_answers import checkerboard, cycle

GENERATORS = ("depth-decoder", "tiger", "cobra", "tdm", "jtm")
PLANTED = "support.planted_scorers:Planted"
NUM_ITEMS = 12  # of the cycle
PERFECT = {"name": PLANTED, "right_after": NUM_ITEMS}
RANDOM = {"name": PLANTED, "right_after": 0}


def trained(out: Path, guide: Any, *, name: str = "depth-decoder", epochs: int = 1, **arguments: Any) -> Run:
    """Return a generator that has learned little, with this guide."""
    settings = {"model": {} if guide is None else {"guide": guide}, "training": {"max_epochs": epochs}}
    options = {"settings": settings, "recipe": f"debug/{name}", "protocol": "leave-one-out", "progress": False}
    return train(name, cycle(), out=out, **{**options, **arguments})


def model_of(run: Run) -> GuidedRecommender:
    assert isinstance(run.model, GuidedRecommender)
    return run.model


def use_of(run: Run) -> GuideUse:
    guidance = model_of(run).guidance
    assert guidance is not None
    return guidance.chosen_use


@pytest.mark.parametrize("name", GENERATORS)
def test_a_good_guide_gets_a_high_weight_and_leads_the_search(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"model": PERFECT}, name=name)
    assert use_of(run).weight >= 0.3
    assert run.metrics["metrics"]["recall@10"] == 1
    answer = run.model.recommend(requests([[1, 2, 3], [11]]), 3)
    assert answer.item_ids[:, 0].tolist() == [4, 12]
    assert answer.guided is not None
    assert answer.guided.all()
    again = load_run(tmp_path / "run")
    assert use_of(again) == use_of(run)
    reloaded = again.model.recommend(requests([[1, 2, 3], [11]]), 3)
    assert torch.equal(reloaded.item_ids, answer.item_ids)
    assert torch.equal(reloaded.scores, answer.scores)


def test_a_useless_guide_gets_the_weight_0_and_changes_nothing(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", None, epochs=8)
    lines: list[str] = []
    guided = trained(tmp_path / "guided", {"model": RANDOM}, epochs=8, log=lines.append)
    assert use_of(guided).weight == 0
    assert any("does not help" in line for line in lines)
    histories = requests([[1, 2, 3], [11], [5, 6, 7, 8]])
    one, other = (run.model.recommend(histories, 5) for run in (plain, guided))
    assert torch.equal(one.item_ids, other.item_ids)
    assert torch.equal(one.scores, other.scores)
    assert other.guided is None


def test_the_guide_can_be_turned_off(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"model": PERFECT}, overrides=["model.guide=none"])
    assert model_of(run).guidance is None


def test_the_way_to_combine_is_chosen_on_validation_too(tmp_path: Path) -> None:
    settings = {"model": PERFECT, "combine": "validation", "temperature": "validation"}
    run = trained(tmp_path / "run", settings)
    choice = json.loads((tmp_path / "run" / "stages" / "guide.json").read_text())
    assert choice == vars(use_of(run))
    assert choice["temperature"] in pipeline.TEMPERATURES


def test_a_fixed_weight_is_kept_and_a_request_without_a_score_is_not_guided(tmp_path: Path) -> None:
    rows = [[0.0] * NUM_ITEMS for _ in range(NUM_ITEMS)]
    rows[2][8] = 1.0  # after item 3: item 9
    run = trained(tmp_path / "run", {"model": {"name": PLANTED, "rows": rows}, "weight": 0.9})
    assert use_of(run) == GuideUse(0.9)
    answer = run.model.recommend(requests([[1, 2, 3], [5]]), 3)
    assert answer.guided is not None
    assert answer.guided.tolist() == [True, False]
    assert int(answer.item_ids[0, 0]) == 9
    alone = model_of(run).search(requests([[1, 2, 3], [5]]), 3, guide=None)
    assert torch.equal(answer.item_ids[1], alone.item_ids[1])
    lists = [run.recommend(history=history, k=3) for history in (["i1", "i3"], ["i5"])]
    assert [each.guided for each in lists] == [True, False]
    assert [each.to_json()["guided"] for each in lists] == [True, False]


def test_resuming_and_refitting_use_the_same_choice(tmp_path: Path) -> None:
    guide = {"model": {"name": "item-cf"}}
    run = trained(tmp_path / "run", guide)
    (tmp_path / "run" / "metrics.json").unlink()  # as if interrupted after the choice
    resumed = trained(tmp_path / "run", guide, resume=True)
    assert use_of(resumed) == use_of(run)
    histories = requests([[1, 2, 3], [11]])
    assert torch.equal(resumed.model.recommend(histories, 5).item_ids, run.model.recommend(histories, 5).item_ids)
    refit = trained(tmp_path / "refit", guide, refit=True)
    assert use_of(refit) == use_of(run)


def test_a_guide_that_learns_by_gradient_is_trained_as_a_stage(tmp_path: Path) -> None:
    guide = {"model": {"name": "sasrec", "width": 8, "max_history_length": 8}}
    settings = {"stages": {"guide": {"max_epochs": 3, "learning_rate": 1e-2}}, "model": {"guide": guide}}
    run = trained(tmp_path / "run", guide, settings=settings)
    guidance = model_of(run).guidance
    assert guidance is not None
    assert (tmp_path / "run" / "stages" / "guide" / "weights.safetensors").is_file()
    assert use_of(run).transform == "softmax"
    assert not any(parameter.requires_grad for parameter in guidance.scorer.parameters())


def test_a_blend_guides_and_its_parts_are_stages(tmp_path: Path) -> None:
    """Its weights are chosen before the guide's; a resumed run and a refit use both choices again."""
    parts = {"perfect": {"model": PERFECT}, "sasrec": {"model": "sasrec"}}
    guide = {"model": {"name": "blend", "parts": parts}}
    stages = {"sasrec": {"max_epochs": 1, "batch_size": 16}}
    settings = {"model": {"guide": guide}, "training": {"max_epochs": 1}, "stages": stages}
    run = trained(tmp_path / "run", None, settings=settings)
    folder = tmp_path / "run" / "stages"
    assert (folder / "guide" / "sasrec" / "weights.safetensors").is_file()
    weights = {name: use["weight"] for name, use in json.loads((folder / "guide" / "blend.json").read_text()).items()}
    assert weights["perfect"] > weights["sasrec"]
    assert use_of(run).weight >= 0.3
    histories = requests([[1, 2, 3], [11]])
    answer = run.model.recommend(histories, 3)
    assert answer.item_ids[:, 0].tolist() == [4, 12]
    resumed = trained(tmp_path / "run", None, settings=settings, resume=True)
    assert torch.equal(resumed.model.recommend(histories, 3).scores, answer.scores)
    refit = trained(tmp_path / "refit", None, settings=settings, refit=True)
    assert use_of(refit) == use_of(run)
    reloaded = load_run(tmp_path / "run").model.recommend(histories, 3)
    assert torch.equal(reloaded.scores, answer.scores)


def test_the_generator_is_trained_as_without_a_guide(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", None).model.state_dict()
    guided = trained(tmp_path / "guided", {"model": {"name": "item-graph"}}).model.state_dict()
    for name, value in plain.items():
        assert torch.equal(value, guided[name]), name


def test_a_guide_of_another_catalogue_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"model": PERFECT, "weight": 0.5})
    other = train("item-graph", checkerboard(), out=tmp_path / "other", protocol="leave-one-out", progress=False)
    guidance = model_of(run).guidance
    assert guidance is not None
    guidance.scorer = other.model
    with pytest.raises(ValueError, match="trained on other items"):
        run.model.recommend(requests([[1]]), 3)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ({"model": "tiger"}, "does not score every item"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"model": PERFECT, "weight": 1.5}, "from 0 to 1"),
        ({"model": PERFECT, "weight": "best"}, "from 0 to 1"),
        ({"model": PERFECT, "temperature": 0}, "above 0"),
        ({"model": {**PERFECT, "rows": [[float("nan")] * NUM_ITEMS] * NUM_ITEMS}}, "finite"),
        ({"model": {**PERFECT, "rows": [[-1.0] * NUM_ITEMS] * NUM_ITEMS}, "transform": "share"}, "negative"),
    ],
)
def test_mistakes_are_named(guide: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        trained(tmp_path / "run", guide)
