"""Learn new events: train a model on from its weights, or train it from scratch on all events.

Training on needs few steps, as the weights know the former events already. Its targets are the new events and a random
sample of former ones. Without that sample a model forgets what the new events do not contain (catastrophic forgetting;
experience replay after Rolnick et al., arXiv 1811.11682). Histories are read in full either way.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
import torch

from nextitem.core.dataset import Dataset, Split
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Trainable
from nextitem.decoding.guidance import GuidedRecommender
from nextitem.pipeline.bundle import write_json
from nextitem.pipeline.guide import CHOICE_FILE, fit_guide
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import Recipe
from nextitem.pipeline.train import finish_model
from nextitem.training.config import OptimizerConfig, TrainingConfig
from nextitem.training.fit import fit

TRAINING = "training"  # subfolder with what only training needs


def train_on(
    model: Recommender,
    train: Dataset,
    split: Split,
    recipe: Recipe,
    options: FitOptions,
    *,
    since_ms: int,
    epochs: int,
    replay: float,
    rate_factor: float,
) -> Recommender:
    """Train a model on new events from its weights, and return it in evaluation mode.

    Popularity and the guide are fitted to all events of `train`, and search indexes to the new vectors.

    Args:
        model: the model, which is trained in place.
        train: all events that may be learned, in the model's numbering of items.
        split: the split that `train` is part of.
        recipe: settings of the run.
        options: how and where to train.
        since_ms: milliseconds since 1970; events from then on are new.
        epochs: number of epochs.
        replay: number of former events that are targets, for each new one.
        rate_factor: factor on the learning rates of the recipe.

    Raises:
        KeyboardInterrupt: training was interrupted.

    """
    model.set_popularity_from(train)
    result = fit(
        cast(torch.nn.Module, model),
        cast("Trainable[Any]", model).examples(with_replay(train, since_ms=since_ms, replay=replay, seed=recipe.seed)),
        continued_training(recipe.training, epochs=epochs, rate_factor=rate_factor),
        seed=recipe.seed,
        device=options.device,
        progress=options.progress,
        label=recipe.model["name"],
    )
    if result.stop_reason == "interrupted":
        raise KeyboardInterrupt
    if isinstance(model, GuidedRecommender) and model.guidance is not None:
        # The guide is fitted again, and used as before: its weight was chosen on events that neither had learned.
        choice = options.folder / "stages" / CHOICE_FILE
        choice.parent.mkdir(parents=True, exist_ok=True)
        write_json(choice, asdict(model.guidance.chosen_use))
        fit_guide(model, train, None, recipe, replace(options, folder=options.folder / TRAINING))
    model.eval()
    finish_model(model, split, options.log)
    return model


def with_replay(train: Dataset, *, since_ms: int, replay: float, seed: int) -> Dataset:
    """Return the data set with only the new events, and a random sample of the former ones, as possible targets.

    Args:
        train: a dated log.
        since_ms: milliseconds since 1970; events from then on are new.
        replay: number of former targets, for each new one; if there are fewer, all are.
        seed: seed of the sample.

    """
    log = train.interactions
    assert log.timestamps is not None, "an update needs times"
    is_target, is_new = log.is_target(), log.timestamps >= since_ms
    former = np.flatnonzero(is_target & ~is_new)
    count = min(len(former), round(replay * int((is_target & is_new).sum())))
    positive = is_target & is_new
    positive[np.random.default_rng(seed).choice(former, count, replace=False)] = True
    return train.with_interactions(replace(log, positive=positive))


def continued_training(config: TrainingConfig, *, epochs: int, rate_factor: float) -> TrainingConfig:
    """Return the settings of training on: a fixed number of epochs at lower rates, without warm-up."""

    def slower(table: OptimizerConfig) -> dict[str, object]:
        adamw_rate = table.muon.adamw_learning_rate
        muon = table.muon.model_copy(
            update={"adamw_learning_rate": None if adamw_rate is None else adamw_rate * rate_factor}
        )
        return {"learning_rate": table.learning_rate * rate_factor, "muon": muon}

    groups = {name: group.model_copy(update=slower(group)) for name, group in config.groups.items()}
    fixed = {"max_epochs": epochs, "warmup_steps": 0, "patience": None, "max_minutes": None, "groups": groups}
    return config.model_copy(update={**slower(config), **fixed})


def learned_before(recipe: Recipe, split: Split) -> int:
    """Return the time, in milliseconds since 1970, from which on a run of this recipe has learned no event.

    It is right after the last event of the training data; that some earlier ones were held out too is ignored.
    """
    train = split.refit() if recipe.data.refit else split.train
    times = train.interactions.timestamps
    assert times is not None, "an update needs times"
    return int(times.max()) + 1 if len(times) else 0
