"""A new version of a run: its data, its model, and its files, in a staged folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from nextitem.core.config import Config
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ClosedForm, ProbabilityCalibrated
from nextitem.data.readers import load_dataset
from nextitem.distributed.devices import device_of
from nextitem.evaluation.evaluate import evaluate_lists
from nextitem.pipeline.bundle import save_model, save_recipe, write_json
from nextitem.pipeline.evaluate import KS, split_for
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.provenance import data_table
from nextitem.pipeline.recipe import DataTable, Recipe
from nextitem.pipeline.runs import Run, aligned
from nextitem.pipeline.tokenize import CONTENT_FILE, TOKENIZER_FILE
from nextitem.pipeline.train import train_split
from nextitem.pipeline.updating.carry import (
    CannotContinueError,
    check_can_continue,
    later_catalog,
    model_with_weights_of,
)
from nextitem.pipeline.updating.learn import TRAINING, train_on
from nextitem.pipeline.updating.merge import Merger
from nextitem.pipeline.updating.version_store import CARD

CONTINUED = "trained on"
PROTOCOL = "published"  # the merged data mark what is held out
ONLY_FOR_TRAINING = (TRAINING, "checkpoints", "refit", "tokenizer")  # subfolders that a version needs no more


class UpdateConfig(Config):
    """Settings of an update."""

    epochs: int = Field(3, ge=1)
    """Number of epochs of training on; a model that is trained from scratch is trained as its recipe says."""
    replay: float = Field(1.0, ge=0)
    """Number of former events that are learned again, for each new one."""
    rate_factor: float = Field(0.5, gt=0, le=1)
    """Factor on the learning rates of the recipe, for training on."""
    from_scratch: bool = False
    """Whether the model is trained from scratch on all events, even if it could be trained on."""
    metric: str = "ndcg@10"
    """Figure of lists that old and new are judged by, name@k."""
    margin: float = Field(0.05, ge=0)
    """Relative loss of the figure that still counts as not worse, if the interval contains 0."""
    skill_share: float = Field(0.3, ge=0, le=1)
    """Least gain over the most popular items on the newest events, as a share of the old version's on earlier ones."""
    min_users: int = Field(20, ge=1)
    """Smallest number of users to judge by; with fewer, the new version is not used."""
    max_requests: int = Field(5000, ge=1)
    """Largest number of requests to judge by."""
    refit: bool = False
    """Whether a version that is used also learns the newest events, on which it was judged."""
    keep: int = Field(5, ge=2)
    """Number of versions that are kept, the first and the one in use included."""


@dataclass(frozen=True)
class UpdateTask:
    """What an update starts from.

    Attributes:
        root: folder of the run.
        former: the version in use.
        former_name: its name.
        card: its card, empty for the first version.
        settings: settings of the update.
        options: how and where to train.

    """

    root: Path
    former: Run
    former_name: str
    card: Mapping[str, Any]
    settings: UpdateConfig
    options: FitOptions

    @property
    def num_first_items(self) -> int:
        """Number of items of the version that was trained from scratch, to which encoders of items were fitted."""
        return int(self.card.get("first_items", self.former.model.num_items))


@dataclass(frozen=True)
class Period:
    """Borders of the periods of an update, in milliseconds since 1970.

    Attributes:
        since: begin of the new events.
        valid_from: begin of the events on which a model that is trained from scratch is validated, and then learns.
        test_from: begin of the events on which the new version is judged.

    """

    since: int
    valid_from: int
    test_from: int


@dataclass(frozen=True)
class NewVersion:
    """A trained model with the data that it was trained on.

    Attributes:
        model: the model.
        recipe: its settings.
        dataset: the merged data, in the model's numbering of items.
        split: training, validation and test data.
        way: "trained on", or "trained from scratch: " and the reason.
        num_first_items: number of items to which encoders of items were fitted.

    """

    model: Recommender
    recipe: Recipe
    dataset: Dataset
    split: Split
    way: str
    num_first_items: int

    @property
    def is_continued(self) -> bool:
        """Whether the model was trained on from the weights of the version in use."""
        return self.way == CONTINUED


def learn_version(task: UpdateTask, merged: Merger, period: Period, *, folder: Path, name: str) -> NewVersion:
    """Write the merged data into a staged folder, and train a model on them.

    Args:
        task: the run and the version in use.
        merged: the merged data.
        period: which events are new, and which are held out.
        folder: the staged folder.
        name: name of the version.

    Raises:
        UserError: the model cannot be updated.
        KeyboardInterrupt: training was interrupted.

    """
    former = task.former
    if former.recipe.data.protocol == "impressions":
        raise UserError(
            f"{former.name} ranks logged impressions, which an update does not judge by; train it again on the new "
            "impressions: nextitem train"
        )
    merged.write(folder / "data", valid_from=period.valid_from, test_from=period.test_from)
    dataset = load_dataset(folder / "data", drop_unknown_items=former.recipe.data.drop_unknown_items)
    try:
        if task.settings.from_scratch:
            raise CannotContinueError("as requested")
        check_can_continue(former.model)
        catalog = later_catalog(
            former.model.catalog,
            dataset.catalog,
            former.recipe,
            former.folder,
            num_first_items=task.num_first_items,
        )
        model = model_with_weights_of(former.model, former.recipe, catalog)
    except CannotContinueError as reason:
        task.options.log(f"{former.name} is trained from scratch: {reason}")
        return _from_scratch(task, dataset, folder=folder, name=name, reason=str(reason))
    dataset = aligned(dataset, model)
    recipe, split = _with_data(task, dataset, name=name, refit=True)
    model = _trained_on(task, model, split.refit(), split, recipe, folder=folder, since_ms=period.since)
    return NewVersion(model, recipe, dataset, split, CONTINUED, task.num_first_items)


def learn_window(task: UpdateTask, version: NewVersion, period: Period) -> bool:
    """Let a judged version learn the newest events too, and return whether it could."""
    model = version.model
    if version.is_continued:
        _trained_on(
            task,
            model,
            version.dataset,
            version.split,
            version.recipe,
            folder=task.options.folder,
            since_ms=period.test_from,
        )
    elif isinstance(model, ClosedForm):
        model.set_popularity_from(version.dataset)
        model.fit(version.dataset)
        model.eval()
    else:
        task.options.log("note: a model that is trained from scratch learns the newest events at the next update")
        return False
    return True


def write_version(task: UpdateTask, version: NewVersion, card: Mapping[str, Any], *, folder: Path) -> None:
    """Write all files of a version into its staged folder: recipe, model, metrics and card."""
    for name in ONLY_FOR_TRAINING:
        shutil.rmtree(folder / name, ignore_errors=True)
    save_recipe(folder, version.recipe)
    save_model(folder, version.model)
    if version.is_continued:
        for name in (TOKENIZER_FILE, CONTENT_FILE):
            if (task.former.folder / name).is_file():
                shutil.copy2(task.former.folder / name, folder / name)
        evaluation = evaluate_lists(
            version.model,
            version.split.test.sample(task.settings.max_requests),
            train=version.split.refit(),
            ks=KS,
            model_name=task.former.name,
            protocol=PROTOCOL,
            refit=True,
        )
        parameters = sum(parameter.numel() for parameter in version.model.parameters())
        figures = {**evaluation.to_json(), "parameters": parameters, "train_seconds": card["seconds"]}
        write_json(folder / "metrics.json", figures)
    write_json(folder / CARD, card)


def _from_scratch(task: UpdateTask, dataset: Dataset, *, folder: Path, name: str, reason: str) -> NewVersion:
    """Train the model of the recipe on all events before the window, by the choice of epochs on validation."""
    is_calibrated = isinstance(task.former.model, ProbabilityCalibrated)
    recipe, split = _with_data(task, dataset, name=name, refit=not is_calibrated)
    options = FitOptions(folder, device=task.options.device, progress=task.options.progress, log=task.options.log)
    run = train_split(dataset, split, recipe, options)
    if not (folder / "metrics.json").is_file():
        raise KeyboardInterrupt
    model = run.model.to(device_of(task.options.device))
    dataset = aligned(dataset, model)
    return NewVersion(model, recipe, dataset, split, f"trained from scratch: {reason}", model.num_items)


def _with_data(task: UpdateTask, dataset: Dataset, *, name: str, refit: bool) -> tuple[Recipe, Split]:
    """Return the recipe of the version, which names its data where they will be, and the split of these."""
    former = task.former.recipe
    split = split_for(dataset, PROTOCOL, models=[task.former.name], seed=former.seed)
    path = str(task.root / "versions" / name / "data")
    table = DataTable(path=path, drop_unknown_items=former.data.drop_unknown_items, refit=refit)
    return former.model_copy(update={"data": data_table(table, dataset, split)}), split


def _trained_on(
    task: UpdateTask,
    model: Recommender,
    train: Dataset,
    split: Split,
    recipe: Recipe,
    *,
    folder: Path,
    since_ms: int,
) -> Recommender:
    settings = task.settings
    options = FitOptions(folder, device=task.options.device, progress=task.options.progress, log=task.options.log)
    trained = train_on(
        model,
        train,
        split,
        recipe,
        options,
        since_ms=since_ms,
        epochs=settings.epochs,
        replay=settings.replay,
        rate_factor=settings.rate_factor,
    )
    return trained.to(device_of(task.options.device))
