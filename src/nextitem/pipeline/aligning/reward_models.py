"""Reward models: trained on the impressions of the training data, or opened from a run; each is a folder of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import Field

from nextitem.alignment.rewards.point_wise import PointWiseReward
from nextitem.alignment.rewards.reward import Reward
from nextitem.alignment.rewards.session import ListModel, SessionReward
from nextitem.core.components import component_class
from nextitem.core.config import Config
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import Ranker
from nextitem.data.examples.labelled_candidates import impression_examples
from nextitem.evaluation.evaluate_ranking import quick_auc
from nextitem.pipeline.bundle import load_model, load_recipe, save_model, save_recipe
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.provenance import leak
from nextitem.pipeline.recipe import Recipe, resolve_recipe
from nextitem.pipeline.runs import Run, load_run
from nextitem.pipeline.train import fit_model, with_requirements

REWARDS = ("clicks", "purchases", "session")
REWARD_FOLDER, HELD_OUT_FOLDER = "reward", "reward-held-out"
P_SCORE_PATH = "nextitem.alignment.rewards.p_score:PScore"
LIST_MODEL_PATH = "nextitem.alignment.rewards.session:ListModel"
# Beginnings of the names of labels that each reward means.
LABELS = {"clicks": ("click",), "purchases": ("purchase", "buy", "bought", "order", "conversion")}
HELD_OUT_SEED = 1_000_003  # added to the seed of the run
DEFAULT_LENGTH, MAX_LENGTH = 6, 10  # items of a list that rewards judge
AUC_REQUESTS = 2000  # later impressions that a reward model is judged by


class RewardTraining(Config):
    """Settings of the reward models that alignment trains."""

    epochs: int = Field(2, ge=1)
    """Number of passes over the impressions of the training data."""
    batch_size: int = Field(256, ge=1)
    """Number of lists of impressions in a batch."""
    learning_rate: float = Field(2e-3, gt=0)
    """Learning rate."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of matrices."""
    weights: dict[str, float] = {}
    """Weight of each task in the reward; empty: 1 for the task that the reward is named after (session: each label)."""
    held_out: bool = True
    """Whether a second model with another seed is trained, which shows whether the first one is deceived."""


@dataclass(frozen=True)
class RewardModel:
    """A trained reward.

    Attributes:
        reward: the judge of lists.
        folder: folder of its model.
        weights: task -> weight.
        auc: AUC of its first task on later impressions; None if there are none.

    """

    reward: Reward
    folder: Path
    weights: dict[str, float]
    auc: float | None = None

    @property
    def judges_lists(self) -> bool:
        """Whether the reward is of the whole list, not the mean of its items."""
        return isinstance(self.reward, SessionReward)


def trained_reward(
    name: str, run: Run, split: Split, settings: RewardTraining, options: FitOptions, *, seed: int
) -> RewardModel:
    """Train the model of a reward, clicks, purchases or session, in `options.folder`; or load it, if resuming.

    Raises:
        UserError: the training data have no impressions, or no label of that meaning.

    """
    folder, labels = options.folder, labels_of(split.train)
    weights = dict(settings.weights) or (
        dict.fromkeys(labels, 1.0) if name == "session" else {_label(name, labels, split.train.name): 1.0}
    )
    if options.resume and (folder / "weights.safetensors").is_file():
        return _wrapped(load_model(folder, load_recipe(folder)), weights, folder, name)
    tasks = list(dict.fromkeys([*(label for label in weights if label in labels), *labels]))
    path = LIST_MODEL_PATH if name == "session" else P_SCORE_PATH
    tables: dict[str, Any] = {
        "seed": seed,
        "data": run.recipe.data.model_dump(),
        "model": {"name": path, "tasks": tasks, "learn_from": "impressions"},
        "training": {
            "max_epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "weight_decay": settings.weight_decay,
        },
    }
    recipe = resolve_recipe([("the reward", {"model": {"name": path}}), ("the settings of alignment", tables)])
    return _wrapped(_fitted(recipe, split, options), weights, folder, name)


def opened_reward(
    source: str | Path, run: Run, split: Split, settings: RewardTraining, options: FitOptions
) -> tuple[RewardModel, Recipe]:
    """Open a run of a ranker, or the reward model of an aligned run, and return it with its recipe.

    Raises:
        UserError: the folder is no run, its model scores no candidates, has another catalogue, or was trained on the
            same data under another protocol, so that it may know test events.

    """
    judge = load_run(source)
    if not isinstance(judge.model, Ranker) and (Path(source) / REWARD_FOLDER / "recipe.toml").is_file():
        judge = load_run(Path(source) / REWARD_FOLDER)
    if not isinstance(judge.model, Ranker):
        raise UserError(f"--reward {source}: {judge.name} scores no candidates; use a ranker (lr, din, ...)")
    if judge.model.catalog.fingerprint != run.model.catalog.fingerprint:
        raise UserError(
            f"--reward {source}: its model has {judge.model.num_items} items, not the {run.model.num_items} of "
            f"{run.folder}, or other ones; train it on the same data"
        )
    if judge.recipe.data.fingerprint == run.recipe.data.fingerprint:
        problem = leak(judge.recipe.data, run.recipe.data)
        if problem is not None:
            raise UserError(f"--reward {source} may know test events of {run.folder}: {problem}")
    else:
        options.log(f"note: the reward model {source} was trained on other data ({judge.recipe.data.path})")
    tasks = cast(Any, judge.model).tasks
    weights = dict(settings.weights) or {tasks[0]: 1.0}
    return _wrapped(judge.model, weights, judge.folder, str(source)), judge.recipe


def held_out_reward(
    reward: RewardModel, recipe: Recipe, split: Split, options: FitOptions, *, name: str
) -> RewardModel | None:
    """Train the model of a reward again with another seed; None if it cannot be trained on these data."""
    folder, sibling = options.folder, reward.folder.parent / HELD_OUT_FOLDER
    if not (options.resume and (folder / "weights.safetensors").is_file()):
        folder = sibling  # of a reward that another alignment has trained
    if (folder / "weights.safetensors").is_file():
        return _wrapped(load_model(folder, load_recipe(folder)), reward.weights, folder, name)
    try:
        model = _fitted(recipe.model_copy(update={"seed": recipe.seed + HELD_OUT_SEED}), split, options)
    except UserError as error:
        options.log(f"note: no held-out reward model: {error}")
        return None
    return _wrapped(model, reward.weights, options.folder, name)


def later_auc(reward: RewardModel, dataset: Dataset, split: Split) -> float | None:
    """Return the AUC of a reward model's first task on impressions after the training data; None without any."""
    earlier, model = split.train.impressions, _model_of(reward.reward)
    if dataset.impressions is None or dataset.impressions.timestamps is None or not isinstance(model, Ranker):
        return None
    requests = impression_examples(dataset)
    if requests.request_times is None or earlier is None or earlier.timestamps is None or not len(earlier.timestamps):
        return None
    later = requests.select((requests.request_times > int(earlier.timestamps.max())).nonzero()[:, 0])
    return quick_auc(model, later.sample(AUC_REQUESTS)) if later.num_requests else None


def logged_length(train: Dataset) -> int:
    """Return the median length of the lists that were shown, within 1 and MAX_LENGTH; DEFAULT_LENGTH without any."""
    if train.impressions is None or not len(train.impressions.request_ids):
        return DEFAULT_LENGTH
    lengths = np.unique(train.impressions.request_ids, return_counts=True)[1]
    return int(np.clip(np.median(lengths), 1, MAX_LENGTH))


def labels_of(train: Dataset) -> tuple[str, ...]:
    """Return the labels of the impressions of training data. Raises UserError if there are none."""
    impressions = train.impressions
    if impressions is None or not len(impressions.item_ids):
        raise UserError(
            f"{train.name}: a reward is learned from impressions, and the training data have none; add impressions, "
            "use protocol time, or give a trained ranker: --reward FOLDER"
        )
    if not impressions.labels:
        raise UserError(f"{train.name}: name the label columns: [impressions] labels = [...] in dataset.toml")
    return tuple(impressions.labels)


def _label(name: str, labels: tuple[str, ...], data: str) -> str:
    """Return the label that a reward means."""
    for label in labels:
        if label.lower().startswith(LABELS[name]):
            return label
    raise UserError(
        f"--reward {name}: {data} has the labels {', '.join(labels)}, none of which begins with "
        f"{' or '.join(LABELS[name])}; name one: --set reward.weights.{labels[0]}=1"
    )


def _fitted(recipe: Recipe, split: Split, options: FitOptions) -> Recommender:
    """Train a model of a reward and write its run."""
    options.folder.mkdir(parents=True, exist_ok=True)
    save_recipe(options.folder, recipe)
    cls, config = component_class("model", recipe.model)
    train = with_requirements(split.train, recipe, cls.needs | config.needs, options)
    model, _ = fit_model(train, None, recipe, options)
    save_model(options.folder, model)
    return model


def _wrapped(model: Recommender, weights: Mapping[str, float], folder: Path, name: str) -> RewardModel:
    """Return the reward of a model. Raises UserError if a weight names no task of it."""
    tasks = cast(Any, model).tasks if hasattr(model, "tasks") else tuple(weights)
    unknown = set(weights) - set(tasks)
    if unknown:
        raise UserError(f"reward.weights names {', '.join(sorted(unknown))}; the model has {', '.join(tasks)}")
    reward: Reward = (
        SessionReward(model, dict(weights), name=name)
        if isinstance(model, ListModel)
        else PointWiseReward(model, weights, name=name)
    )
    return RewardModel(reward, folder, dict(weights))


def _model_of(reward: Reward) -> Recommender | None:
    if isinstance(reward, SessionReward):
        return reward.model
    return reward.ranker if isinstance(reward, PointWiseReward) else None
