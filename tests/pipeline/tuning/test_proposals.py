"""Proposals of settings: known answers, and the same proposals from the same trials."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nextitem.core.components import component_class
from nextitem.pipeline.recipe import recipe_layers, resolve_recipe, run_arguments
from nextitem.pipeline.tuning.named_space import build_space
from nextitem.pipeline.tuning.proposals import importances, is_hopeless, propose
from nextitem.pipeline.tuning.space import SearchSpace
from nextitem.pipeline.tuning.trials import Trial

HILL = ["model.walk.count_weight=0.01..10:log", "model.walk.backward=0.01..10:log", "model.use_content=true,false"]


def space_of(texts: list[str], model: str = "item-graph") -> SearchSpace:
    recipe = resolve_recipe(recipe_layers(model, recipe=None, arguments=run_arguments(model, "nowhere")))
    config = component_class("model", recipe.model)[1]
    return build_space(recipe.model_dump(), config, training=None, texts=texts)


def height(trial: Trial) -> float:
    """Return the height of a hill whose top is at count_weight = 1, backward = 0.1, with content."""
    settings = trial.settings
    count_weight, backward = settings["model.walk.count_weight"], settings["model.walk.backward"]
    distance = math.log10(count_weight) ** 2 + math.log10(10 * backward) ** 2
    return 1 - distance - 0.5 * (not settings["model.use_content"])


def climb(space: SearchSpace, count: int, *, seed: int = 0, trials: list[Trial] | None = None) -> list[Trial]:
    """Return `count` trials that are proposed one after another on the hill."""
    trials = list(trials or [])
    while len(trials) < count:
        settings = propose(space, [(trial, height(trial)) for trial in trials], number=len(trials), seed=seed)
        assert settings is not None
        trials.append(Trial(len(trials), settings, "complete", {}, {}, 1.0))
    return trials


def test_the_search_climbs_a_hill() -> None:
    trials = climb(space_of(HILL), 50)
    assert max(map(height, trials)) > 0.98
    assert sum(map(height, trials[-15:])) / 15 > 0.3 > 0.0 > sum(map(height, trials[:10])) / 10


def test_the_same_trials_and_seed_give_the_same_proposals_and_another_seed_gives_others() -> None:
    space = space_of(HILL)
    whole = climb(space, 16)
    assert climb(space, 16) == whole
    assert climb(space, 16, trials=whole[:9]) == whole
    assert climb(space, 3, seed=1) != whole[:3]


def test_failed_pruned_and_running_trials_are_taken_into_account() -> None:
    space = space_of(HILL)
    trials = climb(space, 12)
    settings = propose(space, [(trial, height(trial)) for trial in trials], number=12, seed=0)
    for state, figure in (("failed", None), ("pruned", -3.0), ("running", None)):
        figures = [(trial, height(trial)) for trial in trials[:-1]] + [(replace(trials[-1], state=state), figure)]
        other = propose(space, figures, number=12, seed=0)
        assert other is not None
        assert other != settings
        assert other not in [trial.settings for trial in trials]


def test_nothing_is_proposed_twice_and_a_small_space_is_exhausted() -> None:
    space = space_of(["model.walk.count_weight=0.1,0.2,0.3", "model.use_content=true,false"])
    trials: list[Trial] = []
    while True:
        settings = propose(space, [(trial, 0.5) for trial in trials], number=len(trials), seed=0)
        if settings is None:
            break
        trials.append(Trial(len(trials), settings, "complete", {}, {}, 1.0))
    assert len(trials) == 6
    assert len({tuple(trial.settings.values()) for trial in trials}) == 6


def test_importances_find_the_setting_that_decides() -> None:
    space = space_of([*HILL[:2], "model.walk.previous_weight=0.01..10:log"])
    trials = [replace(trial, settings={**trial.settings, "model.use_content": True}) for trial in climb_flat(space, 60)]
    figures = [-(math.log10(trial.settings["model.walk.backward"]) ** 2) for trial in trials]
    shares = importances(space, list(zip(trials, figures, strict=True)))
    assert max(shares, key=shares.__getitem__) == "model.walk.backward"
    assert importances(space, [(trials[0], 0.5)]) == {}


def climb_flat(space: SearchSpace, count: int) -> list[Trial]:
    """Return trials on a plain, where no value is better than another."""
    trials: list[Trial] = []
    for number in range(count):
        settings = propose(space, [(trial, 0.0) for trial in trials], number=number, seed=0)
        assert settings is not None
        trials.append(Trial(number, settings, "complete", {}, {}, 1.0))
    return trials


@pytest.mark.parametrize(
    ("curve", "is_below_median"),
    [
        ([0.1], False),  # too early
        ([0.1, 0.1], False),
        ([0.1, 0.1, 0.1], True),
        ([0.1, 0.36, 0.1], False),  # its best is above the median of the third validations, 0.35
        ([0.1, 0.34, 0.1], True),
        ([math.nan, math.nan, math.nan], False),  # not defined
        ([0.1, 0.1, 0.1, 0.1], False),  # no other trial has as many validations
    ],
)
def test_training_is_ended_below_the_median_of_others(curve: list[float], is_below_median: bool) -> None:
    others = [[0.1, 0.2, third] for third in (0.33, 0.34, 0.35, 0.36, 0.37)]
    assert is_hopeless(curve, others) == is_below_median
    assert not is_hopeless(curve, others[:4])  # too few to compare with
