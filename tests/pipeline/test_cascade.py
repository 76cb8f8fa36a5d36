"""Cascades: trained in order from one recipe, resumed where they were cut off, clear about mistakes."""

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


def trained(out: Path, **settings: object) -> Run:
    return train(
        "cascade",
        planted_clusters(),
        out=out,
        recipe="debug/cascade",
        protocol="leave-one-out",
        progress=False,
        **settings,  # type: ignore[arg-type]
    )


def test_stages_are_kept_and_the_funnel_is_reported(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    kept = sorted(
        str(file.parent.relative_to(run.folder / "stages")) for file in run.folder.rglob("stages/**/*.safetensors")
    )
    assert kept == ["item-cf", "item-cf/past", "popularity", "popularity/past", "ranking"]
    assert run.evaluation is not None
    assert run.evaluation.funnel is not None
    names = [stage["name"] for stage in run.evaluation.funnel]
    assert names == ["retrieval", "ranking", "list"]
    assert all(0 <= stage["kept"] <= 1 for stage in run.evaluation.funnel)
    assert ni.evaluate(run.folder, planted_clusters()).to_json()["funnel"][0]["name"] == "retrieval"


def test_a_run_that_was_cut_off_goes_on_with_the_stage_that_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole")
    fitted = stages._fit_ranker

    def cut(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "_fit_ranker", cut)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run")
    assert (tmp_path / "run" / "stages" / "item-cf" / "past" / "weights.safetensors").is_file()
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    monkeypatch.setattr(stages, "_fit_ranker", fitted)
    resumed = trained(tmp_path / "run", resume=True)
    for (name, first), second in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second), name


def test_answers_say_which_channel_brought_each_item(tmp_path: Path) -> None:
    model = load_run(trained(tmp_path / "run").folder).model
    assert isinstance(model, Cascade)
    found = model.recommend(SequenceBatch(Jagged.from_rows([[1, 2], [8]])), 40)
    assert tuple(found.channels) == ("item-cf", "popularity", "popular")
    assert found.channel is not None
    lists = [model.retrieve(SequenceBatch(Jagged.from_rows([[1, 2]])))[channel].item_ids[0] for channel in (0, 1)]
    for item, channel in zip(found.item_ids[0].tolist(), found.channel[0].tolist(), strict=True):
        if item and channel < 2:
            assert item in lists[channel]
    brought = {item for row in lists for item in row.tolist()}
    popular = [
        item
        for item, channel in zip(found.item_ids[0].tolist(), found.channel[0].tolist(), strict=True)
        if item and channel == 2
    ]
    assert not brought & set(popular)
    assert len(set(found.item_ids[0].tolist()) - {0}) == model.num_items


def test_a_channel_that_brings_nothing_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(tmp_path / "run").model
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
def test_mistakes_are_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trained(tmp_path / "run", overrides=overrides)


def test_a_teacher_needs_a_ranker_that_scores(tmp_path: Path) -> None:
    pre_ranking = "model.pre_ranking={teacher=true, model={name='two-tower', width=8, field_width=4, hidden=[8]}}"
    with pytest.raises(UserError, match="teacher = true needs a"):
        trained(tmp_path / "run", overrides=[pre_ranking, "model.ranking=none"])
    run = trained(
        tmp_path / "taught", overrides=[pre_ranking, "stages={ranking={max_epochs=1}, pre-ranking={max_epochs=1}}"]
    )
    assert run.evaluation is not None
    assert run.evaluation.funnel is not None
    assert [stage["name"] for stage in run.evaluation.funnel] == ["retrieval", "pre-ranking", "ranking", "list"]


def test_an_answer_names_channels_and_rules_that_gave_way(tmp_path: Path) -> None:
    rules = "model.reranking=[{name='rules', rules=[{kind='pin', item='i1', slot=1}, {kind='pin', item='i2', slot=1}]}]"
    run = trained(tmp_path / "run", overrides=[rules])
    found = run.recommend(history=["i8"], k=4)
    assert found.item_ids[0] == "i1"
    assert len(found.channels) == len(found.item_ids)
    assert set(found.channels) <= {"item-cf", "popularity", "popular"}
    assert len(found.relaxed) == 1
    assert "i2" in found.relaxed[0]
    written = found.to_json()
    assert written["relaxed"] == list(found.relaxed)
    assert written["items"][0]["channel"] == found.channels[0]


def test_a_refit_trains_each_stage_for_the_epochs_that_were_chosen(tmp_path: Path) -> None:
    channel = "model.channels.towers={quota=6, model={name='two-tower', width=8, field_width=4, hidden=[8]}}"
    overrides = [channel, "stages.towers={max_epochs=3, batch_size=32, patience=1}"]
    run = trained(tmp_path / "run", overrides=overrides, refit=True)
    chosen, again = (
        (run.folder / place / "stages" / "towers" / "past" / "best_epoch").read_text() for place in ("", "refit")
    )
    assert chosen == again
    assert 1 <= int(chosen) <= 3
