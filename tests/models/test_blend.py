"""Tests of Blend: scores computed by hand, training of the parts, the choice of weights, resume, refit, mistakes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextitem.core.batch import SequenceBatch
from nextitem.core.config import parse
from nextitem.core.errors import UserError
from nextitem.core.jagged import Jagged
from nextitem.data.protocols import make_split
from nextitem.evaluation.evaluate import evaluate_lists, quick_score
from nextitem.evaluation.mixture_weights import target_ranks
from nextitem.models import blend as blends
from nextitem.models.blend import Blend, BlendConfig, PartUse
from nextitem.pipeline import blend as pipeline
from nextitem.pipeline.runs import Run, load_run
from nextitem.pipeline.train import train
from nextitem.testing.known_answers import build, cycle

PLANTED = "support.planted_scorers:Planted"
LEFT = ((6.0, 3.0, 1.0), (0.0, 0.0, 0.0), (1.0, 1.0, 2.0))  # scores of three items after item 1, 2, 3
RIGHT = ((1.0, 0.0, 3.0), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0))
SASREC = {"name": "sasrec", "width": 8, "dropout": 0.1, "max_history_length": 8, "objective": "full-softmax"}
TRAINING = {"max_epochs": 4, "batch_size": 16, "learning_rate": 1e-2}


def part(rows: Any, weight: float, **settings: Any) -> dict[str, Any]:
    return {"model": {"name": PLANTED, "rows": rows}, "weight": weight, **settings}


def blend(parts: dict[str, Any], *, items: int = 3, **settings: Any) -> Blend:
    catalog = build([[1, 2]], [f"thing {number}" for number in range(items)], name="tiny").catalog
    model = Blend(parse(BlendConfig, {"parts": parts, **settings}, where="test"), catalog).eval()
    model.set_popularity(torch.arange(items + 1).float())
    return model


def requests(*histories: list[int]) -> SequenceBatch:
    return SequenceBatch(Jagged.from_rows(histories))


def scores(model: Blend, *last_items: int) -> Tensor:
    return model.scores(requests(*([item] for item in last_items)))[:, 1:]


def trained(out: Path, parts: dict[str, Any], **arguments: Any) -> Run:
    settings = {"model": {"parts": parts}, "stages": {"sasrec": TRAINING}}
    recipe = {"settings": settings, "protocol": "leave-one-out", "progress": False, "device": "cpu"}
    file = out.parent / "recipe.toml"
    file.write_text('[model]\nname = "blend"\n', encoding="utf-8")
    return train("blend", cycle(), out=out, recipe=file, **{**recipe, **arguments})


def test_a_mixture_is_the_weighted_mean_of_the_probabilities() -> None:
    model = blend({"a": part(LEFT, 3), "b": part(RIGHT, 1)})
    expected = torch.tensor([[0.75 * 0.6 + 0.25 * 0.25, 0.75 * 0.3, 0.75 * 0.1 + 0.25 * 0.75]])
    torch.testing.assert_close(scores(model, 1), expected)
    answer = model.recommend(replace(requests([1]), excluded=Jagged.from_rows([[1]])), 3)
    assert answer.item_ids.tolist() == [[3, 2, 0]]
    assert answer.scores[0, 0] == pytest.approx(0.2625)


def test_softmax_and_temperature_apply_to_their_part_alone() -> None:
    logits = ((math.log(1.0), math.log(2.0), math.log(3.0)),) * 3
    model = blend({"a": part(LEFT, 1), "b": part(logits, 1, transform="softmax", temperature=0.5)})
    expected = torch.tensor([[0.6 + 1 / 14, 0.3 + 4 / 14, 0.1 + 9 / 14]]) / 2
    torch.testing.assert_close(scores(model, 1), expected)


def test_a_product_is_the_weighted_mean_of_the_logarithms() -> None:
    model = blend({"a": part(LEFT, 3), "b": part(RIGHT, 1)}, combine={"kind": "product", "floor": 0.01})
    expected = [0.75 * math.log(a + 0.01) + 0.25 * math.log(b + 0.01) for a, b in ((0.6, 0.25), (0.3, 0), (0.1, 0.75))]
    torch.testing.assert_close(scores(model, 1), torch.tensor([expected]))
    (row,) = scores(model, 2).tolist()  # part a knows nothing of item 2
    assert row == pytest.approx([math.log(p + 0.01) for p in (0.5, 0.25, 0.25)])


def test_a_part_that_knows_nothing_of_a_request_gives_its_weight_to_the_others() -> None:
    model = blend({"a": part(LEFT, 3), "b": part(RIGHT, 1)})
    expected = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    torch.testing.assert_close(scores(model, 2, 3), expected)


def test_popularity_answers_if_no_part_knows_anything() -> None:
    nothing = ((0.0, 0.0, 0.0),) * 3
    model = blend({"a": part(nothing, 1), "b": part(RIGHT, 1)})
    torch.testing.assert_close(scores(model, 3, 1), torch.tensor([[1 / 6, 2 / 6, 3 / 6], [0.25, 0.0, 0.75]]))
    assert model.recommend(requests([3]), 3).item_ids.tolist() == [[3, 2, 1]]


def test_a_part_without_weight_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = blend({"a": part(LEFT, 1), "b": part(RIGHT, 0)})
    before = scores(model, 1)
    monkeypatch.setattr(model.parts[1], "scores", lambda batch: pytest.fail("it was asked"))
    torch.testing.assert_close(scores(model, 1), before)
    torch.testing.assert_close(before, torch.tensor([[0.6, 0.3, 0.1]]))


def test_blocks_of_requests_are_answered_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = blend({"a": part(LEFT, 3), "b": part(RIGHT, 1)})
    batch = requests([1], [2], [3], [1, 2], [2, 3])
    whole = model.recommend(batch, 3)
    monkeypatch.setattr(blends, "BLOCK_SCORES", 9)
    in_blocks = model.recommend(batch, 3)
    assert in_blocks.item_ids.tolist() == whole.item_ids.tolist()
    assert torch.equal(in_blocks.scores, whole.scores)


def test_a_part_of_another_catalogue_is_refused() -> None:
    model = blend({"a": part(LEFT, 3), "b": part(RIGHT, 1)})
    model.parts[1] = blend({"a": part(LEFT, 1), "b": part(RIGHT, 1)}, items=4).parts[0]
    with pytest.raises(ValueError, match="part b was built for other items"):
        scores(model, 1)


def test_unseen_items_are_ranked_by_the_parts_that_can_rank_them() -> None:
    parts = {"a": part(LEFT, 1), "popular": {"model": "popularity", "weight": 3}}
    model = blend(parts)
    model.set_popularity(torch.tensor([0.0, 0.0, 1.0, 2.0]))
    assert model.can_rank_unseen_items
    model.parts[1].decayed_counts = torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    expected = torch.tensor([[0.25 * 0.6, 0.25 * 0.3 + 0.75 / 3, 0.25 * 0.1 + 0.75 * 2 / 3]])
    torch.testing.assert_close(scores(model, 1), expected)
    model.use({"a": PartUse(0.0, "share", 1.0), "popular": PartUse(2.0, "share", 1.0)})
    assert not model.can_rank_unseen_items
    (row,) = scores(model, 1).tolist()
    assert row[1:] == pytest.approx([1 / 3, 2 / 3])
    assert row[0] < 0


def test_weights_are_recovered_if_one_part_is_right_and_the_other_random(tmp_path: Path) -> None:
    parts = {
        "random": {"model": {"name": PLANTED, "right_after": 0}},
        "right": {"model": {"name": PLANTED, "right_after": 12}},
    }
    run = trained(tmp_path / "run", parts)
    assert isinstance(run.model, Blend)
    assert run.model.uses == {"random": PartUse(0.0, "share", 1.0), "right": PartUse(1.0, "share", 1.0)}
    assert run.metrics["metrics"]["ndcg@10"] == 1


def test_parts_that_know_different_items_share_the_weight_and_a_useless_part_gets_none(tmp_path: Path) -> None:
    first, second = {"name": PLANTED, "right_after": 6}, {"rows": second_half()}
    useless = {"model": {"name": PLANTED, "right_after": 0, "seed": 7}}
    parts = {"first": {"model": first}, "useless": useless, "second": {"model": {"name": PLANTED, **second}}}
    run = trained(tmp_path / "run", parts)
    assert isinstance(run.model, Blend)
    weights = {name: use.weight for name, use in run.model.uses.items()}
    assert weights["useless"] == 0
    assert weights["first"] > 0.05
    assert weights["second"] > 0.05
    assert run.metrics["metrics"]["ndcg@10"] > 0.95
    by_name = {entry["name"]: entry for entry in run.metrics["parts"]}
    assert by_name["first"]["weight"] == weights["first"]
    mean, low, high = by_name["first"]["gains"]["ndcg@10"]
    assert low <= mean <= high
    assert mean == pytest.approx(run.metrics["metrics"]["ndcg@10"] - by_name["first"]["metrics"]["ndcg@10"])
    assert low > 0


def second_half() -> tuple[tuple[float, ...], ...]:
    """Return scores that prefer the next item of the cycle after items 7 to 12, and random items after the others."""
    generator = torch.Generator().manual_seed(3)
    table = torch.rand(12, 12, generator=generator)
    rows = torch.arange(6, 12)
    table[rows, (rows + 1) % 12] = 20.0
    return tuple(tuple(row) for row in table.tolist())


def test_a_part_is_the_model_that_is_trained_alone(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"item-cf": {"model": "item-cf"}, "sasrec": {"model": SASREC}})
    settings = {"model": {key: value for key, value in SASREC.items() if key != "name"}, "training": TRAINING}
    alone = train(
        "sasrec",
        cycle(),
        out=tmp_path / "alone",
        recipe="debug/sasrec",
        settings=settings,
        overrides=["training.patience=5"],
        protocol="leave-one-out",
        progress=False,
        device="cpu",
    )
    assert isinstance(run.model, Blend)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, run.model.parts[1].state_dict()[name]), name
    assert run.metrics["parts"][1]["metrics"]["ndcg@10"] == alone.metrics["metrics"]["ndcg@10"]


def test_weights_are_judged_by_the_lists_that_the_blend_would_recommend(tmp_path: Path) -> None:
    """Requests with exclusions, an allow-list and without a history included, under any weights."""
    run = trained(tmp_path / "run", {"item-cf": {"model": "item-cf"}, "sasrec": {"model": SASREC, "temperature": 2}})
    model, validation = run.model, make_split(cycle(), "leave-one-out").validation
    assert isinstance(model, Blend)
    empty = SequenceBatch(Jagged.from_rows([[], []]), targets=Jagged.from_rows([[4], [5, 6]]))
    batch = SequenceBatch.concat([validation, empty], fill=True)
    batch = replace(batch, excluded=batch.items, allowed=(torch.arange(13) != 9)[None])
    uses = model.uses
    with torch.inference_mode():
        blocks = pipeline._blocks(model, batch, [[use] for use in uses.values()])
        ranks = target_ranks(blocks, model.popularity, num_parts=2)
    for weight in (0.0, 0.3, 0.5, 0.8, 1.0):
        model.use(
            {"item-cf": replace(uses["item-cf"], weight=weight), "sasrec": replace(uses["sasrec"], weight=1 - weight)}
        )
        figure = float(ranks.ndcg([weight, 1 - weight], [0, 0]).nanmean())
        assert figure == pytest.approx(quick_score(model, batch), abs=1e-9)


def test_chosen_weights_have_the_figure_that_they_were_chosen_for(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"item-cf": {"model": "item-cf"}, "sasrec": {"model": SASREC}})
    assert isinstance(run.model, Blend)
    split = make_split(cycle(), "leave-one-out")

    def figure(weight: float) -> float:
        assert isinstance(run.model, Blend)
        uses = run.model.uses
        run.model.use({name: replace(use, weight=abs(weight - (name == "sasrec"))) for name, use in uses.items()})
        value = evaluate_lists(run.model, split.validation, train=split.train).metrics["ndcg@10"]
        run.model.use(uses)
        return value

    uses = run.model.uses
    best = figure(uses["item-cf"].weight)
    others = [figure(step / 10) for step in range(11)]
    assert best >= max(others) - 0.02  # a part that does not help beyond noise may be dropped


def test_a_bundle_serves_as_it_was_chosen(tmp_path: Path) -> None:
    parts = {
        "random": {"model": {"name": PLANTED, "right_after": 0}, "transform": "softmax", "weight": 0.3},
        "right": {"model": {"name": PLANTED, "right_after": 12}, "temperature": 2.0},
    }
    run = trained(tmp_path / "run", parts)
    opened = load_run(run.folder).model
    assert isinstance(run.model, Blend)
    assert isinstance(opened, Blend)
    assert opened.uses == run.model.uses
    assert opened.uses == {"random": PartUse(0.3, "softmax", 1.0), "right": PartUse(0.7, "share", 2.0)}
    batch = requests([1], [5, 6])
    assert torch.equal(opened.recommend(batch, 5).scores, run.model.recommend(batch, 5).scores)


def test_a_temperature_is_chosen_if_it_helps(tmp_path: Path) -> None:
    rows = torch.full((12, 12), 1.0)
    for item in range(12):
        rows[item, (item + 1) % 12] = 1.3  # right about each item, with little certainty
    noise = 0.2 * torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) ** 8
    weak = {"name": PLANTED, "rows": tuple(map(tuple, rows.tolist()))}
    loud = {"name": PLANTED, "rows": tuple(map(tuple, noise.tolist()))}
    parts = {
        "weak": {"model": weak, "weight": 0.2, "temperature": "validation"},
        "loud": {"model": loud, "weight": 0.8},
    }
    run = trained(tmp_path / "run", parts)
    assert isinstance(run.model, Blend)
    assert run.model.uses["weak"].temperature == 0.5
    assert run.model.uses["loud"].temperature == 1


def test_many_validation_requests_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_SCORES", 40 * 13)
    lines: list[str] = []
    parts = {"near": {"model": "item-cf"}, "right": {"model": {"name": PLANTED, "right_after": 12}}}
    run = trained(tmp_path / "run", parts, log=lines.append)
    assert "note: weights are chosen on 40 of 80 validation requests, evenly spaced" in lines
    assert isinstance(run.model, Blend)
    assert run.model.uses["right"].weight == 1


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"sasrec": {"model": SASREC}, "item-cf": {"model": "item-cf"}, "popular": {"model": "popularity"}}
    whole = trained(tmp_path / "whole", parts)

    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "choose_uses", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "run", parts)
    assert (tmp_path / "run" / "stages" / "sasrec" / "weights.safetensors").is_file()
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    resumed = trained(tmp_path / "run", parts, resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    (tmp_path / "run" / "metrics.json").unlink()  # as if the evaluation had been interrupted
    monkeypatch.setattr(pipeline, "choose_uses", interrupt)  # weights that were chosen are not chosen again
    assert trained(tmp_path / "run", parts, resume=True).metrics["parts"] == whole.metrics["parts"]


def test_a_refit_uses_the_epochs_and_the_weights_of_the_first_fit(tmp_path: Path) -> None:
    parts = {"sasrec": {"model": SASREC}, "item-cf": {"model": "item-cf"}}
    first, refit = trained(tmp_path / "first", parts), trained(tmp_path / "refit", parts, refit=True)
    assert isinstance(first.model, Blend)
    assert isinstance(refit.model, Blend)
    assert refit.model.uses == first.model.uses
    assert json.loads((refit.folder / "stages" / "blend.json").read_text())["sasrec"]["transform"] == "softmax"
    epochs = [(refit.folder / folder / "sasrec" / "best_epoch").read_text() for folder in ("stages", "refit/stages")]
    assert epochs[0] == epochs[1]
    split = make_split(cycle(), "leave-one-out")
    num_events = len(split.refit().interactions)
    assert float(refit.model.popularity.sum()) == num_events > float(first.model.popularity.sum())
    weights, first_weights = refit.model.state_dict(), first.model.state_dict()
    assert float(weights["parts.0.popularity"].sum()) == num_events
    assert not torch.equal(weights["parts.0.items.weight"], first_weights["parts.0.items.weight"])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": {"model": "item-cf"}}, "a blend has at least two parts, and this one has 1"),
        (
            {"a": {"model": "item-cf"}, "b": {"model": {"name": "tiger"}}},
            r"\[model.parts.b.model\] tiger does not score every item, .* use item-graph, .* scores\(batch\)",
        ),
        ({"a": {"model": "item-cf"}, "b": {"model": "sasrek"}}, "no model is called 'sasrek'"),
        (
            {"a": {"model": "item-cf"}, "b": {"model": {"name": "sasrec", "widht": 3}}},
            r"\[model.parts.b.model\] sasrec: unknown setting 'widht'",
        ),
        (
            {"a": {"model": "item-cf"}, "b": {"model": {"name": "blend", "parts": {}}}},
            "a blend has at least two parts, and this one has 0",
        ),
        (
            {
                "a": {"model": "item-cf"},
                "b": {"model": {"name": "blend", "parts": {"c": {"model": "swing"}, "d": {"model": "popularity"}}}},
            },
            r"\[model.parts.b.model\] is a blend itself; list its parts",
        ),
        (
            {"a": {"model": "item-cf", "weight": 0}, "b": {"model": "popularity", "weight": 0}},
            "weights of the parts sum to 0",
        ),
        ({"a": {"model": "item-cf", "weight": 1.5}, "b": {"model": "popularity"}}, "sum to 1.5, which leaves nothing"),
        ({"a": {"model": "item-cf", "weight": -1}, "b": {"model": "popularity"}}, "weight = -1: write a number of at"),
        (
            {"a": {"model": "item-cf", "temperature": "hot"}, "b": {"model": "popularity"}},
            "'hot': write a number above",
        ),
    ],
)
def test_wrong_settings_of_a_blend_raise_a_clear_error(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trained(tmp_path / "run", parts)


def test_a_part_named_twice_is_an_error_of_the_file(tmp_path: Path) -> None:
    part_table = '[model.parts.near]\nmodel = "item-cf"\n'
    file = tmp_path / "twice.toml"
    file.write_text(f'[model]\nname = "blend"\n{part_table}{part_table}', encoding="utf-8")
    with pytest.raises(UserError, match=r"twice.toml: not valid TOML: Cannot declare .* twice \(at line 5"):
        train("blend", cycle(), out=tmp_path / "run", recipe=file, progress=False)


def test_scores_that_are_not_finite_are_an_error_that_names_the_part(tmp_path: Path) -> None:
    rows = ((float("nan"),) * 12,) * 12
    parts = {"good": {"model": "item-cf"}, "broken": {"model": {"name": PLANTED, "rows": rows}}}
    with pytest.raises(
        UserError, match=r"\[model.parts.broken\] .*Planted: scores .* must be finite, and some are NaN"
    ):
        trained(tmp_path / "run", parts)


def test_a_share_of_negative_scores_is_refused(tmp_path: Path) -> None:
    parts = {"near": {"model": "item-cf"}, "sasrec": {"model": SASREC, "transform": "share"}}
    with pytest.raises(UserError, match=r'\[model.parts.sasrec\] transform = "share" needs scores of at least 0'):
        trained(tmp_path / "run", parts)


def test_a_negative_score_that_appears_later_counts_as_0() -> None:
    rows = ((-1.0, 1.0, 3.0),) * 3
    model = blend({"a": part(rows, 1), "b": part(RIGHT, 1)})
    torch.testing.assert_close(scores(model, 3), torch.tensor([[0.0, 0.25, 0.75]]))


def test_settings_of_stages_without_effect_are_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    parts = {"near": {"model": {"name": "item-cf", "window": None, "decay": 0.5}}, "popular": {"model": "popularity"}}
    trained(tmp_path / "run", parts, overrides=["training.max_epochs=3", "training.max_minutes=9"], log=lines.append)
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert warnings == [
        "warning: [model.parts.near.model] decay = 0.5 has no effect: window is none",
        "warning: stages.sasrec has no effect: blend has no stage of this name; there are near, popular",
        "warning: training.max_epochs has no effect: each stage of blend has settings of its own, in the table "
        "[stages.NAME]",
    ]


def test_a_blend_cannot_start_from_another_run(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"near": {"model": "item-cf"}, "popular": {"model": "popularity"}})
    with pytest.raises(UserError, match="--from: a blend cannot start from another run"):
        trained(
            tmp_path / "again",
            {"near": {"model": "item-cf"}, "popular": {"model": "popularity"}},
            start_from=run.folder,
        )
