"""Tuning from data to the recipe with the best settings: reproducible, resumable, and blind to test requests."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nextitem.core.batch import SequenceBatch
from nextitem.core.dataset import Dataset
from nextitem.core.errors import UserError
from nextitem.data.protocols import make_split
from nextitem.data.readers import dataset_from_frames
from nextitem.data.settings import TABLES
from nextitem.data.shop.shop import generate_shop
from nextitem.evaluation.evaluate import quick_score
from nextitem.pipeline import stages
from nextitem.pipeline import train as training
from nextitem.pipeline.recipe import Recipe, recipe_layers, resolve_recipe, run_arguments
from nextitem.pipeline.tokenize import require_identifiers
from nextitem.pipeline.train import train
from nextitem.pipeline.tune import tune
from nextitem.pipeline.tuning.outcome import Tuning
from nextitem.pipeline.tuning.search import read_trials
from nextitem.pipeline.tuning.trials import Trial, TrialRunner, TuningData
from nextitem.testing.known_answers import build, cycle, planted_clusters

SPACE = ["model.decay=0.1..1", "model.window=1..10", "model.recent_items=1,2,5"]
SAVE_PLOT = Tuning.save_plot
SMALL_SASREC = ["training.max_epochs=3", "model.max_history_length=4"]


def tune_cycle(out: Path, **options: Any) -> Tuning:
    """Tune item-cf on the cycle for a few trials."""
    arguments: dict[str, Any] = {"trials": 6, "space": SPACE, "protocol": "leave-one-out", "device": "cpu", **options}
    return tune(arguments.pop("model", "item-cf"), arguments.pop("data", cycle()), out=out, **arguments)


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the plot, which takes longer than the trials; test_an_interrupted_search_keeps_its_trials draws it."""
    monkeypatch.setattr(Tuning, "save_plot", lambda tuning: None)


def outcomes(trials: Sequence[Trial]) -> list[tuple[Any, ...]]:
    """Return everything of the trials but their durations."""
    return [(each.number, each.settings, each.state, each.values, each.curves) for each in trials]


def test_the_best_recipe_reaches_the_figure_that_the_search_has_measured(tmp_path: Path) -> None:
    data = planted_clusters()
    tuning = tune_cycle(tmp_path / "tuning", data=data, trials=8)
    assert tuning.best.values["planted-clusters"] > tuning.default.values["planted-clusters"]
    run = train("item-cf", data, out=tmp_path / "run", recipe=tuning.recipe, protocol="leave-one-out", progress=False)
    assert {f"model.{name}": run.recipe.model[name] for name in ("decay", "window", "recent_items")} == {
        **{"model.decay": 0.9},
        **tuning.best.settings,
    }
    requests = make_split(data, "leave-one-out").validation
    assert quick_score(run.model, requests) == pytest.approx(tuning.best.values["planted-clusters"])


def test_trial_0_has_the_default_settings(tmp_path: Path) -> None:
    tuning = tune_cycle(tmp_path / "tuning", trials=1)
    run = train("item-cf", cycle(), out=tmp_path / "run", protocol="leave-one-out", progress=False)
    assert tuning.best is tuning.default
    assert tuning.default.values == {"cycle": quick_score(run.model, make_split(cycle(), "leave-one-out").validation)}
    assert tuning.changes == {"model.decay": (0.9, 0.9)}  # the other defaults are not in the space


def test_the_same_seed_gives_the_same_search_and_another_seed_another(tmp_path: Path) -> None:
    first = tune_cycle(tmp_path / "a", trials=14)
    again = tune_cycle(tmp_path / "b", trials=14)
    assert outcomes(again.trials) == outcomes(first.trials)
    assert again.recipe.read_text().split("\n\n")[1:] == first.recipe.read_text().split("\n\n")[1:]
    assert outcomes(tune_cycle(tmp_path / "c", seed=1).trials) != outcomes(first.trials[:6])


@pytest.mark.parametrize("model", ["item-cf", "sasrec"])
def test_a_resumed_search_equals_an_uninterrupted_one(tmp_path: Path, model: str) -> None:
    options: dict[str, Any] = {"model": model, "requests": 30}
    if model == "sasrec":
        space = ["model.objective=bce,full-softmax", "model.objective.num_negatives=1,2", "training.learning_rate"]
        options |= {"recipe": "debug/sasrec", "overrides": SMALL_SASREC, "space": space}
    whole = tune_cycle(tmp_path / "whole", trials=12, **options)
    tune_cycle(tmp_path / "parts", trials=4, **options)
    with (tmp_path / "parts" / "trials.jsonl").open("a") as file:
        file.write('{"number": 4, "sett')  # killed while it was writing
    tune_cycle(tmp_path / "parts", trials=11, resume=True, **options)
    resumed = tune_cycle(tmp_path / "parts", trials=12, resume=True, **options)
    assert outcomes(resumed.trials) == outcomes(whole.trials)
    assert outcomes(read_trials(tmp_path / "parts")) == outcomes(whole.trials)
    assert resumed.best.settings == whole.best.settings
    assert [each.difference for each in resumed.confirmations] == [each.difference for each in whole.confirmations]


def test_an_interrupted_search_keeps_its_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_trial = TrialRunner.run

    def run_until_3(runner: TrialRunner, number: int, *args: Any) -> Trial:
        if number == 3:
            raise KeyboardInterrupt
        return run_trial(runner, number, *args)

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(TrialRunner, "run", run_until_3)
        patch.setattr(Tuning, "save_plot", SAVE_PLOT)
        tuning = tune_cycle(tmp_path / "a", log=lines.append)
    assert [each.number for each in tuning.trials] == [0, 1, 2]
    assert "interrupted: the trials so far are kept; continue with --resume" in lines
    assert tuning.recipe.is_file()
    assert (tmp_path / "a" / "tuning.png").read_bytes().startswith(b"\x89PNG")
    resumed = tune_cycle(tmp_path / "a", resume=True)
    assert outcomes(resumed.trials) == outcomes(tune_cycle(tmp_path / "b").trials)


def test_no_trial_has_a_test_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = planted_clusters()
    split = make_split(data, "leave-one-out")
    judged_requests: list[SequenceBatch] = []

    def score(model: Any, requests: SequenceBatch, *, metric: str) -> float:
        judged_requests.append(requests)
        return quick_score(model, requests, metric=metric)

    monkeypatch.setattr(stages, "quick_score", score)
    tune_cycle(tmp_path / "a", data=data, trials=3)
    assert len(judged_requests) == 3
    assert split.validation.targets is not None
    for requests in judged_requests:
        assert requests.targets is not None
        assert torch.equal(requests.targets.values, split.validation.targets.values)
        assert torch.equal(requests.items.values, split.validation.items.values)
    assert split.test.items.values.shape != split.validation.items.values.shape  # so the check above can fail
    tuning_data = TuningData.from_split("x", tuning_recipe(), split, num_requests=10)
    assert tuning_data.split.test is tuning_data.split.validation
    with pytest.raises(AssertionError, match="no refit"):
        tuning_data.split.refit()


def tuning_recipe() -> Recipe:
    """Return the default recipe of item-cf."""
    return resolve_recipe(recipe_layers("item-cf", recipe=None, arguments=run_arguments("item-cf", "nowhere")))


def test_half_of_many_validation_requests_confirm_the_best_settings(tmp_path: Path) -> None:
    data = planted_clusters()  # 80 users
    tuning = tune_cycle(tmp_path / "a", data=data, requests=40, trials=8)
    assert tuning.requests == {"planted-clusters": 40}
    (confirmation,) = tuning.confirmations
    assert confirmation.requests == 40
    assert confirmation.difference.mean == pytest.approx(confirmation.best - confirmation.default)
    assert "40 others: default" in tuning.recipe.read_text()
    split = make_split(data, "leave-one-out")
    parts = TuningData.from_split("x", tuning_recipe(), split, num_requests=40)
    assert parts.others is not None
    assert split.validation.user_ids is not None
    users = [batch.user_ids for batch in (parts.split.validation, parts.others)]
    selected, others = (set(each.tolist()) for each in users if each is not None)
    assert not selected & others
    assert TuningData.from_split("x", tuning_recipe(), split, num_requests=80).others is None
    run = train("item-cf", data, out=tmp_path / "run", recipe=tuning.recipe, protocol="leave-one-out", progress=False)
    assert quick_score(run.model, parts.others) == pytest.approx(confirmation.best)


def test_several_data_sets_are_judged_by_the_mean_relative_change(tmp_path: Path) -> None:
    tuning = tune_cycle(tmp_path / "a", data=[cycle(), planted_clusters(), planted_clusters()], trials=5)
    assert list(tuning.requests) == ["cycle", "planted-clusters", "planted-clusters 3"]
    default = tuning.default.values
    for trial in tuning.trials:
        changes = [value / default[name] - 1 for name, value in trial.values.items()]
        assert trial.objective(tuning.default) == pytest.approx(sum(changes) / 3)
    assert tuning.best is max(tuning.trials, key=lambda trial: trial.objective(tuning.default) or 0.0)
    assert tuning.to_frame().columns[2:5] == list(tuning.requests)


def test_relative_changes_need_a_default_figure_above_zero(tmp_path: Path) -> None:
    sequences = [[user % 7 + 1, user % 5 + 8, user % 3 + 13, 16 + user] for user in range(40)]  # the last item is new
    hopeless = build(sequences, [f"thing {number}" for number in range(1, 61)], name="hopeless")
    with pytest.raises(UserError, match=r"hopeless: recall@1 of the default settings is 0"):
        tune_cycle(tmp_path / "a", data=[cycle(), without_hits(hopeless)], metric="recall@1")


def without_hits(data: Dataset) -> Dataset:
    """Return the data set with validation targets that no user has had before."""
    items = data.interactions.item_ids.copy()
    last_but_one = np.flatnonzero(np.diff(data.interactions.user_ids, append=0) != 0) - 1
    items[last_but_one] = 20 + np.arange(len(last_but_one))
    return data.with_interactions(replace(data.interactions, item_ids=items))


def test_a_worse_training_is_ended_early_and_counts_as_worse(tmp_path: Path) -> None:
    tuning = tune_cycle(
        tmp_path / "a",
        model="sasrec",
        recipe="debug/sasrec",
        overrides=["training.max_epochs=6", "training.patience=none"],
        space=["training.learning_rate=1e-7..3e-2:log"],
        trials=12,
    )
    pruned_trials = [trial for trial in tuning.trials if trial.state == "pruned"]
    assert pruned_trials
    for trial in pruned_trials:
        assert 3 <= len(trial.curves["cycle"]) < 6
        assert trial.values["cycle"] == max(trial.curves["cycle"])
    assert tuning.best.state == "complete"
    assert all(len(trial.curves["cycle"]) == 6 for trial in tuning.trials if trial.state == "complete")


def test_settings_that_contradict_one_another_are_a_failed_trial(tmp_path: Path) -> None:
    tuning = tune_cycle(
        tmp_path / "a",
        model="sasrec",
        recipe="debug/sasrec",
        overrides=["training.max_epochs=1"],
        space=["model.heads=1,3"],  # the width is 16
        trials=5,
    )
    states = {trial.settings["model.heads"]: (trial.state, trial.reason) for trial in tuning.trials}
    assert states[1][0] == "complete"
    assert states[3][0] == "failed"
    assert "heads" in states[3][1]
    assert len(tuning.trials) == 2  # everything was tried
    with pytest.raises(UserError, match="heads"):  # the default settings have to work
        tune_cycle(
            tmp_path / "b", model="sasrec", recipe="debug/sasrec", overrides=["model.heads=3"], space=["model.dropout"]
        )


def test_a_budget_of_minutes_ends_the_search_and_is_shared_by_trials(tmp_path: Path) -> None:
    lines: list[str] = []
    tuning = tune_cycle(tmp_path / "a", trials=None, minutes=0.03, log=lines.append)
    assert len(tuning.trials) >= 1
    assert tuning.trials[-1].elapsed < 0.03 * 60 + 2
    assert not any("a trial trains at most" in line for line in lines)  # item-cf learns in one pass
    options: dict[str, Any] = {"model": "sasrec", "recipe": "debug/sasrec", "space": ["model.dropout"]}
    tune_cycle(tmp_path / "b", trials=2, minutes=0.05, log=lines.append, **options)
    assert "a trial trains at most 2 seconds on each data set" in lines
    tune_cycle(tmp_path / "b", trials=3, minutes=9, resume=True, log=lines.append, **options)
    assert lines.count("a trial trains at most 2 seconds on each data set") == 2  # so that trials stay comparable


@pytest.mark.slow
def test_trials_run_in_several_processes(tmp_path: Path) -> None:
    tuning = tune_cycle(tmp_path / "a", data=planted_clusters(), jobs=2, trials=6, requests=40)
    assert sorted(trial.number for trial in tuning.trials) == list(range(6))
    alone = tune_cycle(tmp_path / "b", data=planted_clusters(), trials=3, requests=40)
    values = {json.dumps(trial.settings): trial.values for trial in alone.trials}
    shared = [trial for trial in tuning.trials if json.dumps(trial.settings) in values]
    assert len(shared) > 1
    assert all(trial.values == values[json.dumps(trial.settings)] for trial in shared)
    options: dict[str, Any] = {"model": "sasrec", "recipe": "debug/sasrec", "overrides": ["model.heads=3"]}
    with pytest.raises(UserError, match="heads"):
        tune_cycle(tmp_path / "c", space=["model.dropout"], jobs=2, **options)


def test_a_ranker_is_tuned_on_the_scores_of_impressions(tmp_path: Path) -> None:
    tables = generate_shop(3, num_items=150, num_users=300)
    data = dataset_from_frames({name: getattr(tables, name) for name in TABLES}, tables.settings, name="small shop")
    options: dict[str, Any] = {"model": "gbdt", "data": data, "protocol": "impressions", "space": ["model"]}
    tuning = tune_cycle(tmp_path / "a", requests=30, **options)
    assert tuning.metric == "auc"
    assert tuning.best.number > 0
    (confirmation,) = tuning.confirmations
    assert 0 < confirmation.default < 1
    assert confirmation.difference.low <= confirmation.difference.mean <= confirmation.difference.high
    assert confirmation.difference.mean == pytest.approx(confirmation.best - confirmation.default)
    with pytest.raises(UserError, match="is judged by auc, not by ndcg@10"):
        tune_cycle(tmp_path / "b", metric="ndcg@10", **options)
    with pytest.raises(UserError, match="is judged by a figure of lists"):
        tune_cycle(tmp_path / "b", metric="auc")


def test_semantic_ids_are_made_again_only_for_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codebook_sizes: list[int] = []

    def spy(train_data: Dataset, recipe: Recipe, options: Any) -> Dataset:
        assert recipe.tokenizer is not None
        codebook_sizes.append(recipe.tokenizer["codebook_size"])
        return require_identifiers(train_data, recipe, options)

    monkeypatch.setattr(training, "require_identifiers", spy)
    options: dict[str, Any] = {"model": "tiger", "recipe": "debug/tiger", "overrides": ["training.max_epochs=1"]}
    tune_cycle(tmp_path / "a", trials=3, space=["model.dropout"], **options)
    assert codebook_sizes == [8]
    tune_cycle(tmp_path / "b", trials=2, space=["tokenizer.codebook_size=8,16"], **options)
    assert codebook_sizes == [8, 8, 16]


def test_a_search_with_other_settings_or_a_damaged_list_is_refused(tmp_path: Path) -> None:
    tune_cycle(tmp_path, trials=2)
    for changes in ({"space": ["model.decay=0.2..1"]}, {"seed": 5}, {"data": planted_clusters()}, {"metric": "mrr@5"}):
        with pytest.raises(UserError, match="was begun with other settings"):
            tune_cycle(tmp_path, resume=True, **changes)
    with pytest.raises(UserError, match="not empty"):
        tune_cycle(tmp_path)
    file = tmp_path / "trials.jsonl"
    lines = file.read_text().splitlines()
    file.write_text(f"{lines[0]}\nnonsense\n")
    with pytest.raises(UserError, match=r"trials.jsonl, line 2 is damaged"):
        tune_cycle(tmp_path, resume=True)
    assert len(tune_cycle(tmp_path, overwrite=True, trials=2).trials) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": None}, "nothing says how long"),
        ({"trials": 0}, "--trials 0"),
        ({"minutes": -1.0}, "--minutes -1"),
        ({"jobs": 0}, "--jobs 0"),
        ({"metric": "ndcg"}, "with a cutoff"),
        ({"metric": "coverage@10"}, "with a cutoff"),
        ({"model": "item-cg"}, "no model is called 'item-cg'"),
        ({"space": ["model.decai=0.1..1"]}, "unknown setting 'decai'"),
        ({"space": ["model.decay=0.1..3"]}, "--space model.decay = 0.1..3: .*less than or equal to 1"),
        ({"space": ["model.repeats=all,most"]}, "--space model.repeats = all, most"),
        ({"space": ["model.window=0.5..3"]}, "--space model.window"),
        ({"data": []}, "name a data set"),
        ({"protocol": "impressions"}, "impressions"),
    ],
)
def test_a_mistake_is_explained_before_any_trial(tmp_path: Path, options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tune_cycle(tmp_path / "a", **options)
    assert not (tmp_path / "a" / "trials.jsonl").exists()


def test_data_without_validation_requests_are_refused(tmp_path: Path) -> None:
    short = build([[1, 2]] * 5, ["a thing", "another thing"], name="short")  # two events: for training only
    with pytest.raises(UserError, match="leaves no validation requests"):
        tune_cycle(tmp_path / "a", data=short)


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    arguments = sys.modules["nextitem.pipeline.tuning.arguments"]
    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == "optuna" else find_spec(name))
    with pytest.raises(UserError, match=r"pip install 'nextitem\[tune\]'"):
        tune_cycle(tmp_path / "a")


def test_a_guided_generator_is_judged_with_its_guide(tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "tiger", "recipe": "debug/tiger", "trials": 1, "space": ["training"]}
    overrides = ["training.max_epochs=1", "training.validate_every=1"]
    alone = tune_cycle(tmp_path / "alone", overrides=overrides, **options)
    guided = tune_cycle(tmp_path / "guided", overrides=[*overrides, "model.guide={}"], **options)
    assert guided.default.curves == alone.default.curves  # the guide is fitted after the training
    assert guided.default.values["cycle"] > alone.default.values["cycle"]
    run = train(
        "tiger",
        cycle(),
        out=tmp_path / "run",
        recipe=guided.recipe,
        protocol="leave-one-out",
        progress=False,
        device="cpu",
    )
    requests = make_split(cycle(), "leave-one-out").validation
    assert quick_score(run.model, requests) == pytest.approx(guided.default.values["cycle"])


def test_settings_that_the_user_has_set_are_not_varied(tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "item-graph", "space": (), "trials": 1}
    everything = {each.key for each in tune_cycle(tmp_path / "all", **options).space.dimensions}
    published = {key for key in everything if not key.endswith("(wide)")}
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"overrides": ["model.walk=published"]}, {"model.walk.kind"}),
        ({"settings": {"model": {"walk": {"kind": "published"}}}}, {"model.walk.kind"}),
        (
            {"overrides": ['model.walk={kind="published", second_step=0.2}']},
            {"model.walk.kind", "model.walk.second_step (published)"},
        ),
    ]
    for number, (changes, fixed) in enumerate(cases):
        tuning = tune_cycle(tmp_path / str(number), **options, **changes)
        assert {each.key for each in tuning.space.dimensions} == published - fixed
