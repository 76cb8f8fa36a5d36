"""Cascades: stages train in order from one recipe, interrupted runs resume, and mistakes raise a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nextitem as ni
from nextitem.cascade.cascade import Cascade
from nextitem.core.batch import SequenceBatch
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.pipeline import cascade as stages
from nextitem.pipeline.runs import Run, load_run
from nextitem.pipeline.train import train
from nextitem.testing.known_answers import planted_clusters


def train_cascade(out: Path, **settings: object) -> Run:
    return train(
        "cascade",
        planted_clusters(),
        out=out,
        recipe="debug/cascade",
        protocol="leave-one-out",
        progress=False,
        **settings,  # type: ignore[arg-type]
    )


def test_weights_of_stages_are_saved_and_the_funnel_is_reported(tmp_path: Path) -> None:
    run = train_cascade(tmp_path / "run")
    saved_stages = sorted(
        str(file.parent.relative_to(run.folder / "stages")) for file in run.folder.rglob("stages/**/*.safetensors")
    )
    assert saved_stages == ["item-cf", "item-cf/past", "popularity", "popularity/past", "ranking"]
    assert run.evaluation is not None
    assert run.evaluation.funnel is not None
    names = [stage["name"] for stage in run.evaluation.funnel]
    assert names == ["retrieval", "ranking", "list"]
    assert all(0 <= stage["kept"] <= 1 for stage in run.evaluation.funnel)
    assert ni.evaluate(run.folder, planted_clusters()).to_json()["funnel"][0]["name"] == "retrieval"


def test_an_interrupted_run_resumes_with_the_interrupted_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uninterrupted = train_cascade(tmp_path / "whole")
    fit_ranker = stages._fit_ranker

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "_fit_ranker", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_cascade(tmp_path / "run")
    assert (tmp_path / "run" / "stages" / "item-cf" / "past" / "weights.safetensors").is_file()
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    monkeypatch.setattr(stages, "_fit_ranker", fit_ranker)
    resumed = train_cascade(tmp_path / "run", resume=True)
    for (name, expected), actual in zip(
        uninterrupted.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual), name


def test_recommendations_contain_the_channel_of_each_item(tmp_path: Path) -> None:
    model = load_run(train_cascade(tmp_path / "run").folder).model
    assert isinstance(model, Cascade)
    recommendations = model.recommend(SequenceBatch(Jagged.from_rows([[1, 2], [8]])), 40)
    assert tuple(recommendations.channels) == ("item-cf", "popularity", "popular")
    assert recommendations.channel is not None
    channel_items = [
        model.retrieve(SequenceBatch(Jagged.from_rows([[1, 2]])))[channel].item_ids[0] for channel in (0, 1)
    ]
    for item, channel in zip(recommendations.item_ids[0].tolist(), recommendations.channel[0].tolist(), strict=True):
        if item and channel < 2:
            assert item in channel_items[channel]
    retrieved_items = {item for row in channel_items for item in row.tolist()}
    popular_items = [
        item
        for item, channel in zip(recommendations.item_ids[0].tolist(), recommendations.channel[0].tolist(), strict=True)
        if item and channel == 2
    ]
    assert not retrieved_items & set(popular_items)
    assert len(set(recommendations.item_ids[0].tolist()) - {0}) == model.num_items


def test_a_channel_without_candidates_does_not_affect_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = train_cascade(tmp_path / "run").model
    assert isinstance(model, Cascade)
    batch = SequenceBatch(Jagged.from_rows([[1, 2]]))
    answers = model.retrieve(batch)
    empty = type(answers[1])(torch.zeros_like(answers[1].item_ids), torch.full_like(answers[1].scores, -torch.inf))
    monkeypatch.setattr(model, "retrieve", lambda batch: [answers[0], empty])
    assert bool((model.recommend(batch, 5).item_ids > 0).all())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.ranking.model.name=item-fc"], "no model is called 'item-fc'"),
        (["model.ranking.model.fields=['candidate.swing']"], "no field 'candidate.swing'"),
        (["model.channels={}"], "channels"),
        (["model.pre_ranking={model={name='item-cf'}}"], "ItemCF cannot learn from the candidates"),
        (["model.reranking=[{name='rules', rules=[{kind='cap', column='brand', most=1}]}]"], "brand"),
    ],
)
def test_wrong_settings_of_a_cascade_raise_a_clear_error(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_cascade(tmp_path / "run", overrides=overrides)


def test_a_teacher_needs_a_ranker_that_scores(tmp_path: Path) -> None:
    pre_ranking = "model.pre_ranking={teacher=true, model={name='two-tower', width=8, field_width=4, hidden=[8]}}"
    with pytest.raises(UserError, match="teacher = true needs a"):
        train_cascade(tmp_path / "run", overrides=[pre_ranking, "model.ranking=none"])
    run = train_cascade(
        tmp_path / "taught", overrides=[pre_ranking, "stages={ranking={max_epochs=1}, pre-ranking={max_epochs=1}}"]
    )
    assert run.evaluation is not None
    assert run.evaluation.funnel is not None
    assert [stage["name"] for stage in run.evaluation.funnel] == ["retrieval", "pre-ranking", "ranking", "list"]


def test_a_recommendation_list_contains_channels_and_relaxed_rules(tmp_path: Path) -> None:
    rules = "model.reranking=[{name='rules', rules=[{kind='pin', item='i1', slot=1}, {kind='pin', item='i2', slot=1}]}]"
    run = train_cascade(tmp_path / "run", overrides=[rules])
    answer = run.recommend(history=["i8"], k=4)
    assert answer.item_ids[0] == "i1"
    assert len(answer.channels) == len(answer.item_ids)
    assert set(answer.channels) <= {"item-cf", "popularity", "popular"}
    assert len(answer.relaxed) == 1
    assert "i2" in answer.relaxed[0]
    json_values = answer.to_json()
    assert json_values["relaxed"] == list(answer.relaxed)
    assert json_values["items"][0]["channel"] == answer.channels[0]


def test_a_refit_trains_each_stage_for_its_best_number_of_epochs(tmp_path: Path) -> None:
    channel = "model.channels.towers={quota=6, model={name='two-tower', width=8, field_width=4, hidden=[8]}}"
    overrides = [channel, "stages.towers={max_epochs=3, batch_size=32, patience=1}"]
    run = train_cascade(tmp_path / "run", overrides=overrides, refit=True)
    best_epochs, refit_epochs = (
        (run.folder / subfolder / "stages" / "towers" / "past" / "best_epoch").read_text()
        for subfolder in ("", "refit")
    )
    assert best_epochs == refit_epochs
    assert 1 <= int(best_epochs) <= 3
